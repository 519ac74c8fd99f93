"""The sync job: ask hubs to push again from our counters.

All hubs
    All hubs are asked at the start and every `SYNC_SECONDS`: if we could not be reached, a hub may still be in
    back-off.

A hub that is ahead of us
    A SendResponse may name a counter beyond the end of the partition here. Usually the messages before that counter are
    being pushed. If they are not here `BEHIND_SECONDS` later, the hub may believe that we have them, so it is asked
    without waiting for the next sync.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs
import trio

from mimids.ds.following.recovery_as_follower import resume_requests
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.notifier import Waiter
from mimids.ds.ports import Clock, Peers
from mimids.errors import MimiError
from mimids.store import partitions, providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.wire.declare import encode
from mimids.wire.ids import Counter, GroupId, MaskedPartitionKey, ProviderId
from mimids.wire.messages import ResumeRequest

SYNC_SECONDS: Final = 3600.0
RESUMED_PARTITIONS: Final = 32  # the newest partitions of each hub: enough to make the hub retry
BEHIND_SECONDS: Final = 1.0
BEHIND_REMEMBERED: Final = 1000  # partitions; if there are more, the oldest wait for the next sync
BEHIND: Final = "behind"


@attrs.frozen
class _Place:
    """A partition of a hub's group."""

    hub: ProviderId
    group_id: GroupId
    masked_key: MaskedPartitionKey


class Sync:
    """Sends ResumeRequests; `run` is the job."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        peers: Peers,
        *,
        provider: ProviderId,
        runs_jobs: Callable[[], bool] = lambda: True,
    ) -> None:
        """Make the service; `runs_jobs` tells whether this process asks all hubs."""
        self._store = store
        self._clock = clock
        self._peers = peers
        self._provider = provider
        self._runs_jobs = runs_jobs
        self._behind = LeastRecentlyUsed[_Place, Counter](
            BEHIND_REMEMBERED
        )  # by place: a counter that the hub has given out there
        self._waiter = Waiter()
        self._busy: set[ProviderId] = set()

    def note_behind(self, hub: ProviderId, group_id: GroupId, masked_key: MaskedPartitionKey, counter: Counter) -> None:
        """Ask a hub again soon, because it has given out a counter beyond the end of a partition here."""
        self._behind.put(_Place(hub, group_id, masked_key), counter)
        self._waiter.notify(BEHIND)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask each hub whose groups we follow to push again; never returns."""
        async with trio.open_nursery() as tasks:
            tasks.start_soon(self._ask_where_behind, tasks)
            task_status.started()
            while True:
                positions = partial(resume_requests, self._provider, RESUMED_PARTITIONS)
                for hub, request in await self._store.read(positions) if self._runs_jobs() else ():
                    with contextlib.suppress(MimiError):  # a hub that is away or refuses will push by itself later
                        await self._resume(hub, request)
                await self._clock.sleep(SYNC_SECONDS)

    async def _ask_where_behind(self, tasks: trio.Nursery) -> None:
        while True:
            await self._waiter.wait()
            await self._clock.sleep(BEHIND_SECONDS)
            noted = [self._behind.pop_oldest() for _ in range(len(self._behind))]
            later = [each for each in noted if each[0].hub in self._busy]
            for place, counter in later:
                self._behind.put(place, counter)
            missing = await self._store.read(partial(_requests_for_missing, [e for e in noted if e not in later]))
            for hub in missing:
                self._busy.add(hub)
                tasks.start_soon(self._ask, hub, missing[hub])

    async def _ask(self, hub: ProviderId, requests: Sequence[ResumeRequest]) -> None:
        """Ask one hub to push partitions again; stop at the first request that it does not answer, or refuses."""
        try:
            with contextlib.suppress(MimiError):
                for request in requests:
                    await self._resume(hub, request)
        finally:
            self._busy.discard(hub)
            if len(self._behind):
                self._waiter.notify(BEHIND)

    async def _resume(self, hub: ProviderId, request: ResumeRequest) -> None:
        await self._peers.call(hub, "POST", "/ds/v1/resume", encode(request))


def _requests_for_missing(noted: Sequence[tuple[_Place, Counter]], tx: Tx) -> dict[ProviderId, list[ResumeRequest]]:
    """Return, by hub, a request for each partition that has no message at the noted counter yet."""
    missing: dict[ProviderId, list[ResumeRequest]] = {}
    for place, counter in noted:
        number = providers.provider_row(tx, place.hub) or 0
        here = partitions.find_partition(tx, number, [place.masked_key])
        if here is not None and here.next_counter <= counter:
            request = ResumeRequest(place.group_id, place.masked_key, here.next_counter)
            missing.setdefault(place.hub, []).append(request)
    return missing
