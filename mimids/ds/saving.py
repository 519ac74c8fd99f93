"""Saving counts that are kept in memory, from time to time and once more when the server stops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from mimids.ds.ports import Clock


async def save_regularly(save: Callable[[], Awaitable[None]], clock: Clock, *, every: float, at_most: float) -> None:
    """Call `save` every `every` seconds until cancelled; then call it a last time, for `at_most` seconds at most."""
    try:
        while True:
            await clock.sleep(every)
            await save()
    finally:
        with trio.move_on_after(at_most, shield=True):
            await save()
