"""Fetching KeyPackages: which gateway keys a device accepts, and how it corrects its key and its clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from mimids.client import Contact, Problem, SignedKeys
from mimids.client.connection import Reply
from mimids.client.ohttp import WrongDate
from mimids.ohttp.config import encode_keys, key_config
from mimids.ohttp.hpke import PrivateKey
from mimids.ohttp.keys_signature import (
    APART_SECONDS,
    Identity,
    KeysExpired,
    KeysRefused,
    KeysWronglySigned,
    sign,
)
from mimids.wire.ids import BearerToken
from mimids.wire.messages import KeyPackageStatus
from tests.support.client_gateway import IDENTITY, NOW, PACKAGE, SUITE, B, Gateway, contact, device, hand_out, refuse


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
    card, ours = contact(gateway), device(gateway)
    await ours.fetch_key_package(card, SUITE)
    gateway.paths.clear()
    gateway.private, gateway.not_after = PrivateKey(bytes([1]) * 32), gateway.not_after + APART_SECONDS
    assert await ours.fetch_key_package(card, SUITE) == PACKAGE
    assert [path.rpartition("/")[2] for path in gateway.paths] == ["ohttp", "ohttp-keys", "ohttp"]
    gateway.paths.clear()
    honest, gateway.private = gateway.keys(), PrivateKey(bytes([2]) * 32)
    gateway.keys = lambda: honest  # type: ignore[method-assign]  # it still serves a key that it no longer has
    with pytest.raises(Problem) as refused:
        await ours.fetch_key_package(card, SUITE)
    assert refused.value.code == "ohttp-key"
    assert gateway.paths.count("providers/b.example/ohttp") == 2


async def test_many_contacts_are_asked_for_in_bundles_that_keep_users_together() -> None:
    gateway = Gateway()
    bundles: list[int] = []
    answered = gateway.exchange

    async def counting(method: str, path: str, body: bytes | None = None, **more: Any) -> Reply:
        before = len(gateway.asked)
        reply = await answered(method, path, body, **more)
        bundles.extend([len(gateway.asked) - before] if path.endswith("/ohttp") else [])
        return reply

    gateway.exchange = counting  # type: ignore[method-assign]
    names = [f"user{number % 40}" for number in range(100)] + ["many"] * 70
    contacts = [contact(gateway, name) for name in names]
    results = await device(gateway).fetch_key_packages(contacts, SUITE)
    assert len(results) == len(contacts)
    assert max(bundles) <= 64
    assert sum(bundles) == 170
    starts = [sum(bundles[:at]) for at in range(len(bundles))]
    for name in {f"user{number}" for number in range(40)}:
        places = [at for at, each in enumerate(gateway.asked) if each.user_id.endswith(f"/{name}".encode())]
        assert len({max(start for start in starts if start <= place) for place in places}) == 1, name


async def test_results_are_in_the_order_of_the_contacts() -> None:
    gateway = Gateway(
        answer=lambda request: (
            refuse(request) if request.user_id.startswith(b"mimi://b.example/u/no") else hand_out(request)
        )
    )
    contacts = [contact(gateway, f"{'no' if number % 3 else 'yes'}{number % 7}") for number in range(150)]
    results = await device(gateway).fetch_key_packages(contacts, SUITE)
    assert [each.status == KeyPackageStatus.OK for each in results] == [number % 3 == 0 for number in range(150)]


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
    assert read.bearer_token == BearerToken(b"t")
    assert read == Contact.from_json(card()), "keys on a card are ignored"


@pytest.mark.parametrize(
    "wrong",
    [
        "[]",
        "{}",
        "no JSON",
        card(provider="B.EXAMPLE"),
        card(bearer_token=7),
        card(user_id="mimi://b.example/u/%62ob"),
        "[" * 9**6,
    ],
)
def test_an_invalid_card_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Contact.from_json(wrong)


def test_keys_that_cannot_be_used_are_refused() -> None:
    gateway = Gateway()
    config = attrs.evolve(key_config(1, gateway.private), algorithms=((9, 9),))
    body = encode_keys((config,))
    with pytest.raises(KeysRefused):
        contact(gateway).key_config(SignedKeys(body, sign(B, body, NOW + 9, IDENTITY)), NOW)
