"""Batches: tasks wait for the end of a period and then go on in a random order (semantics: ohttp).

The relay does this with requests and with answers. Somebody who observes both sides of the relay then cannot pair
requests by their times or order, only by their batch.
"""

from __future__ import annotations

from random import SystemRandom
from typing import Final

import trio

SPREAD: Final = 0.1  # the tasks of a batch go on within this part of a period after its end

_chance = SystemRandom()


async def wait_for_batch(seconds: float) -> None:
    """Wait for the end of the present period of `seconds`, and then a random time; do not wait if `seconds` is 0.

    Periods are counted by trio's clock. Each task draws its own time, so their order does not depend on their arrival.
    """
    if seconds:
        ends_at = (trio.current_time() // seconds + 1) * seconds
        await trio.sleep_until(ends_at + SPREAD * seconds * _chance.random())
