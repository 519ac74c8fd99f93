"""Ticks wake the tasks that wait for them at the same moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing

from mimids.ds.key_packages.ticks import Ticks

if TYPE_CHECKING:
    import pytest


async def woken_at(ticks: Ticks, *moments: float) -> list[float]:
    """Return when tasks that wait for these moments go on."""
    found: dict[int, float] = {}

    async def wait(number: int) -> None:
        await ticks.wait_until(moments[number])
        found[number] = trio.current_time()

    async with trio.open_nursery() as nursery:
        for number in range(len(moments)):
            nursery.start_soon(wait, number)
    return [found[number] for number in range(len(moments))]


async def test_a_task_goes_on_at_the_first_tick_after_its_moment(autojump_clock: trio.testing.MockClock) -> None:
    ticks = Ticks(0.25)
    assert await woken_at(ticks, 0.1, 0.25, 0.2, 0.26, 1) == [0.25, 0.25, 0.25, 0.5, 1]
    assert await woken_at(ticks, 0.3, -1) == [1, 1]


async def test_tasks_of_one_tick_share_one_timer(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks, slept = Ticks(0.25), []

    async def sleep_until(moment: float) -> None:
        slept.append(moment)
        await sleeping(moment)

    sleeping = trio.sleep_until
    monkeypatch.setattr(trio, "sleep_until", sleep_until)
    await woken_at(ticks, *[0.1] * 5, *[0.3] * 5)
    assert sorted(slept) == [0.25, 0.5]


async def test_tasks_wait_on_if_the_first_one_is_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    ticks, first, woken = Ticks(0.25), trio.CancelScope(), []

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            await ticks.wait_until(0.2)
            woken.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, first)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(wait, trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
    assert woken == [0.25] * 3
