"""The requests that the OHTTP gateway opened, and its sealed answers (wire: structures)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from typing import Final

import attrs

from mimids.ds.key_packages.claims import ClaimOutcome
from mimids.errors import Malformed, MethodNotAllowed, MimiError, NotFound, OhttpDate, TooMany, UnsupportedMediaType
from mimids.ohttp import bhttp
from mimids.ohttp.date import read_date
from mimids.ohttp.gateway import OpenedRequest
from mimids.ohttp.padding import pad_response
from mimids.values import Milliseconds
from mimids.wire.declare import decode, encode
from mimids.wire.messages import (
    KeyPackageBundleRequest,
    KeyPackageBundleResponse,
    KeyPackageRequest,
    KeyPackageResponse,
)

PATH: Final = "/key-packages"
MIMI_DS: Final = b"application/mimi-ds"
PROBLEM_JSON: Final = b"application/problem+json"


@attrs.frozen
class ParsedRequest:
    """A request for one KeyPackage, or for a bundle."""

    requests: tuple[KeyPackageRequest, ...]
    bundle: bool
    date: Milliseconds

    def content(self, outcomes: tuple[ClaimOutcome, ...]) -> bytes | MimiError:
        """Return the body of the answer; the refusal of a single request is the problem itself (wire: structures)."""
        if self.bundle:
            return encode(KeyPackageBundleResponse(tuple(outcome.result() for outcome in outcomes)))
        (outcome,) = outcomes
        if outcome.refusal is not None:
            return outcome.refusal
        if outcome.key_package is None:
            raise ValueError("the outcome has neither a KeyPackage nor a refusal")
        return encode(KeyPackageResponse(outcome.key_package))


class AnswerSealer:
    """Seals the answer to one request.

    Several answers to one request may be sealed: the writer may run the transaction again, or a disk failure may lead
    to another answer. Only one answer is sent. Each answer has its own nonce and so its own key (RFC 9458 section 4.4).
    """

    def __init__(self, open_: Callable[[], OpenedRequest], problem: Callable[[MimiError], bytes]) -> None:
        self._open = open_
        self._problem = problem
        self.opened = open_()
        self.results = 1  # the number for which the answer must have room
        self._used = False

    def ok(self, content: bytes, now: Milliseconds, nonce: bytes | None = None) -> bytes:
        """Return the sealed answer to a successful request; the `nonce` of an earlier answer gives the same octets."""
        return self._seal(200, ((b"content-type", MIMI_DS),), content, now, nonce)

    def nonce_of(self, sealed: bytes) -> bytes:
        """Return the nonce of an answer: its first octets (RFC 9458 section 4.4)."""
        return sealed[: self.opened.sealer.nonce_size]

    def refusal(self, error: Exception, now: Milliseconds) -> bytes:
        """Return the sealed problem document of an error."""
        refused = error if isinstance(error, MimiError) else Malformed(str(error))
        fields: list[bhttp.Field] = [(b"content-type", PROBLEM_JSON)]
        if (seconds := refused.members.get("retry_after")) is not None:
            fields.append((b"retry-after", str(seconds).encode()))
        return self._seal(refused.status.value, tuple(fields), self._problem(refused), now)

    def _seal(
        self, status: int, fields: bhttp.Fields, content: bytes, now: Milliseconds, nonce: bytes | None = None
    ) -> bytes:
        # The Date lets a client whose clock is wrong correct it (RFC 9458 section 6.5.2).
        common = ((b"date", _http_date(now // 1000)), (b"cache-control", b"no-store"))
        message = pad_response(bhttp.encode_answer(status, (*fields, *common), content), self.results)
        sealer = self._open().sealer if self._used else self.opened.sealer
        self._used = True
        return sealer.seal(message, nonce or secrets.token_bytes(sealer.nonce_size))


def parse(request: bhttp.Request, *, most_requests: int) -> ParsedRequest:
    """Return the requests for KeyPackages; raise a `MimiError` or `WireError`.

    The authority is ignored: the gateway forwards to no other provider.
    """
    is_bundle, date = _parse_head(request.method, request.path, request.fields)
    if not is_bundle:
        return ParsedRequest((decode(KeyPackageRequest, request.content),), False, date)
    requests = decode(KeyPackageBundleRequest, request.content).requests
    if len(requests) > most_requests:
        raise TooMany("bundle_max_requests", len(requests))
    return ParsedRequest(requests, True, date)


@lru_cache(maxsize=64)  # the requests of one minute have the same few heads
def _parse_head(method: str, path: str, fields: bhttp.Fields) -> tuple[bool, Milliseconds]:
    """Return whether the request is for a bundle, and its Date."""
    path, _, query = path.partition("?")
    if path != PATH:
        raise NotFound
    if method != "POST":
        raise MethodNotAllowed
    media_type = (bhttp.field_of(fields, b"content-type") or b"").partition(b";")[0].strip().lower()
    if media_type != MIMI_DS:
        raise UnsupportedMediaType
    seconds = read_date(bhttp.field_of(fields, b"date"))
    if seconds is None:
        raise OhttpDate
    return any(part.partition("=")[0] == "bundle" for part in query.split("&")), Milliseconds(seconds * 1000)


@lru_cache(maxsize=64)
def _http_date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()
