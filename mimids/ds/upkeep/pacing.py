"""Pauses between the pages of long jobs, so that requests go first."""

from __future__ import annotations

from typing import Final

import trio

from mimids.store.engine.store import Store

MOST_SECONDS: Final = 1.0


class Pacing:
    """Pauses of one job: each lasts as long as the last page took, and longer while other writes wait."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._began_at = trio.current_time()

    async def pause(self) -> None:
        """Wait after a page; call this after each page."""
        took = trio.current_time() - self._began_at
        await trio.sleep(min(MOST_SECONDS, took * (1 + self._store.statistics().waiting_writes)))
        self._began_at = trio.current_time()
