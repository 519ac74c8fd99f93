"""The provider's signature keys: made when they are needed, sealed at rest, rotated with overlap, kept by a restore."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.departures.provider_keys import ensure, load, rotate
from mimids.ds.devices import accounts
from mimids.http.api.devices import DEVICES
from mimids.http.api.public import PUBLIC
from mimids.mls.signing_key import cipher_suites_of
from mimids.ohttp.at_rest import KeyUnavailable, OperatorKey
from mimids.store import provider_keys
from mimids.store.engine.access import Place, read_here, write_here
from mimids.testing.clock import MovableClock
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.messages import KEY_PACKAGES
from tests.support.chats import Chat, eventually_removals, senders_of
from tests.support.cli_runs import invoke, provider
from tests.support.curious import octets_of
from tests.support.federation import device, federated
from tests.support.inmemory import InMemory
from tests.support.mls_makers import NOW
from tests.support.provider import Assembled
from tests.support.rig import packages
from tests.support.signing import Client
from tests.support.stored import rows

OPERATOR = OperatorKey(bytes(range(32)))
T0 = Milliseconds(0)


async def asked(provider: Assembled, token: str | None = None) -> Any:
    """Return the keys in the directory or, with a device's token, in `me`."""
    if token is None:
        app, path, headers = provider.app(PUBLIC), "/.well-known/mimi-ds", {}
    else:
        app, path, headers = provider.app(DEVICES), "/client/v1/me", {"authorization": f"Bearer {token}"}
    answer = await InMemory(app).ask("GET", path, b"", headers)
    assert answer.status == 200, answer.body
    return answer.json()["external_senders"]


async def test_the_directory_and_me_list_a_key_for_each_scheme_in_use(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,):
        token = await a.add_device()
        assert await rows(a, "SELECT scheme FROM provider_keys") == []
        first = await asked(a)
        assert [(each["scheme"], each["cipher_suites"]) for each in first] == [
            ("Ed25519", list(cipher_suites_of("Ed25519")))
        ]
        assert first == await asked(a, token)
        await a.services.provider_keys.need(2, 2, 99)
        both = await asked(a, token)
        assert [each["scheme"] for each in both] == ["Ed25519", "P-256"]
        assert both[0] == first[0]
        await a.services.store.write(lambda tx: rotate(tx, None, T0, delete_others=False))
        a.services.provider_keys.forget()
        assert [each["scheme"] for each in await asked(a)] == ["Ed25519", "P-256"]
        assert not {each["signature_key"] for each in await asked(a)} & {each["signature_key"] for each in both}


async def test_an_upload_makes_the_key_of_its_scheme_and_records_signature_keys(tmp_path: Path) -> None:
    clock = MovableClock(stopped_at=NOW * 1000)
    async with federated(tmp_path, "a.example", jobs_of=(), clock=clock) as (a,):
        token = await a.add_device()
        headers = {"authorization": f"Bearer {token}", "content-type": "application/mimi-ds"}
        body = KEY_PACKAGES.encode(tuple(packages(device(a).user_id, 3)))
        for _ in range(2):
            answer = await InMemory(a.app(DEVICES)).ask("POST", "/client/v1/key-packages", body, headers)
            assert answer.status == 200, answer.body
        assert await rows(a, "SELECT count(*), max(device) FROM device_signature_keys") == [(1, 1)]
        assert await rows(a, "SELECT scheme FROM provider_keys") == [("Ed25519",)]


def test_private_keys_are_sealed_where_there_is_an_operator_key(tmp_path: Path) -> None:
    config = provider(tmp_path, "a.example")
    write_here(config.place, lambda tx: ensure(tx, ["Ed25519", "P-256"], None, T0))
    plain = write_here(config.place, lambda tx: load(tx, None))
    seeds = {row.scheme: row.private[1:] for row in stored(config.place)}
    assert seeds["Ed25519"] in octets_of(config.database)
    write_here(config.place, lambda tx: ensure(tx, [], OPERATOR, T0))
    for seed in seeds.values():
        assert seed not in octets_of(config.database)
    assert write_here(config.place, lambda tx: load(tx, OPERATOR)) == plain
    for key in (None, OperatorKey(bytes(32))):
        with pytest.raises(KeyUnavailable), read_here(config.place) as tx:
            load(tx, key)


def stored(place: Place) -> list[provider_keys.ProviderKeyRow]:
    with read_here(place) as tx:
        return provider_keys.all_keys(tx)


@pytest.mark.parametrize("delete_others", [True, False])
def test_a_rotated_key_signs_on_until_it_is_deleted(delete_others: bool, tmp_path: Path) -> None:
    config = provider(tmp_path, "a.example")
    write_here(config.place, lambda tx: ensure(tx, ["Ed25519", "P-256"], None, T0))
    before = {row.public for row in stored(config.place)}
    flag = ["--delete-others"] if delete_others else []
    made = json.loads(invoke(config, "signature-key", "rotate", "--scheme", "Ed25519", *flag, "--json").stdout)["keys"]
    assert [each["scheme"] for each in made] == ["Ed25519"]
    after = stored(config.place)
    assert [(row.scheme, row.retired_at is None) for row in after] == [
        ("Ed25519", True),
        *([] if delete_others else [("Ed25519", False)]),
        ("P-256", True),
    ]
    assert len(before & {row.public for row in after}) == 2 - delete_others
    listed = json.loads(invoke(config, "signature-key", "list", "--json").stdout)["keys"]
    assert len(listed) == len(after)
    assert listed[0]["cipher_suites"] == ", ".join(map(str, cipher_suites_of("Ed25519")))


def test_keys_of_the_schemes_in_use_are_rotated_and_no_others(tmp_path: Path) -> None:
    config = provider(tmp_path, "a.example")
    for scheme in (None, "P-256", None):
        rotated = partial(rotate, operator_key=None, now=T0, scheme=scheme, delete_others=False)
        made = [each for each, _ in write_here(config.place, rotated)]
        in_use = {row.scheme for row in stored(config.place)}
        assert made == ([scheme] if scheme else sorted(in_use))
        assert in_use <= {"Ed25519", "P-256"}


async def test_groups_that_list_a_retired_key_are_still_left(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=("departures",)) as (a,):
        await a.add_device("alice", "1")
        await a.add_device("carol", "3")
        clients = [Client.of(1, "alice@a.example"), Client.of(3, "carol@a.example")]
        chat = await Chat.create(a, device(a), clients, await senders_of(a))
        services = a.services
        old = await asked(a)
        await services.store.write(lambda tx: rotate(tx, None, T0, delete_others=False))
        await services.provider_keys.refresh()
        assert await asked(a) != old
        await services.store.write(lambda tx: accounts.remove_device(tx, a.config.provider, "carol", "3"))
        await eventually_removals(a, ("proposed", None))
        await chat.commit_pending()
        await eventually_removals(a)


@pytest.mark.sqlite_file("backups and restores are of files")
@pytest.mark.parametrize("replace", [True, False])
def test_a_restore_keeps_the_keys_and_searches_all_groups_again(replace: bool, tmp_path: Path) -> None:
    config = provider(tmp_path, "a.example")
    write_here(config.place, lambda tx: ensure(tx, ["Ed25519"], None, T0))
    old = stored(config.place)
    assert invoke(config, "user", "add", "alice").exit_code == 0
    assert invoke(config, "device", "add", "alice", "phone").exit_code == 0
    assert invoke(config, "backup", tmp_path / "copy").exit_code == 0
    assert invoke(config, "signature-key", "rotate").exit_code == 0
    assert invoke(config, "device", "remove", "alice", "phone").exit_code == 0
    newer = stored(config.place)
    if not replace:
        config.database.unlink()
    restored = invoke(config, "restore", *(["--replace"] if replace else []), tmp_path / "copy")
    assert restored.exit_code == 0, restored.stderr
    assert stored(config.place) == (newer if replace else old)
    with read_here(config.place) as tx:
        assert tx.all("SELECT next_group FROM removals") == ([(0,)] if replace else [])
    if not replace:
        assert invoke(config, "restored", "--revoke", "devices").exit_code == 0
        with read_here(config.place) as tx:
            assert tx.all("SELECT next_group FROM removals") == [(0,)]


async def test_old_signature_keys_of_a_device_make_room_for_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_keys, "KEYS_OF_A_DEVICE", 3)
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,):
        await a.add_device()
        keys = [bytes([number]) * 32 for number in range(5)]
        for key in keys:
            await a.services.store.write(
                partial(provider_keys.add_of_device, device=DeviceRow(1), signature_keys=[key])
            )
        kept = await a.services.store.read(
            lambda tx: provider_keys.in_use(tx, [provider_keys.key_digest(each) for each in keys])
        )
        assert kept == {provider_keys.key_digest(each) for each in keys[2:]}
