"""Steps, in virtual time: what arrives in a step of 100 ms is committed after 20 ms and answered at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import outcome
import pytest
import trio
import trio.testing

from mimids.ds.key_packages.steps import Steps
from mimids.store.engine.queued_work import QueuedWork
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx

STEP_SECONDS = 0.1
NO_LOCKS = frozenset[Any]()


class SlowStore(Store):
    """Records when works were given to it, and how many; a commit takes as many seconds as its first work returns."""

    def __init__(self) -> None:
        self.commits: list[tuple[float, int]] = []

    async def write(self, work: Callable[[Tx], Any], **_: Any) -> Any:
        self.commits.append((round(trio.current_time(), 6), 1))
        return work(cast("Tx", None))

    async def write_each(self, jobs: Sequence[QueuedWork]) -> None:
        self.commits.append((round(trio.current_time(), 6), len(jobs)))
        answers = [outcome.capture(job.work, cast("Tx", None)) for job in jobs]
        if answers and isinstance(answers[0], outcome.Value):
            await trio.sleep(answers[0].value)
        for job, answer in zip(jobs, answers, strict=True):
            job.finish(answer)


class Asked:
    """Steps with a slow store, and when each request was answered and with what."""

    def __init__(self, nursery: trio.Nursery, seconds: float) -> None:
        self.steps = Steps(seconds)
        self.store = SlowStore()
        self.answered: dict[str, tuple[float, object]] = {}
        self._nursery = nursery

    def ask(self, name: str, at: float, work: Callable[[Tx], Any] | None) -> trio.CancelScope:
        """Ask at a time; `work` is what is to be committed."""
        scope = trio.CancelScope()
        self._nursery.start_soon(self._ask, name, at, work, scope)
        return scope

    async def _ask(self, name: str, at: float, work: Callable[[Tx], Any] | None, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep_until(at)
            try:
                found = await (self.steps.wait() if work is None else self.steps.commit(self.store, work, NO_LOCKS))
            except LookupError as error:
                found = repr(error)
            self.answered[name] = round(trio.current_time(), 6), found


@asynccontextmanager
async def asking(seconds: float = STEP_SECONDS) -> AsyncIterator[Asked]:
    """Give steps that run; wait at the end until all requests are answered."""
    async with trio.open_nursery() as jobs:
        async with trio.open_nursery() as requests:
            asked = Asked(requests, seconds)
            if seconds:
                await jobs.start(asked.steps.run, asked.store)
            yield asked
        jobs.cancel_scope.cancel()


def taking(seconds: float) -> Callable[[Tx], float]:
    return lambda tx: seconds


async def test_requests_of_a_step_are_committed_together_and_answered_at_its_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with asking() as asked:
        asked.ask("early", 1.001, taking(0))
        asked.ask("nothing to commit", 1.002, None)
        asked.ask("late", 1.019, taking(0.5))
        asked.ask("too late", 1.021, taking(0))
    assert asked.store.commits == [(1.02, 2), (1.12, 1)]
    assert asked.answered == {
        "early": (1.1, 0),
        "nothing to commit": (1.1, None),
        "late": (1.1, 0.5),
        "too late": (1.2, 0),
    }


async def test_all_wait_for_a_slow_commit_until_the_end_of_a_step_and_the_next_step_does_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with asking() as asked:
        asked.ask("slow", 1.01, taking(0.25))
        asked.ask("nothing to commit", 1.01, None)
        asked.ask("next", 1.05, taking(0))
    assert asked.answered == {
        "slow": (1.3, 0.25),
        "nothing to commit": (1.3, None),
        "next": (1.2, 0),
    }


async def test_an_error_is_raised_at_the_caller_of_its_work(autojump_clock: trio.testing.MockClock) -> None:
    def fail(tx: Tx) -> None:
        raise LookupError

    async with asking() as asked:
        asked.ask("fails", 1.01, fail)
        asked.ask("other", 1.01, taking(0))
    assert asked.answered == {"fails": (1.1, "LookupError()"), "other": (1.1, 0)}


@pytest.mark.parametrize(("cancelled_at", "commits"), [(1.015, [(1.02, 1)]), (1.05, [(1.02, 2)])])
async def test_a_caller_that_leaves_before_the_commit_takes_nothing(
    autojump_clock: trio.testing.MockClock, cancelled_at: float, commits: list[tuple[float, int]]
) -> None:
    async with asking() as asked:
        scope = asked.ask("leaves", 1.01, taking(0))
        asked.ask("stays", 1.01, taking(0))
        scope.deadline = cancelled_at
    assert asked.store.commits == commits
    assert asked.answered == {"stays": (1.1, 0)}


async def test_without_steps_everything_is_answered_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with asking(0) as asked:
        asked.ask("commits", 1.001, taking(7))
        asked.ask("nothing to commit", 1.002, None)
    assert asked.answered == {"commits": (1.001, 7), "nothing to commit": (1.002, None)}
