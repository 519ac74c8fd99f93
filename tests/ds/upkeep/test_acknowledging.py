"""When the progress of acknowledged writes is recorded, and when the record is forced to the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mimids.ds.upkeep.acknowledging import RECORD_SECONDS, record_acknowledged
from mimids.errors import StorageUnavailable
from mimids.store import acknowledged

COMMIT_SECONDS = 10.0


class Committing:
    """A store with a commit every `COMMIT_SECONDS`, and one at the start; its progress is the time."""

    def __init__(self) -> None:
        self.full_until = 0.0
        self.reads: list[float] = []

    async def wait_for_commit(self, commits: int) -> int:
        now = int(trio.current_time() // COMMIT_SECONDS)
        if commits == now:
            await trio.sleep_until((now + 1) * COMMIT_SECONDS)
            return now + 1
        await trio.lowlevel.checkpoint()
        return now

    async def read(self, work: Callable[[Any], int]) -> int:
        await trio.lowlevel.checkpoint()
        if trio.current_time() < self.full_until:
            raise StorageUnavailable
        self.reads.append(trio.current_time())
        return int(trio.current_time())


class Disk:
    """Notes when a file is forced to the disk or closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[float] = []
        self.closed = 0
        close = acknowledged.AcknowledgedRecord.close

        def note_close(record: acknowledged.AcknowledgedRecord) -> None:
            self.closed += 1
            close(record)

        monkeypatch.setattr("os.fdatasync", lambda _: self.synced.append(trio.current_time()))
        monkeypatch.setattr(acknowledged.AcknowledgedRecord, "close", note_close)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    async def here(function: Callable[[], None]) -> None:
        await trio.lowlevel.checkpoint()
        function()

    monkeypatch.setattr("trio.to_thread.run_sync", here)  # the clock of these tests does not wait for threads
    return Disk(monkeypatch)


async def run_for(seconds: float, store: Committing, database: Path) -> None:
    running: Any = store
    async with trio.open_nursery() as jobs:
        await jobs.start(record_acknowledged, running, database)
        await trio.sleep(seconds)
        jobs.cancel_scope.cancel()


async def test_each_commit_is_recorded_and_few_records_are_forced_to_the_disk(
    tmp_path: Path, disk: Disk, autojump_clock: trio.testing.MockClock
) -> None:
    store, database = Committing(), tmp_path / "some.sqlite3"
    await run_for(95, store, database)
    assert store.reads == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95]
    assert disk.synced == [30, 60, 90, 95]  # the last one at the end
    assert acknowledged.recorded(database) == 95
    assert disk.closed == 1


async def test_commits_that_come_together_are_recorded_once(
    tmp_path: Path, disk: Disk, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.COMMIT_SECONDS", RECORD_SECONDS / 4)
    store = Committing()
    await run_for(10 * RECORD_SECONDS, store, tmp_path / "some.sqlite3")
    assert 10 <= len(store.reads) <= 12


async def test_a_full_disk_leaves_the_last_record_and_does_not_end_the_job(
    tmp_path: Path, disk: Disk, autojump_clock: trio.testing.MockClock
) -> None:
    store, database = Committing(), tmp_path / "some.sqlite3"
    store.full_until = 25.0
    await run_for(24, store, database)
    assert (store.reads, acknowledged.recorded(database)) == ([], None)
    await run_for(20, store, database)
    assert acknowledged.recorded(database) == 44
