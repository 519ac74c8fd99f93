"""Saving from time to time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mimids.ds.clock import SystemClock
from mimids.ds.saving import save_regularly


async def test_it_saves_regularly_and_once_more_at_the_end(autojump_clock: trio.testing.MockClock) -> None:
    saved: list[float] = []

    async def save() -> None:
        saved.append(trio.current_time())

    began = trio.current_time()
    with trio.move_on_after(25):
        await save_regularly(save, SystemClock(), every=10, at_most=5)
    assert saved == [pytest.approx(began + seconds) for seconds in (10, 20, 25)]


async def test_the_last_save_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(25):
        await save_regularly(trio.sleep_forever, SystemClock(), every=30, at_most=5)
    assert trio.current_time() == pytest.approx(30, abs=1)
