"""Fetching KeyPackages: which gateway keys a device accepts, and how it corrects its key and its clock."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, cast

import attrs
import pytest

from mimids.client import Contact, Device, Problem, SignedKeys
from mimids.client.connection import Connection, Reply
from mimids.client.ohttp import WrongDate
from mimids.ohttp import bhttp
from mimids.ohttp.config import encode_keys, key_config
from mimids.ohttp.date import read_date, write_date
from mimids.ohttp.gateway import open_request, read_request
from mimids.ohttp.hpke import PrivateKey
from mimids.ohttp.keys_signature import HEADER, Identity, KeysExpired, KeysRefused, KeysWronglySigned, sign
from mimids.wire.declare import decode, encode
from mimids.wire.ids import BearerToken, CipherSuite, ProviderId, UserId
from mimids.wire.messages import (
    EncodedKeyPackage,
    KeyPackageBundleRequest,
    KeyPackageBundleResponse,
    KeyPackageRequest,
    KeyPackageResult,
    KeyPackageStatus,
)
from tests.vectors import load_lines

B = ProviderId("b.example")
SUITE = CipherSuite(1)
NOW = 1_900_000_000
PACKAGE = EncodedKeyPackage(bytes.fromhex(load_lines("conversations/public.jsonl")[1]["bytes"])[4:])
IDENTITY = Identity(bytes(range(32)))
GONE = {"type": "https://iana.org/assignments/http-problem-types#ohttp-key", "status": 422, "title": "key"}

Answer = Callable[[KeyPackageRequest], KeyPackageResult]


def refuse(_: KeyPackageRequest) -> KeyPackageResult:
    return KeyPackageResult(KeyPackageStatus.REFUSED, None)


def hand_out(_: KeyPackageRequest) -> KeyPackageResult:
    return KeyPackageResult(KeyPackageStatus.OK, PACKAGE)


@attrs.define(slots=False)
class Gateway:
    """b.example behind a relay, in place of a device's connection."""

    answer: Answer = hand_out
    now: int = NOW
    private: PrivateKey = attrs.field(factory=lambda: PrivateKey(bytes(32)))
    signer: Identity = IDENTITY
    not_after: int = NOW + 3600
    tells_time: bool = True
    asked: list[KeyPackageRequest] = attrs.field(factory=list)
    paths: list[str] = attrs.field(factory=list)

    def keys(self) -> SignedKeys:
        body = encode_keys((key_config(1, self.private),))
        return SignedKeys(body, sign(B, body, self.not_after, self.signer))

    async def exchange(self, method: str, path: str, body: bytes | None = None, **more: Any) -> Reply:
        self.paths.append(path)
        if path == f"providers/{B}/ohttp-keys":
            keys = self.keys()
            return Reply(200, {HEADER: keys.signature}, keys.body)
        assert (method, path) == ("POST", f"providers/{B}/ohttp")
        assert body is not None
        try:
            opened = open_request(body, {1: self.private})
        except Exception:
            assert 422 in more["expected"]
            return Reply(422, {}, json.dumps(GONE).encode())
        inner = read_request(opened)
        assert (inner.method, inner.path) == ("POST", "/key-packages?bundle")
        date = read_date(inner.field(b"date"))
        if date is None or abs(date - self.now) > 300:
            fields = ((b"date", write_date(self.now)),) if self.tells_time else ()
            problem = {"type": "https://iana.org/assignments/http-problem-types#date"}
            response = bhttp.Response(400, fields, json.dumps(problem).encode())
        else:
            requests = decode(KeyPackageBundleRequest, inner.content).requests
            self.asked += requests
            results = tuple(map(self.answer, requests))
            response = bhttp.Response(200, (), encode(KeyPackageBundleResponse(results)))
        sealed = opened.sealer.seal(bhttp.encode_response(response), secrets.token_bytes(opened.sealer.nonce_size))
        return Reply(200, {}, sealed)


def contact(gateway: Gateway, user: str = "bob", *, keys: SignedKeys | None = None) -> Contact:
    return Contact(UserId(f"mimi://b.example/u/{user}".encode()), B, BearerToken(b"t"), gateway.signer.public, keys)


def device(gateway: Gateway, *, clock: int = NOW) -> Device:
    return Device(cast("Connection", gateway), clock=lambda: clock)


async def test_the_keys_on_a_card_save_a_request() -> None:
    gateway = Gateway()
    card = contact(gateway, keys=gateway.keys())
    assert await device(gateway).fetch_key_package(card, SUITE) == PACKAGE
    assert gateway.paths == ["providers/b.example/ohttp"]


async def test_keys_are_fetched_once_and_used_again() -> None:
    gateway, ours = Gateway(), None
    ours = device(gateway)
    for _ in range(2):
        assert await ours.fetch_key_package(contact(gateway), SUITE) == PACKAGE
    assert [path.rpartition("/")[2] for path in gateway.paths] == ["ohttp-keys", "ohttp", "ohttp"]


async def test_keys_replaced_by_the_relay_are_refused_and_nothing_is_sent() -> None:
    gateway = Gateway()
    card = contact(gateway)
    gateway.signer = Identity(bytes(32))
    with pytest.raises(KeysWronglySigned):
        await device(gateway).fetch_key_package(card, SUITE)
    gateway.signer, gateway.not_after = IDENTITY, NOW - 1
    with pytest.raises(KeysExpired):
        await device(gateway).fetch_key_package(card, SUITE)
    assert gateway.asked == []
    assert "providers/b.example/ohttp" not in gateway.paths


async def test_after_a_key_is_gone_the_new_one_is_fetched_once() -> None:
    gateway = Gateway()
    card = contact(gateway, keys=gateway.keys())
    gateway.private = PrivateKey(bytes([1]) * 32)
    ours = device(gateway)
    assert await ours.fetch_key_package(card, SUITE) == PACKAGE
    assert [path.rpartition("/")[2] for path in gateway.paths] == ["ohttp", "ohttp-keys", "ohttp"]
    gateway.paths.clear()
    honest, gateway.private = gateway.keys(), PrivateKey(bytes([2]) * 32)
    gateway.keys = lambda: honest  # type: ignore[method-assign]  # it still serves a key that it no longer has
    with pytest.raises(Problem) as refused:
        await ours.fetch_key_package(card, SUITE)
    assert refused.value.code == "ohttp-key"
    assert gateway.paths.count("providers/b.example/ohttp") == 2


async def test_a_wrong_clock_is_corrected_by_the_gateway() -> None:
    gateway = Gateway(now=NOW + 1000)
    assert await device(gateway).fetch_key_package(contact(gateway), SUITE) == PACKAGE
    gateway.tells_time = False
    with pytest.raises(WrongDate):
        await device(gateway).fetch_key_package(contact(gateway), SUITE)


async def test_results_come_in_the_order_of_contacts_and_refusals_have_a_code() -> None:
    gateway = Gateway(answer=lambda request: hand_out(request) if request.user_id.endswith(b"bob") else refuse(request))
    cards = [contact(gateway, user) for user in ("carol", "bob", "bob")]
    results = await device(gateway).fetch_key_packages(cards, SUITE)
    assert [result.key_package for result in results] == [None, PACKAGE, PACKAGE]
    assert gateway.paths.count("providers/b.example/ohttp") == 1, "one sealed request for each provider"
    with pytest.raises(Problem) as refused:
        await device(gateway).fetch_key_package(cards[0], SUITE)
    assert refused.value.code == "key-package-refused"


def card(**more: Any) -> Mapping[str, Any]:
    plain = {"user_id": "mimi://b.example/u/bob", "provider": "b.example", "bearer_token": "dA", "ohttp_identity": "aQ"}
    return plain | more


def test_a_card_is_read_as_the_command_prints_it() -> None:
    read = Contact.from_json(json.dumps(card(ohttp_keys="a2V5cw", ohttp_keys_signature="s")))
    assert read.keys == SignedKeys(b"keys", "s")
    assert read.bearer_token == BearerToken(b"t")
    assert Contact.from_json(card()).keys is None


@pytest.mark.parametrize("wrong", ["[]", "{}", "no JSON", card(provider="B.EXAMPLE"), card(bearer_token=7)])
def test_an_invalid_card_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Contact.from_json(wrong)


def test_keys_that_cannot_be_used_are_refused() -> None:
    gateway = Gateway()
    config = attrs.evolve(key_config(1, gateway.private), algorithms=((9, 9),))
    body = encode_keys((config,))
    with pytest.raises(KeysRefused):
        contact(gateway).key_config(SignedKeys(body, sign(B, body, NOW + 9, IDENTITY)), NOW)
