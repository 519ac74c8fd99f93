from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mimids.ds.notifier import Notifier, NotifierStatistics, Waiter
from tests.support.doubles import stopped_clock


class Listening:
    """Waits in a task of its own; `woken` is what woke it, time after time."""

    def __init__(self, notifier: Notifier, *topics: str, rounds: int = 1) -> None:
        self._notifier, self._topics, self._rounds = notifier, topics, rounds
        self.waiter: Waiter | None = None
        self.woken: list[set[object]] = []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self._notifier.listen(*self._topics) as self.waiter:
            task_status.started()
            for _ in range(self._rounds):
                self.woken.append(set(await self.waiter.wait()))


async def test_a_notification_wakes_all_listeners_of_its_topic_and_no_others(nursery: trio.Nursery) -> None:
    notifier = Notifier()
    first, second, other = Listening(notifier, "a"), Listening(notifier, "a", "b"), Listening(notifier, "c")
    for waiter in (first, second, other):
        await nursery.start(waiter.run)
    notifier.notify("a")
    await wait_all_tasks_blocked()
    assert (first.woken, second.woken, other.woken) == ([{"a"}], [{"a"}], [])


async def test_a_notification_before_the_wait_is_not_lost() -> None:
    notifier = Notifier()
    with notifier.listen("a", "b") as waiter:
        notifier.notify("a")
        notifier.notify("b")
        notifier.notify("a")
        with trio.fail_after(1):
            assert await waiter.wait() == {"a", "b"}
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
            await waiter.wait()


async def test_a_notification_without_listeners_is_dropped() -> None:
    notifier = Notifier()
    notifier.notify("a")
    with notifier.listen("a") as waiter, pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
        await waiter.wait()


async def test_topics_can_be_added_and_removed_while_listening() -> None:
    notifier = Notifier()
    with notifier.listen("a") as waiter:
        notifier.add(waiter, "b")
        notifier.remove(waiter, "a", "never")
        notifier.notify("a", "b")
        assert await waiter.wait() == {"b"}


async def test_a_listener_that_stopped_leaves_nothing_behind(nursery: trio.Nursery) -> None:
    notifier = Notifier()
    for _ in range(3):
        await nursery.start(Listening(notifier, "a", "b", "b").run)
    assert notifier.statistics() == NotifierStatistics(topics=2, listeners=6)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await wait_all_tasks_blocked()
    assert notifier.statistics() == NotifierStatistics(0, 0)


async def test_a_wait_ends_by_the_clock_or_by_a_notification(nursery: trio.Nursery) -> None:
    notifier, clock = Notifier(), stopped_clock()
    heard: list[set[object]] = []

    async def wait() -> None:
        with notifier.listen("a") as waiter:
            for _ in range(2):
                heard.append(set(await waiter.wait_at_most(clock, 60)))

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    clock.advance(59)
    await wait_all_tasks_blocked()
    assert heard == []
    clock.advance(1)
    await wait_all_tasks_blocked()
    assert heard == [set()]
    notifier.notify("a")
    await wait_all_tasks_blocked()
    assert heard == [set(), {"a"}]
    assert clock.sleepers == 0


async def test_a_wait_with_a_time_limit_starts_no_task(nursery: trio.Nursery) -> None:
    notifier, before = Notifier(), trio.lowlevel.current_statistics().tasks_living
    with notifier.listen("a") as waiter:
        nursery.start_soon(waiter.wait_at_most, stopped_clock(), 60)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before + 1
        nursery.cancel_scope.cancel()


async def test_shutdown_wakes_present_and_later_listeners(nursery: trio.Nursery) -> None:
    notifier = Notifier()
    early, late = Listening(notifier, "a"), Listening(notifier, "b")
    await nursery.start(early.run)
    notifier.shut_down()
    await nursery.start(late.run)
    await wait_all_tasks_blocked()
    assert early.woken
    assert late.woken
    again = Listening(notifier, "c", rounds=2)
    await nursery.start(again.run)
    await wait_all_tasks_blocked()
    assert len(again.woken) == 1  # a job's loop goes on until it is cancelled, without spinning


async def test_a_cancelled_waiter_gets_the_next_notification(autojump_clock: MockClock) -> None:
    notifier = Notifier()
    with notifier.listen("a") as waiter:
        with trio.move_on_after(1):
            await waiter.wait()
        notifier.notify("a")
        assert await waiter.wait() == {"a"}
