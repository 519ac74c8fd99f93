"""`write_each`: many works of one caller, committed together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from mimids.errors import ShuttingDown
from mimids.store.engine.queued_work import QueuedWork
from mimids.store.engine.sqlite import open_store
from mimids.store.engine.store import BATCHES_ALONE, WAITING_WRITES, Store
from mimids.store.engine.transaction import Tx, WorkTogether
from tests.support.notes import note, note_and_refuse, texts, working


async def answers(store: Store, *jobs: QueuedWork) -> list[object]:
    """Return what each work returned, or the type of what it raised."""
    await store.write_each(jobs)
    found: list[object] = []
    for job in jobs:
        assert job.answer is not None
        try:
            found.append(job.answer.unwrap())
        except Exception as error:
            found.append(type(error))
    return found


async def test_all_works_are_committed_together_and_each_has_its_own_answer(path: Path) -> None:
    async with working(path) as store:
        for _ in range(BATCHES_ALONE):  # after these the store begins a batch for each job
            await store.write(lambda tx: None)
        await store.write(note("alone"))
        jobs = [QueuedWork(note("a")), QueuedWork(note_and_refuse("b")), QueuedWork(note("c"))]
        assert await answers(store, *jobs) == [2, LookupError, 3]
        assert store.statistics().commits == BATCHES_ALONE + 2
        assert await store.read(texts) == ["alone", "a", "c"]


async def test_works_that_follow_one_another_may_be_run_by_one_call(path: Path) -> None:
    calls: list[list[str]] = []

    def note_all(tx: Tx, items: Sequence[str]) -> list[int]:
        calls.append(list(items))
        return [note(item)(tx) for item in items]

    async with working(path) as store:
        jobs = [QueuedWork(WorkTogether(note_all, name)) for name in ("a", "b", "d")]
        assert await answers(store, *jobs[:2], QueuedWork(note("c")), jobs[2]) == [1, 2, 3, 4]
        assert calls == [["a", "b"], ["d"]]
        assert await store.read(texts) == ["a", "b", "c", "d"]


async def test_if_the_call_for_all_raises_each_work_is_run_alone(path: Path) -> None:
    def note_unless_refused(tx: Tx, items: Sequence[str]) -> list[int]:
        return [(note_and_refuse if item == "refused" else note)(item)(tx) for item in items]

    async with working(path) as store:
        jobs = [QueuedWork(WorkTogether(note_unless_refused, name)) for name in ("a", "refused", "b")]
        assert await answers(store, *jobs) == [1, LookupError, 2]
        assert await store.read(texts) == ["a", "b"]


async def test_nothing_to_write_needs_no_commit(path: Path) -> None:
    async with working(path) as store:
        await store.write_each([])
        assert store.statistics().commits == 0


@pytest.mark.parametrize("earlier", [0, BATCHES_ALONE + 1])
async def test_more_works_than_may_wait_are_written_in_order(path: Path, earlier: int) -> None:
    async with working(path) as store:
        for _ in range(earlier):
            await store.write(lambda tx: None)
        with trio.fail_after(30):
            await store.write_each([QueuedWork(note(str(n))) for n in range(3 * WAITING_WRITES)])
        assert await store.read(texts) == [str(n) for n in range(3 * WAITING_WRITES)]


async def test_after_the_writer_has_stopped_each_work_is_refused(path: Path) -> None:
    async with open_store(path) as store:
        with trio.CancelScope() as stopped:
            stopped.cancel()
            await store.run()
        assert await answers(store, QueuedWork(note("a")), QueuedWork(note("b"))) == [ShuttingDown, ShuttingDown]
