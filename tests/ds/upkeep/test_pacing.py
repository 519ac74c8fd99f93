"""Long jobs pause after each page, for as long as the page took, and longer while other writes wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from mimids.ds.upkeep.pacing import MOST_SECONDS, Pacing


class WaitingWrites:
    """A store in which so many writes wait."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def statistics(self) -> SimpleNamespace:
        return SimpleNamespace(waiting_writes=self.count)


async def seconds_of_pause(pacing: Pacing, page_seconds: float) -> float:
    await trio.sleep(page_seconds)
    began_at = trio.current_time()
    await pacing.pause()
    return trio.current_time() - began_at


@pytest.mark.parametrize(
    ("waiting", "page_seconds", "expected"),
    [(0, 0.1, 0.1), (1, 0.1, 0.2), (3, 0.1, 0.4), (0, 0.0, 0.0), (9, 0.2, MOST_SECONDS), (0, 7.0, MOST_SECONDS)],
)
async def test_a_pause_lasts_as_long_as_its_page_times_the_writes_that_wait(
    waiting: int, page_seconds: float, expected: float, autojump_clock: trio.testing.MockClock
) -> None:
    store: Any = WaitingWrites(waiting)
    assert await seconds_of_pause(Pacing(store), page_seconds) == pytest.approx(expected)


async def test_a_pause_does_not_count_the_pauses_before_it(autojump_clock: trio.testing.MockClock) -> None:
    store: Any = WaitingWrites()
    pacing = Pacing(store)
    assert await seconds_of_pause(pacing, 0.2) == pytest.approx(0.2)
    assert await seconds_of_pause(pacing, 0.3) == pytest.approx(0.3)
    assert await seconds_of_pause(pacing, 0.1) == pytest.approx(0.1)
