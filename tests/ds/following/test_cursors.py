"""The positions of devices: which are kept, and when they are stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import attrs
import pytest
import trio

from mimids.ds.following import cursors as module
from mimids.ds.following.cursors import Cursors
from mimids.errors import CounterAhead, MimiError, StorageUnavailable, UnknownPartition
from mimids.store.engine.locks import Locks
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Ahead, Tx
from mimids.testing.clock import MovableClock
from mimids.values import Device, DeviceRow
from mimids.wire.ids import Counter, PartitionKey, ProviderId
from mimids.wire.messages import ReceiveRequest
from tests.support.doubles import stopped_clock
from tests.support.federation import Room
from tests.support.hub import ALICE, A, running_hub

T = TypeVar("T")
B = ProviderId("b.example")
KEY = PartitionKey(bytes(PartitionKey.SIZE))
TABLET = Device(A, ALICE.user_id, DeviceRow(2), "2")
MESSAGES = 10


class FullStore(Store):
    """A store whose disk is full until it is told otherwise; `before_write` is called at each write."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.full = False
        self.writes = 0
        self.before_write: Callable[[], None] = lambda: None

    async def read(self, work: Callable[[Tx], T]) -> T:
        return await self._store.read(work)

    async def write(self, work: Callable[[Tx], T], *, locks: Locks | None = None, ahead: Ahead | None = None) -> T:
        self.before_write()
        if self.full:
            raise StorageUnavailable
        self.writes += 1
        return await self._store.write(work, locks=locks, ahead=ahead)


@attrs.define
class Kept:
    """The cursors of two devices, and partitions of ten messages each at our hub."""

    store: FullStore
    clock: MovableClock
    cursors: Cursors
    keys: list[PartitionKey]
    woken: list[bool]

    def note(self, counter: int, *, at: int = 0, device: Device = ALICE, went_back: bool = False) -> None:
        request = ReceiveRequest(self.keys[at], Counter(counter))
        self.cursors.note(device, A, request, went_back=went_back)

    async def stored(self, *, device: Device = ALICE) -> list[int | None]:
        """Return the stored position of a device in each partition."""
        sql = "SELECT c.next_counter FROM device_cursors c JOIN partitions p ON p.id = c.partition"
        sql += " WHERE c.device = ? AND p.masked_key = ?"
        found = await self.store.read(lambda tx: [tx.one(sql, (device.row, key.mask(32))) for key in self.keys])
        return [None if row is None else row[0] for row in found]

    async def saved(self) -> int | None:
        """Save all positions; return the one in the first partition."""
        await self.cursors.save()
        return (await self.stored())[0]


@asynccontextmanager
async def keeping(
    directory: Path, *, partitions: int = 1, watched: tuple[Device, ...] = (), shared: bool = False
) -> AsyncIterator[Kept]:
    async with running_hub(directory) as hub:
        await hub._store.write(_add_devices)
        room = Room()
        await hub.create_group(room.creation(), ALICE)
        keys = [room.key, *(room.new_key() for _ in range(partitions - 1))]
        for key in keys:
            await hub.send_batch([room.send(f"{n}", key) for n in range(MESSAGES)], ALICE)
        store, clock, woken = FullStore(hub._store), stopped_clock(), list[bool]()
        rows = {device.row for device in watched}
        cursors = Cursors(store, clock, rows.__contains__, lambda: woken.append(True), shared=shared)
        yield Kept(store, clock, cursors, keys, woken)


def _add_devices(tx: Tx) -> None:
    tx.execute("INSERT INTO users (id, user_id, created_at) VALUES (1, ?, 0)", (ALICE.user_id,))
    for device in (ALICE, TABLET):
        tx.execute(
            "INSERT INTO devices (id, owner, name, token_digest, created_at) VALUES (?1, 1, ?2, ?3, 0)",
            (device.row, device.name, bytes([device.row]) * 32),
        )


# --- which position is kept ---------------------------------------------------------------------------------------


async def test_a_position_is_kept_once_its_request_was_served_and_not_if_it_was_refused(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        with kept.cursors.reading(ALICE, A, ReceiveRequest(kept.keys[0], Counter(3))):
            assert await kept.saved() is None
        assert await kept.saved() == 3
        with pytest.raises(UnknownPartition), kept.cursors.reading(ALICE, A, ReceiveRequest(kept.keys[0], Counter(5))):
            raise UnknownPartition
        assert await kept.saved() == 3


@pytest.mark.parametrize(
    ("refusal", "found"),
    [
        (CounterAhead(2), 2),
        (CounterAhead(0), 0),
        (CounterAhead(7), 3),  # it names no earlier counter than the request
        (CounterAhead(-1), 3),
        (UnknownPartition(), 3),
    ],
    ids=repr,
)
async def test_a_device_that_is_ahead_of_its_hub_starts_again_where_the_hub_says(
    refusal: MimiError, found: int, tmp_path: Path
) -> None:
    async with keeping(tmp_path, shared=True) as kept:
        kept.note(3)
        assert await kept.saved() == 3
        with pytest.raises(type(refusal)), kept.cursors.reading(ALICE, A, ReceiveRequest(kept.keys[0], Counter(7))):
            raise refusal
        assert await kept.saved() == found


async def test_the_request_that_was_made_last_counts_whichever_ends_last(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        with kept.cursors.reading(ALICE, A, ReceiveRequest(kept.keys[0], Counter(3))):
            kept.clock.advance(1)
            kept.note(7)
        assert await kept.saved() == 7
        kept.note(4)
        kept.note(5)
        kept.note(2)  # of the same moment
        assert await kept.saved() == 2


async def test_of_several_processes_only_the_one_that_saw_a_device_go_back_stores_a_lower_position(
    tmp_path: Path,
) -> None:
    async with keeping(tmp_path, shared=True) as kept:
        kept.note(7)
        assert await kept.saved() == 7
        kept.note(5)  # perhaps older than a position that another process stored
        assert await kept.saved() == 7
        kept.note(6)
        kept.note(4)
        kept.note(5)
        assert await kept.saved() == 5
        kept.note(2, went_back=True)
        assert await kept.saved() == 2


async def test_a_single_process_stores_every_position(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        kept.note(7)
        assert await kept.saved() == 7
        kept.note(5)
        assert await kept.saved() == 5


async def test_a_position_at_an_unknown_hub_is_not_stored_for_another_hub(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        kept.cursors.note(ALICE, B, ReceiveRequest(kept.keys[0], Counter(3)))
        assert await kept.saved() is None


async def test_the_oldest_of_too_many_positions_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNSAVED", 2)
    async with keeping(tmp_path, partitions=3) as kept:
        for at in range(3):
            kept.note(1, at=at)
        await kept.cursors.save()
        assert await kept.stored() == [None, 1, 1]


# --- when it is stored --------------------------------------------------------------------------------------------


async def test_positions_are_stored_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    async with keeping(tmp_path, partitions=5, watched=(TABLET,)) as kept:
        for at in range(5):
            kept.note(at, at=at)
            kept.note(at + 1, at=at, device=TABLET)
        await kept.cursors.save_of([TABLET.row])
        assert kept.store.writes == 3
        assert (await kept.stored(device=TABLET), await kept.stored()) == ([1, 2, 3, 4, 5], [None] * 5)
        await kept.cursors.save()
        assert kept.store.writes == 6
        assert await kept.stored() == [0, 1, 2, 3, 4]
        await kept.cursors.save()
        assert kept.store.writes == 6


async def test_only_a_device_that_may_be_woken_is_told_of_and_stored_by_itself(tmp_path: Path) -> None:
    async with keeping(tmp_path, watched=(TABLET,)) as kept:
        kept.note(3)
        assert (kept.woken, kept.cursors.watched()) == ([], [])
        kept.note(4, device=TABLET)
        assert (kept.woken, kept.cursors.watched()) == ([True], [TABLET.row])
        await kept.cursors.save_of([ALICE.row, TABLET.row])
        assert (await kept.stored(device=TABLET), await kept.stored()) == ([4], [None])
        assert kept.cursors.watched() == []


async def test_positions_are_stored_when_the_server_stops(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept, trio.open_nursery() as jobs:
        await jobs.start(kept.cursors.run)
        kept.note(3)
        jobs.cancel_scope.cancel()
    assert kept.store.writes == 1


@pytest.mark.parametrize("watched", [True, False])
async def test_only_the_first_message_of_a_partition_that_may_wake_a_device_is_waited_for(
    watched: bool, tmp_path: Path
) -> None:
    async with keeping(tmp_path, watched=(ALICE,) if watched else ()) as kept:
        kept.cursors.note(ALICE, A, ReceiveRequest(KEY, Counter(0)))
        kept.note(3)
        await kept.cursors.save()
        early = await kept.store.read(lambda tx: tx.all("SELECT DISTINCT device FROM early_positions"))
        assert early == ([(ALICE.row,)] if watched else [])


# --- a full disk --------------------------------------------------------------------------------------------------


async def test_positions_of_a_sleeping_device_wait_until_they_can_be_stored(tmp_path: Path) -> None:
    async with keeping(tmp_path, watched=(ALICE,)) as kept:
        kept.note(3)
        kept.note(4, device=TABLET)
        kept.store.full = True
        with pytest.raises(StorageUnavailable):
            await kept.cursors.save_of(kept.cursors.watched())
        await kept.cursors.save()
        assert kept.cursors.watched() == [ALICE.row]
        kept.store.full = False
        await kept.cursors.save()
        assert (await kept.stored(), await kept.stored(device=TABLET)) == ([3], [4])
        assert kept.cursors.watched() == []


async def test_positions_of_other_devices_are_given_up_if_they_cannot_be_stored(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        kept.note(3)
        kept.store.full = True
        await kept.cursors.save()
        kept.store.full = False
        assert await kept.saved() is None


async def test_a_disk_that_fills_up_between_two_pages_loses_no_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    async with keeping(tmp_path, partitions=5, watched=(ALICE,)) as kept:
        for at in range(5):
            kept.note(at, at=at)

        def fill_up() -> None:
            kept.store.full = kept.store.writes == 1

        kept.store.before_write = fill_up
        with pytest.raises(StorageUnavailable):
            await kept.cursors.save_of([ALICE.row])
        assert sum(each is not None for each in await kept.stored()) == 2
        assert kept.cursors.watched() == [ALICE.row]
        kept.store.before_write, kept.store.full = (lambda: None), False
        await kept.cursors.save_of([ALICE.row])
        assert await kept.stored() == [0, 1, 2, 3, 4]


async def test_a_position_that_was_named_while_an_older_one_was_not_stored_stays(tmp_path: Path) -> None:
    async with keeping(tmp_path, watched=(ALICE,)) as kept:
        kept.note(3)

        def read_on() -> None:
            kept.store.full = True
            kept.note(8)

        kept.store.before_write = read_on
        with pytest.raises(StorageUnavailable):
            await kept.cursors.save_of([ALICE.row])
        kept.store.before_write, kept.store.full = (lambda: None), False
        assert await kept.saved() == 8
