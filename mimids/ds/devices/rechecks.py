"""Finding new messages whose notification was lost, for all streams together (architecture: tasks).

Once a minute, one query returns the partitions that moved since the last time (`store.moved`), and their topics are
notified again. So a stream costs nothing here while its partitions are quiet, however many keys its device presented.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from mimids.ds.notifier import Notifier, partition_topic
from mimids.ds.ports import Clock
from mimids.store import moved
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.moved import Looked, StampPage
from mimids.wire.ids import MaskedPartitionKey

RECHECK_SECONDS: Final = 60.0
PARTITIONS_AT_ONCE: Final = 1024


class Rechecks:
    """Notifies again of moved partitions.

    Each stream calls `notify_again`; the first call after a minute serves all streams.
    """

    def __init__(self, store: Store, notifier: Notifier, clock: Clock) -> None:
        self._store = store
        self._notifier = notifier
        self._clock = clock
        self._looked: Looked | None = None  # None before the first stream
        self._due_at = 0

    async def begin(self) -> None:
        """Begin at the present end of the stamps; called before the first stream reads anything."""
        if self._looked is None:
            settled = await self._store.read(moved.settled)
            if self._looked is None:
                self._looked, self._due_at = Looked.up_to(settled), self._next()

    async def notify_again(self) -> None:
        """At most once a minute, notify of the partitions that moved since the last time."""
        if self._clock.running() < self._due_at or self._looked is None:
            return
        self._due_at = self._next()
        looked, whole = self._looked, False
        while not whole:
            page, keys = await self._store.read(partial(_moved_since, looked))
            self._notifier.notify(*map(partition_topic, keys))
            looked, whole = page.looked, page.whole
        self._looked = looked

    def _next(self) -> int:
        return self._clock.running() + int(RECHECK_SECONDS * 1000)


def _moved_since(looked: Looked, tx: Tx) -> tuple[StampPage, list[MaskedPartitionKey]]:
    """Return the next page of stamps, and the keys of partitions with these stamps."""
    page = moved.next_page(tx, looked, limit=PARTITIONS_AT_ONCE)
    return page, moved.keys_on(tx, page)
