"""The sync job: ask each hub to push again from where we are, because after an absence it may be waiting to retry."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Final

import trio

from mimids.ds.following.recovery_as_follower import resume_requests
from mimids.ds.ports import Clock, Peers
from mimids.errors import MimiError
from mimids.store.engine.store import Store
from mimids.wire.declare import encode
from mimids.wire.ids import ProviderId

SYNC_SECONDS: Final = 3600.0
RESUMED_PARTITIONS: Final = 32  # of each hub, the newest: enough to make it retry


class Sync:
    """Sends ResumeRequests at the start and every `SYNC_SECONDS`."""

    def __init__(self, store: Store, clock: Clock, peers: Peers, *, provider: ProviderId) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers
        self._provider = provider

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask each hub that we follow to push again; never returns."""
        task_status.started()
        while True:
            for hub, request in await self._store.read(partial(resume_requests, self._provider, RESUMED_PARTITIONS)):
                with contextlib.suppress(MimiError):  # a hub that is away or refuses will push by itself later
                    await self._peers.call(hub, "POST", "/ds/v1/resume", encode(request))
            await self._clock.sleep(SYNC_SECONDS)
