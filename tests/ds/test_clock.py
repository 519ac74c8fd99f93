"""The contract of `ds.ports.Clock`: the system clock and the clock of tests keep it, running or stopped."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import trio

from mimids.ds.clock import SystemClock
from mimids.ds.ports import Clock
from mimids.testing.clock import MovableClock
from tests.support.doubles import stopped_clock
from tests.support.patience import patience

Made = tuple[Clock, Callable[[], None]]  # a clock, and what makes 50 ms pass on it


def system() -> Made:
    return SystemClock(), lambda: None


def movable() -> Made:
    return MovableClock(offset=5_000_000), lambda: None


def moved() -> Made:
    clock = MovableClock()
    return clock, lambda: clock.advance(0.05)


def stopped() -> Made:
    clock = stopped_clock()
    return clock, lambda: clock.advance(0.05)


@pytest.mark.parametrize("make", [system, movable, moved, stopped])
async def test_a_sleeper_wakes_when_the_clock_has_advanced(make: Callable[[], Made], nursery: trio.Nursery) -> None:
    clock, advance = make()
    began = clock.now()
    woke = trio.Event()

    async def sleep() -> None:
        await clock.sleep(0.05)
        assert clock.now() - began >= 49  # of whole milliseconds
        woke.set()

    nursery.start_soon(sleep)
    await trio.testing.wait_all_tasks_blocked()
    assert not woke.is_set()
    advance()
    with patience():
        await woke.wait()
    with patience():
        await clock.sleep(0)
        await clock.sleep(-0.001)  # the moment passed while its distance was computed


@pytest.mark.parametrize("make", [system, movable, moved, stopped])
async def test_a_block_ends_when_the_clock_has_advanced(make: Callable[[], Made], nursery: trio.Nursery) -> None:
    clock, advance = make()
    began, early, late = clock.now(), trio.Event(), trio.Event()

    async def wait(seconds: float, ended: trio.Event) -> None:
        with clock.move_on_after(seconds):
            await trio.sleep_forever()
        ended.set()

    nursery.start_soon(wait, 3600, late)
    nursery.start_soon(wait, 0.05, early)
    await trio.testing.wait_all_tasks_blocked()
    advance()
    with patience():
        await early.wait()
        assert clock.now() - began >= 49  # of whole milliseconds
        await wait(-1, trio.Event())
    assert not late.is_set()


@pytest.mark.parametrize("make", [system, movable, moved, stopped])
async def test_sleep_can_be_cancelled(make: Callable[[], Made]) -> None:
    clock, _ = make()
    with trio.move_on_after(0.01) as time_is_up:
        await clock.sleep(60)
    assert time_is_up.cancelled_caught


@pytest.mark.parametrize("make", [SystemClock, MovableClock])
def test_a_running_clock_shows_milliseconds_since_the_epoch(make: Callable[[], Clock]) -> None:
    assert abs(make().now() - time.time() * 1000) < 1000


async def test_a_stopped_clock_wakes_only_the_sleepers_whose_time_has_come(nursery: trio.Nursery) -> None:
    clock = stopped_clock()
    woken: list[int] = []

    async def sleep(seconds: int) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    for seconds in (3, 1, 2):
        nursery.start_soon(sleep, seconds)
    await trio.testing.wait_all_tasks_blocked()
    before = clock.now()
    clock.advance(1)
    await trio.testing.wait_all_tasks_blocked()
    assert (woken, clock.now() - before, clock.sleepers) == ([1], 1000, 2)
    clock.advance(5)
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(woken) == [1, 2, 3]
