"""Which writes are committed together, in virtual time: a commit takes 10 ms, and clients come back after 1 ms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import outcome
import pytest
import trio
import trio.testing

from mimids.store.engine.queued_work import QueuedWork
from mimids.store.engine.store import GATHERING_SECONDS, AnswerBatch, Store

COMMIT_SECONDS = 0.01
PAUSE_SECONDS = 0.001


class SlowWriter:
    """A writer that records the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def commit_soon(self, jobs: Sequence[QueuedWork], answer: AnswerBatch) -> None:
        trio.lowlevel.spawn_system_task(self._commit, jobs, answer)

    async def _commit(self, jobs: Sequence[QueuedWork], answer: AnswerBatch) -> None:
        await trio.sleep(COMMIT_SECONDS)
        self.sizes.append(len(jobs))
        answer(outcome.Value([outcome.Value(job.work(cast("Any", None))) for job in jobs]))

    async def truncate_log(self) -> bool:
        return True

    async def separate_rows(self) -> None:
        pass


async def write(store: Store, times: int, first_pause: float = 0) -> None:
    await trio.sleep(first_pause)
    for _ in range(times):
        await store.write(lambda tx: None)
        await trio.sleep(PAUSE_SECONDS)


async def run(*clients: tuple[int, float]) -> list[int]:
    """Return the sizes of the batches; each client writes so many times, after a first pause."""
    writer = SlowWriter()
    store = Store(writer, [])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        async with trio.open_nursery() as writing:
            for times, first_pause in clients:
                writing.start_soon(write, store, times, first_pause)
        nursery.cancel_scope.cancel()
    return writer.sizes


async def test_clients_that_come_back_do_not_form_two_groups(autojump_clock: trio.testing.MockClock) -> None:
    assert await run(*[(20, 0.0)] * 4, *[(20, COMMIT_SECONDS / 2)] * 4) == [4, *[8] * 19, 4]


async def test_a_single_client_never_waits(autojump_clock: trio.testing.MockClock) -> None:
    assert await run((20, 0.0)) == [1] * 20
    assert trio.current_time() == pytest.approx(20 * (COMMIT_SECONDS + PAUSE_SECONDS))


async def test_clients_that_do_not_come_back_cost_one_short_wait(autojump_clock: trio.testing.MockClock) -> None:
    assert await run((10, 0.0), *[(1, 0.0)] * 7) == [8] + [1] * 9
    assert trio.current_time() == pytest.approx(10 * (COMMIT_SECONDS + PAUSE_SECONDS) + GATHERING_SECONDS)
