from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from mimids.ds.key_packages import gateway_keys
from mimids.ds.key_packages.contact_card import ContactCard
from mimids.ds.key_packages.gateway_keys import (
    ROTATIONS,
    OhttpKeys,
    ensure_identity,
    identity_public,
    load,
    renew,
    rotate,
)
from mimids.errors import Busy, OhttpKey
from mimids.ohttp import bhttp
from mimids.ohttp.at_rest import KeyUnavailable, OperatorKey
from mimids.ohttp.keyring import KEY_IDS
from mimids.ohttp.keys_signature import KeysExpired, KeysWronglySigned, verify
from mimids.store import ohttp
from mimids.store.engine.access import read_here
from mimids.store.engine.transaction import Tx
from mimids.wire.declare import encode
from mimids.wire.ids import BearerToken, UserId
from tests.support.doubles import stopped_clock
from tests.support.mls_makers import DAY, NOW
from tests.support.patience import patience
from tests.support.rig import PROVIDER, SCHEDULE, Rig, ask, running
from tests.support.store_faults import Disk

OPERATOR = OperatorKey(bytes(range(32)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


async def public(rig: Rig) -> bytes:
    found = await rig.store.read(identity_public)
    assert found is not None
    return found


async def minutes_until(rig: Rig, holds: Callable[[], bool]) -> None:
    """Move the clock on until the job has seen to it."""
    with patience():
        while not holds():
            rig.clock.advance(60)
            await trio.sleep(0.01)  # the store's threads take real time


async def test_a_full_disk_delays_the_rotation_and_the_job_goes_on(path: Path) -> None:
    async with running(path) as rig:
        disk, before = Disk(rig.store), set(rig.keys.live())
        disk.full = True
        rig.clock.advance(40 * DAY)
        await minutes_until(rig, lambda: disk.refused > 3)
        with pytest.raises(Busy):
            rig.keys.served()  # the only key has outlived itself
        disk.full = False
        await minutes_until(rig, lambda: set(rig.keys.live()) != before)


async def test_a_request_under_a_key_that_another_process_made_is_answered_with_the_same_octets(path: Path) -> None:
    async with running(path) as rig, running(path) as other:
        token = await rig.stocked(2)
        await rig.store.write(lambda tx: rotate(tx, SCHEDULE, None, NOW))
        await rig.keys.refresh()
        message, opener = rig.encapsulate(encode(ask(token)))
        assert message[0] not in other.keys.live()
        sealed = await other.gateway.answer(message)
        assert bhttp.decode_response(opener.open(sealed)).status == 200
        assert await rig.gateway.answer(message) == sealed
        assert await rig.left() == 1


async def test_requests_under_unknown_keys_cost_one_read_a_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_keys, "LOOK_SECONDS", 0.5)
    async with running(path) as rig:
        reads = rig.store.statistics().reads

        async def ask_under_unknown_key(number: int) -> None:
            with pytest.raises(OhttpKey):
                await rig.gateway.answer(b"\xee" + bytes([number]) * 100)

        async with trio.open_nursery() as asking:
            for number in range(20):
                asking.start_soon(ask_under_unknown_key, number)
        assert rig.store.statistics().reads <= reads + 2


async def test_requests_under_unknown_keys_one_after_the_other_wait_between_two_reads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_keys, "LOOK_SECONDS", 0.2)
    async with running(path) as rig:
        began_at = trio.current_time()
        for number in range(3):
            with pytest.raises(OhttpKey):
                await rig.gateway.answer(b"\xee" + bytes([number]) * 100)
        assert trio.current_time() - began_at >= 0.4


async def test_a_new_key_is_found_though_the_store_was_read_for_an_unknown_key_a_moment_ago(path: Path) -> None:
    async with running(path) as rig, running(path) as other:
        token = await rig.stocked(1)
        with pytest.raises(OhttpKey):
            await other.gateway.answer(b"\xee" + bytes(100))
        await rig.store.write(lambda tx: rotate(tx, SCHEDULE, None, NOW))
        await rig.keys.refresh()
        message, opener = rig.encapsulate(encode(ask(token)))
        sealed = await other.gateway.answer(message)
        assert bhttp.decode_response(opener.open(sealed)).status == 200


async def test_a_key_is_stored_minutes_before_it_is_served(path: Path) -> None:
    async with running(path) as rig, running(path) as other:
        first = rig.keys.served().body
        rig.clock.advance(30 * DAY - 290)
        other.clock.advance(30 * DAY - 290)
        await rig.keys.refresh()
        await other.keys.refresh()
        assert len(rig.keys.live()) == 2
        assert rig.keys.live() == other.keys.live()
        assert rig.keys.served().body == first
        rig.clock.advance(290)
        assert rig.keys.served().body != first


async def test_what_is_served_is_authentic_and_held_no_longer_than_it_lives(path: Path) -> None:
    async with running(path) as rig:
        identity = await public(rig)
        served, now = rig.keys.served(), NOW
        for _ in range(80):
            served, now = rig.keys.served(), rig.clock.now() // 1000
            assert verify(PROVIDER, served.body, served.signature, identity, now)
            assert 0 < served.max_age <= DAY
            # Whoever cached it may use it until then, and is answered.
            key_id = served.body[2]
            rig.clock.advance(served.max_age)
            await rig.keys.refresh()
            assert key_id in rig.keys.live()
            rig.clock.advance(DAY / 2 - served.max_age if served.max_age < DAY / 2 else 0)
        with pytest.raises(KeysExpired):
            verify(PROVIDER, served.body, served.signature, identity, now + 60 * DAY)
        with pytest.raises(KeysWronglySigned):
            verify(PROVIDER, served.body, served.signature, bytes(32), now)


async def test_keys_and_identity_survive_a_restart(path: Path) -> None:
    clock = stopped_clock(NOW)
    async with running(path, clock) as rig:
        before, identity, live = rig.keys.served(), await public(rig), rig.keys.live()
    async with running(path, clock) as rig:
        assert rig.keys.served() == before
        assert await public(rig) == identity
        assert rig.keys.live() == live


async def test_the_job_rotates_in_time_and_deletes_what_outlived_itself(path: Path) -> None:
    async with running(path) as rig:
        first = rig.keys.served().body
        rig.clock.advance(30 * DAY - 600)
        await rig.keys.refresh()
        assert rig.keys.served().body == first
        await minutes_until(rig, lambda: rig.keys.served().body != first)
        assert len(rig.keys.live()) == 2
        rig.clock.advance(7 * DAY)
        await minutes_until(rig, lambda: len(rig.keys.live()) == 1)
        await rig.keys.refresh()
        assert len(await rig.store.read(ohttp.keys)) == 1


async def test_a_key_that_a_command_made_is_taken_up_within_a_minute(path: Path) -> None:
    async with running(path) as rig:
        first = rig.keys.served().body
        await rig.store.write(lambda tx: rotate(tx, SCHEDULE, None, rig.clock.now() // 1000))
        await minutes_until(rig, lambda: rig.keys.served().body != first)
        assert len(rig.keys.live()) == 2


async def test_after_a_restore_only_the_new_key_opens_anything(path: Path) -> None:
    async with running(path) as rig:
        (old,) = rig.keys.live()
        key_id = await rig.store.write(lambda tx: rotate(tx, SCHEDULE, None, NOW, retire_others=True))
        await rig.keys.refresh()
        assert list(rig.keys.live()) == [key_id] != [old]


async def test_without_the_newer_database_a_restore_skips_more_identifiers_than_were_used_since(path: Path) -> None:
    async with running(path) as rig:
        steps = set()
        for _ in range(20):
            (old,) = rig.keys.live()
            new = await rig.store.write(lambda tx: renew(tx, SCHEDULE, None, NOW))
            await rig.keys.refresh()
            assert list(rig.keys.live()) == [new]
            steps.add((new - old) % KEY_IDS)
        assert ROTATIONS < min(steps) <= max(steps) <= ROTATIONS + KEY_IDS // 2
        assert len(steps) > 1, "two restores of one backup choose different ones"


@pytest.mark.parametrize("has_key", [True, False])
async def test_with_the_newer_database_the_identifier_after_its_newest_is_the_next(path: Path, has_key: bool) -> None:
    async with running(path) as rig, running(path.with_name("newer.sqlite")) as newer:
        made = [await newer.store.write(lambda tx: rotate(tx, SCHEDULE, None, NOW)) for _ in range(3)]
        if not has_key:
            await rig.store.write(lambda tx: tx.execute("DELETE FROM ohttp_keys"))

        def renew_after(tx: Tx) -> int:
            with read_here(newer.path) as there:
                return renew(tx, SCHEDULE, None, NOW, newer=there)

        assert await rig.store.write(renew_after) == made[-1] + 1


async def test_without_a_key_that_lives_there_is_nothing_to_serve(path: Path) -> None:
    async with running(path) as rig:
        keys = OhttpKeys(rig.store, rig.clock, PROVIDER, SCHEDULE, None)
        assert keys.live() == {}
        with pytest.raises(Busy):
            keys.served()


async def test_with_an_operator_key_nothing_lies_in_the_clear_and_without_it_nothing_opens(path: Path) -> None:
    async with running(path) as rig:
        plain = next(iter(rig.keys.live().values())).reveal()
        identity = (await rig.store.write(lambda tx: ensure_identity(tx, None))).reveal()
        keys = OhttpKeys(rig.store, rig.clock, PROVIDER, SCHEDULE, OPERATOR)
        await rig.jobs.start(keys.run)
        assert keys.served() == rig.keys.served()
        stored = await rig.store.read(lambda tx: tx.all("SELECT private_key FROM ohttp_keys"))
        settings = await rig.store.read(lambda tx: tx.all("SELECT value FROM settings"))
        assert not [value for (value,) in stored + settings if plain in value or identity in value]
        for wrong in (None, OperatorKey(bytes(32))):
            with pytest.raises(KeyUnavailable):
                await rig.store.read(partial(load, schedule=SCHEDULE, operator_key=wrong))
            with pytest.raises(KeyUnavailable):
                await rig.store.write(partial(ensure_identity, operator_key=wrong))
        again = OhttpKeys(rig.store, rig.clock, PROVIDER, SCHEDULE, OPERATOR)
        await rig.jobs.start(again.run)
        assert again.served() == keys.served()


async def test_a_contact_card_has_the_identity_and_no_key(path: Path) -> None:
    async with running(path) as rig:
        user, token = UserId(b"mimi://b.example/u/bob"), BearerToken(b"token")
        card = ContactCard(user, PROVIDER, token, await public(rig)).as_json()
        assert set(card) == {"user_id", "provider", "bearer_token", "ohttp_identity"}
        assert urlsafe_b64decode(card["ohttp_identity"] + "==") == await public(rig)
        assert urlsafe_b64decode(card["bearer_token"] + "==") == b"token"
