"""Requests that a hub has not answered yet, and what is recorded of those that it answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from mimids.ds.following.followed_groups import add_followed_group
from mimids.ds.following.intake import find_or_add_partition
from mimids.ds.following.pending_requests import (
    ANSWER_SECONDS,
    LeftGroups,
    PendingRequest,
    PendingRequests,
    forget_request,
    record_answer,
)
from mimids.store import providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.requested_partitions import Requested
from mimids.values import DeviceRow
from mimids.wire.ids import GroupId, ProviderId
from tests.support.doubles import stopped_clock
from tests.support.federation import Room
from tests.support.hub import running_hub

A, B = ProviderId("hub.example"), ProviderId("other.example")
PHONE, TABLET = DeviceRow(1), DeviceRow(2)
ROOM = Room(hub=A)
MASKS = ROOM.key.masks()


def test_a_device_has_left_a_group_since_the_requests_that_it_made_before() -> None:
    left, group, other = LeftGroups(), GroupId(b"group"), GroupId(b"other")
    left.note(PHONE, 1, group, 5)
    earlier, later = Requested(PHONE, False, 5), Requested(PHONE, False, 6)
    assert [left.has_left(each, 1, group) for each in (earlier, later)] == [True, False]
    assert [left.has_left_any(each) for each in (earlier, later)] == [True, False]
    assert not left.has_left(earlier, 1, other)
    assert not left.has_left(earlier, 2, group)
    assert not left.has_left_any(Requested(TABLET, False, 5))
    left.note(TABLET, 1, group, 3)
    assert left.highest == 5


def test_a_device_forgets_its_requests_to_one_hub_or_to_all() -> None:
    pending = PendingRequests()
    with (
        pending.waiting_for(A, MASKS, PHONE) as first,
        pending.waiting_for(B, MASKS, PHONE) as second,
        pending.waiting_for(A, MASKS, TABLET) as of_another,
    ):
        pending.forget_device(PHONE, hub=A)
        assert [each.forgotten for each in (first, second, of_another)] == [True, False, False]
        pending.forget_device(PHONE)
        assert [each.forgotten for each in (first, second, of_another)] == [True, True, False]


def test_a_partition_is_requested_until_every_request_for_it_is_answered() -> None:
    pending, other = PendingRequests(), Room.new_key().masks()
    with pending.waiting_for(A, MASKS, PHONE):
        with pending.waiting_for(A, MASKS, TABLET):
            assert pending.among(A, (*MASKS, *other)) == {*MASKS}
        assert pending.among(A, MASKS) == {*MASKS}
        assert pending.among(B, MASKS) == set()
    assert pending.among(A, MASKS) == set()


async def test_a_push_waits_for_the_answers_but_not_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    pending = PendingRequests()

    async def answer_after(seconds: float) -> None:
        with pending.waiting_for(A, MASKS, PHONE):
            await trio.sleep(seconds)

    for seconds in (0.5, ANSWER_SECONDS + 1):
        async with trio.open_nursery() as answering:
            answering.start_soon(answer_after, seconds)
            await trio.testing.wait_all_tasks_blocked()
            began_at = trio.current_time()
            await pending.wait_for_answers(B, MASKS)
            assert trio.current_time() == began_at
            await pending.wait_for_answers(A, MASKS[:1])
            assert trio.current_time() - began_at == min(seconds, ANSWER_SECONDS)


# --- what is recorded ---------------------------------------------------------------------------------------------


@attrs.define
class Counted:
    """A store that counts writes."""

    store: Store
    writes: int = 0

    async def read(self, work: Callable[[Tx], Any]) -> Any:
        return await self.store.read(work)

    async def write(self, work: Callable[[Tx], Any]) -> Any:
        self.writes += 1
        return await self.store.write(work)


@attrs.define
class Recording:
    counted: Counted
    left: LeftGroups = attrs.field(factory=LeftGroups)

    async def answered(self, device: DeviceRow = PHONE, *, linear: bool = False, forgotten: bool = False) -> None:
        request, store = PendingRequest(device, forgotten=forgotten), self.counted
        running: Any = store
        await record_answer(running, stopped_clock(), self.left, A, MASKS, request, linear=linear)

    async def forget(self) -> None:
        running: Any = self.counted
        await forget_request(running, A, MASKS)

    async def requested(self) -> list[tuple[int, int]]:
        return list(await self.counted.read(lambda tx: tx.all("SELECT device, linear FROM requested_partitions")))

    async def present(self) -> list[tuple[int]]:
        sql = "SELECT device FROM participations WHERE left_at IS NULL ORDER BY device"
        return list(await self.counted.read(lambda tx: tx.all(sql)))

    async def store_partition(self) -> None:
        """Store the partition that was requested, as a push of it does."""

        def add(tx: Tx) -> None:
            now = stopped_clock().now()
            group = add_followed_group(tx, providers.ensure_provider(tx, A), ROOM.group_id, now)
            find_or_add_partition(tx, group, MASKS[0], now)

        await self.counted.store.write(add)


async def test_the_newest_answer_for_an_unknown_partition_is_recorded_once(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        each = Recording(Counted(hub._store))
        for device, linear, writes in (
            (PHONE, False, 1),
            (PHONE, False, 1),
            (PHONE, True, 2),
            (TABLET, True, 3),
            (TABLET, True, 3),
        ):
            await each.answered(device, linear=linear)
            assert each.counted.writes == writes
            assert await each.requested() == [(device, int(linear))]


async def test_an_answer_after_the_device_left_is_recorded_anew_and_a_forgotten_one_is_not(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        each = Recording(Counted(hub._store))
        await each.answered(forgotten=True)
        assert await each.requested() == []
        await each.answered()
        (before,) = await hub._store.read(lambda tx: tx.all("SELECT id FROM requested_partitions"))
        each.left.note(PHONE, 1, ROOM.group_id, before[0])
        await each.answered()
        (after,) = await hub._store.read(lambda tx: tx.all("SELECT id FROM requested_partitions"))
        assert after > before


@pytest.mark.parametrize("linear", [False, True])
async def test_an_answer_for_a_known_partition_makes_the_device_take_part(linear: bool, tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        each = Recording(Counted(hub._store))
        await each.store_partition()
        for _ in range(2):
            await each.answered(linear=linear)
            assert (await each.present(), each.counted.writes) == ([(PHONE,)], 1)
        assert await hub._store.read(lambda tx: tx.all("SELECT linear FROM groups")) == [(int(linear),)]
        await each.answered(linear=True)
        assert await hub._store.read(lambda tx: tx.all("SELECT linear FROM groups")) == [(1,)]
        await each.answered(TABLET, linear=True)
        assert await each.present() == [(PHONE,), (TABLET,)]
        assert await each.requested() == []


async def test_a_request_that_the_hub_refused_is_forgotten(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        each = Recording(Counted(hub._store))
        await each.forget()
        assert each.counted.writes == 0
        await each.answered()
        await each.forget()
        assert (await each.requested(), each.counted.writes) == ([], 2)
