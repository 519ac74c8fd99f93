"""docs/ohttp.md is true: what travels sealed and what in the open, tried by a client written from it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from mimids.cli.demo.recording import Recording
from mimids.testing import Provider, Session, federation
from tests.support.plain_client import plain_client

client = plain_client()
A, B, C = "a.example", "b.example", "c.example"
CONFIG = {"key_packages": {"max_lifetime_days": 3660}}


@pytest.fixture(name="providers", scope="module")
def _providers(mimids_session: Session) -> Iterator[tuple[Provider, Provider]]:
    with federation(A, B, config=CONFIG, session=mimids_session) as (a, b):
        yield a, b


@pytest.fixture(name="alice")
def _alice(providers: tuple[Provider, Provider]) -> Iterator[Any]:
    a, _ = providers
    known = {each["user_id"] for each in a.command("user list")["users"]}
    account = a.add_device("alice", f"device{len(a.command('device list', user='alice')['devices']) if known else 0}")
    made = client.Api(account.url, account.token, account.ca_file, 20)
    yield made
    made.connection.close()


@pytest.fixture(name="card")
def _card(providers: tuple[Provider, Provider]) -> dict[str, Any]:
    """Return the contact card of a user without KeyPackages."""
    _, b = providers
    name = f"user{len(b.command('user list')['users'])}"
    b.add_user(name)
    card: dict[str, Any] = b.command("contact", user=name)
    return card


class Exchange:
    """A sealed request, and what came back for it."""

    def __init__(self, alice: Any, card: dict[str, Any], request: bytes) -> None:
        self.api, self.provider = alice, card["provider"]
        self.sealed = client.SealedRequest(
            client.key_configurations(alice, card), request, client.secrets.token_bytes(32)
        )

    def post(self, message: bytes | None = None) -> bytes:
        octets = self.sealed.message if message is None else message
        answer: bytes = self.api("POST", f"providers/{self.provider}/ohttp", octets, "message/ohttp-req")[1]
        return answer

    def open(self) -> tuple[int, dict[str, str], bytes]:
        opened: tuple[int, dict[str, str], bytes] = client.binary_response(self.sealed.open(self.post()))
        return opened


def request(
    card: dict[str, Any],
    *,
    path: str = "/key-packages",
    content: bytes | None = None,
    date: str | None = None,
    media_type: str = client.MIMI_DS,
) -> bytes:
    asked = client.key_package_request(card, 1) if content is None else content
    fields = {"content-type": media_type, "date": client.blurred_date() if date is None else date}
    message: bytes = client.binary_request(card["provider"], path, {k: v for k, v in fields.items() if v}, asked)
    return message


def code_of(content: bytes) -> str:
    return str(json.loads(content)["type"])


@pytest.mark.parametrize(
    ("changes", "status", "problem"),
    [
        ({}, 404, "urn:mimids:problem:key-packages-exhausted"),
        ({"content": b"\0\0\0\0"}, 400, "urn:mimids:problem:malformed"),
        ({"content": b"\4user\5token\0\1\0\1"}, 403, "urn:mimids:problem:key-package-refused"),
        ({"path": "/users"}, 404, "urn:mimids:problem:not-found"),
        ({"date": ""}, 400, "https://iana.org/assignments/http-problem-types#date"),
        ({"date": "Tue, 24 Nov 1998 10:00:00 GMT"}, 400, "https://iana.org/assignments/http-problem-types#date"),
    ],
)
def test_these_are_sealed(alice: Any, card: dict[str, Any], changes: dict[str, Any], status: int, problem: str) -> None:
    exchange = Exchange(alice, card, client.padded(request(card, **changes)))
    sealed = exchange.post()
    assert len(sealed) == 2048 + 32
    found, fields, content = client.binary_response(exchange.sealed.open(sealed))
    assert (found, code_of(content)) == (status, problem)
    assert fields["content-type"] == "application/problem+json"
    assert fields["cache-control"] == "no-store"
    assert abs(parsedate_to_datetime(fields["date"]).timestamp() - time.time()) < 60


def test_a_media_type_is_refused_inside_and_outside(alice: Any, card: dict[str, Any]) -> None:
    exchange = Exchange(alice, card, request(card, media_type="text/plain"))
    status, _, content = exchange.open()
    assert (status, code_of(content)) == (415, "urn:mimids:problem:unsupported-media-type")
    with pytest.raises(client.Problem, match="unsupported-media-type"):
        alice("POST", f"providers/{B}/ohttp", exchange.sealed.message, "text/plain")


def test_these_are_not_sealed(alice: Any, card: dict[str, Any]) -> None:
    exchange = Exchange(alice, card, request(card))
    message = exchange.sealed.message
    for changed, problem in [
        (bytes([message[0] ^ 0x80]) + message[1:], "https://iana.org/assignments/http-problem-types#ohttp-key"),
        (message[:-1], "urn:mimids:problem:ohttp-undecipherable"),
        (message[:20], "urn:mimids:problem:malformed"),
        (b"\0" * (1 << 20) + b"\0", "urn:mimids:problem:too-large"),
    ]:
        with pytest.raises(client.Problem) as refused:
            exchange.post(changed)
        assert refused.value.members["type"] == problem
    for provider, code in ((C, "provider-not-allowed"), ("no+domain", "not-found")):
        with pytest.raises(client.Problem, match=code):
            alice("POST", f"providers/{provider}/ohttp", message, "message/ohttp-req")


def test_the_same_octets_get_the_same_answer_and_anew_another_one(
    providers: tuple[Provider, Provider], alice: Any
) -> None:
    _, b = providers
    account = b.add_device("bob", "1")
    bob = client.Api(account.url, account.token, account.ca_file, 20)
    card = b.command("contact", user="bob")
    package = Recording().key_packages["bob"]
    assert bob.upload(package)["accepted"] == 1
    bob.connection.close()
    asked = client.key_package_request(card, 1)
    exchange = Exchange(
        alice, card, client.padded(request(card, path="/key-packages?bundle", content=client.vector(asked + asked)))
    )
    sealed = exchange.post()
    assert sealed == exchange.post()
    assert len(sealed) == 4096 + 32
    status, _, content = client.binary_response(exchange.sealed.open(sealed))
    assert (status, content) == (200, client.vector(b"\0" + package + b"\2"))
    anew, _, refused = Exchange(alice, card, request(card)).open()
    assert (anew, code_of(refused)) == (404, "urn:mimids:problem:key-packages-exhausted")
