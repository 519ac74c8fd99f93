"""The contract that the real clock and the one of tests both keep."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import trio

from mimids.ds.clock import SystemClock
from mimids.ds.ports import Clock
from tests.support.doubles import FakeClock


def real() -> tuple[Clock, Callable[[], None]]:
    return SystemClock(), lambda: None


def fake() -> tuple[Clock, Callable[[], None]]:
    clock = FakeClock()
    return clock, lambda: clock.advance(0.05)


@pytest.mark.parametrize("make", [real, fake])
async def test_whoever_sleeps_wakes_when_the_clock_has_moved_on(
    make: Callable[[], tuple[Clock, Callable[[], None]]], nursery: trio.Nursery
) -> None:
    clock, move = make()
    began = clock.now()
    woke = trio.Event()

    async def sleep() -> None:
        await clock.sleep(0.05)
        assert clock.now() - began >= 49  # of whole milliseconds
        woke.set()

    nursery.start_soon(sleep)
    await trio.testing.wait_all_tasks_blocked()
    assert not woke.is_set()
    move()
    with trio.fail_after(2):
        await woke.wait()
    with trio.fail_after(2):
        await clock.sleep(0)


def test_the_real_clock_tells_milliseconds_since_the_epoch() -> None:
    assert abs(SystemClock().now() - time.time() * 1000) < 1000


async def test_the_clock_of_tests_stands_still_and_wakes_in_order(nursery: trio.Nursery) -> None:
    clock = FakeClock()
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
