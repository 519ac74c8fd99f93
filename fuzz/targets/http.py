"""Text that others send: heads of requests, JSON bodies, and the answers of other providers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from fuzz.target import Target
from mimids.client.connection import Problem
from mimids.client.contacts import Contact
from mimids.ds.terms.hub_terms import HubTerms
from mimids.errors import MimiError, every_error
from mimids.http.api import parameters
from mimids.http.api.devices import DEVICES
from mimids.http.api.operator_socket import OPERATOR_SOCKET
from mimids.http.api.providers import PROVIDERS
from mimids.http.api.public import PUBLIC
from mimids.http.api.request_bodies import decode
from mimids.http.api.routes import Routes
from mimids.http.media_types import JSON, PROBLEM_JSON, without_parameters
from mimids.http.peers.answers import HttpAnswer, named_revision, relayed_answer
from mimids.http.peers.problems import describes_us, error_from
from mimids.http.server.messages import HttpRequest
from mimids.ohttp.date import read_date, write_date
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.ids import ProviderId

_HUB: Final = ProviderId("a.example")
_ENDPOINTS: Final = (*PUBLIC, *PROVIDERS, *DEVICES)
_BODIES: Final = tuple(
    body
    for each in (*_ENDPOINTS, *OPERATOR_SOCKET)
    if (body := each.request_body) is not None and body.media_type == JSON
)
_ROUTES: Final = Routes(_ENDPOINTS, {each.limit: 1 for each in _ENDPOINTS}, frozenset({"a.example"}))
_TERMS: Final = (
    b'{"revision":2,"hub":"a.example","bans":["mimi://b.example/u/bob"],"mutes":[{"user_id":"mimi://b.example/u/c",'
    b'"group_id":"AAEC"}],"rates":{"device_sends_per_second":100,"device_sends_burst":2e3},"sizes":{"message_bytes":4}}'
)
_CARD: Final = (
    b'{"user_id":"mimi://b.example/u/bob","provider":"b.example","bearer_token":"AAEC","ohttp_identity":"AAEC",'
    b'"ohttp_keys":"AAEC","ohttp_keys_signature":"x"}'
)
_DATE: Final = "Tue, 01 Dec 2026 12:00:00 GMT"


async def _nothing() -> tuple[bytes, bool]:
    return b"", False


def _run_json(octets: bytes) -> None:
    """Read a body for each endpoint that has JSON; terms, contact cards and problems too."""
    if not octets:
        return
    with suppress(MimiError):
        decode(_BODIES[octets[0] % len(_BODIES)], octets[1:])
    with suppress(ValueError, RecursionError):
        terms = HubTerms.read(json.loads(octets[1:]), _HUB)
        assert HubTerms.read(json.loads(json.dumps(terms.as_json())), _HUB) == terms
    with suppress(ValueError):
        Contact.from_json(octets[1:])
    str(Problem.from_json(None, octets[1:]))


def _json_seeds() -> Iterator[bytes]:
    for at, body in enumerate(_BODIES):
        if body.example:
            yield bytes([at]) + body.example.encode()
    for written in (_TERMS, _CARD, b'{"type":"urn:mimids:problem:wrong-epoch","status":409,"epoch":7}'):
        yield b"\0" + written


def _fields(octets: bytes) -> tuple[str, Mapping[str, str]]:
    """Read a head: a request line, then fields with names in lower case."""
    line, *rest = octets.decode("latin-1").split("\n")
    return line, {name.lower(): value for name, _, value in (each.partition(":") for each in rest)}


def _run_head(octets: bytes) -> None:
    """Read what is ours in the head of a request: path, query, Host, Prefer, Date and media type."""
    line, headers = _fields(octets)
    path, _, query = line.partition("?")
    request = HttpRequest("GET", path.encode("latin-1"), query.encode("latin-1"), headers, None, _nothing)
    with suppress(MimiError):
        _, values = _ROUTES.find(request)
        for name in values:
            _read_part(name, values)
    with suppress(MimiError):
        parameters.partition_in({"partition": query})
    wait = parameters.wait_seconds(headers, 60)
    assert wait is None or 0 <= wait <= 60
    without_parameters(headers.get("content-type", ""))
    date = read_date(headers.get("date", "").encode("latin-1"))
    assert date is None or read_date(write_date(date)) == date
    with suppress(ValueError):
        from_base64url(base64url(from_base64url(line)))


def _read_part(name: str, values: Mapping[str, str]) -> None:
    if name == "provider":
        parameters.provider_in(values)
    elif name == "group_id":
        parameters.group_id_in(values)
    else:
        parameters.number_in(values, name)


def _head_seeds() -> Iterator[bytes]:
    fields = f"\nhost:a.example:443\nprefer:respond-async, wait=5;x\ncontent-type:A/b; c\ndate:{_DATE}"
    for endpoint in _ENDPOINTS:
        if "{" in endpoint.path:
            yield (
                endpoint.path.replace("{provider}", "b.example").replace("{group_id}", "AAEC").encode()
                + fields.encode()
            )
    yield (f"/?partition={base64url(bytes(32))}" + fields).encode()
    yield b'/\nhost:[::1]:8\nprefer:wait="60"'


def _run_answer(octets: bytes) -> None:
    """Read another provider's answer: a status and fields, an empty line, and a body."""
    head, _, body = octets.partition(b"\n\n")
    line, headers = _fields(head)
    status = int(line) if line.isascii() and line.isdigit() and len(line) == 3 else 409
    error = error_from(status, headers, body, now_seconds=1.8e9)
    f"{error} {error.members}".encode()
    describes_us(status, headers, body)
    answer = relayed_answer(HttpAnswer(status, headers, body))
    assert answer.max_age_seconds >= 0
    revision = named_revision(headers)
    assert revision is None or 0 <= revision < 1 << 63


def _answer_seeds() -> Iterator[bytes]:
    for kind in every_error():
        members: dict[str, Any] = {"type": kind.problem_type(), "status": kind.status, "detail": "why", "n": [1.5, "x"]}
        head = f"{int(kind.status)}\ncontent-type:{PROBLEM_JSON}\nretry-after:5\ncache-control:max-age=7, no-store\n\n"
        yield head.encode() + json.dumps(members).encode()
    yield f"503\nretry-after:{_DATE}\nmimids-arrangement:7\n\n".encode()


TARGETS: Final = (
    Target(name="json", run=_run_json, seeds=_json_seeds, most=65536),
    Target(name="heads", run=_run_head, seeds=_head_seeds, most=16384),
    Target(name="answers", run=_run_answer, seeds=_answer_seeds, most=65536),
)
