from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mimids.ds.wakes import Bell, Wakes, WakeStatistics
from tests.doubles import FakeClock


class Waiter:
    """Waits in a task of its own; `woken` is what woke it, time after time."""

    def __init__(self, wakes: Wakes, *topics: str, rounds: int = 1) -> None:
        self._wakes, self._topics, self._rounds = wakes, topics, rounds
        self.bell: Bell | None = None
        self.woken: list[set[object]] = []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self._wakes.listen(*self._topics) as self.bell:
            task_status.started()
            for _ in range(self._rounds):
                self.woken.append(set(await self.bell.wait()))


async def test_a_ring_wakes_all_that_listen_to_its_topic_and_no_others(nursery: trio.Nursery) -> None:
    wakes = Wakes()
    first, second, other = Waiter(wakes, "a"), Waiter(wakes, "a", "b"), Waiter(wakes, "c")
    for waiter in (first, second, other):
        await nursery.start(waiter.run)
    wakes.ring("a")
    await wait_all_tasks_blocked()
    assert (first.woken, second.woken, other.woken) == ([{"a"}], [{"a"}], [])


async def test_what_rings_between_looking_and_waiting_is_not_lost() -> None:
    wakes = Wakes()
    with wakes.listen("a", "b") as bell:
        wakes.ring("a")
        wakes.ring("b")
        wakes.ring("a")
        with trio.fail_after(1):
            assert await bell.wait() == {"a", "b"}
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
            await bell.wait()


async def test_what_nobody_listens_to_rings_for_nobody() -> None:
    wakes = Wakes()
    wakes.ring("a")
    with wakes.listen("a") as bell, pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
        await bell.wait()


async def test_topics_come_and_go_while_listening() -> None:
    wakes = Wakes()
    with wakes.listen("a") as bell:
        wakes.add(bell, "b")
        wakes.remove(bell, "a", "never")
        wakes.ring("a", "b")
        assert await bell.wait() == {"b"}


async def test_nothing_is_kept_of_whoever_stopped_listening(nursery: trio.Nursery) -> None:
    wakes = Wakes()
    for _ in range(3):
        await nursery.start(Waiter(wakes, "a", "b", "b").run)
    assert wakes.statistics() == WakeStatistics(topics=2, listeners=6)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await wait_all_tasks_blocked()
    assert wakes.statistics() == WakeStatistics(0, 0)


async def test_waiting_ends_with_the_clock_or_with_a_ring(nursery: trio.Nursery) -> None:
    wakes, clock = Wakes(), FakeClock()
    heard: list[set[object]] = []

    async def wait() -> None:
        with wakes.listen("a") as bell:
            for _ in range(2):
                heard.append(set(await bell.wait_at_most(clock, 60)))

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    clock.advance(59)
    await wait_all_tasks_blocked()
    assert heard == []
    clock.advance(1)
    await wait_all_tasks_blocked()
    assert heard == [set()]
    wakes.ring("a")
    await wait_all_tasks_blocked()
    assert heard == [set(), {"a"}]
    assert clock.sleepers == 0


async def test_at_the_end_nobody_waits_any_more(nursery: trio.Nursery) -> None:
    wakes = Wakes()
    early, late = Waiter(wakes, "a"), Waiter(wakes, "b")
    await nursery.start(early.run)
    wakes.end()
    await nursery.start(late.run)
    await wait_all_tasks_blocked()
    assert early.woken
    assert late.woken
    again = Waiter(wakes, "c", rounds=2)
    await nursery.start(again.run)
    await wait_all_tasks_blocked()
    assert len(again.woken) == 1  # a job's loop goes on until it is cancelled, without spinning


async def test_a_cancelled_waiter_hears_the_next_ring(autojump_clock: MockClock) -> None:
    wakes = Wakes()
    with wakes.listen("a") as bell:
        with trio.move_on_after(1):
            await bell.wait()
        wakes.ring("a")
        assert await bell.wait() == {"a"}
