"""After a restore, as follower: hubs believe that we have messages which the backup does not contain.

(semantics: restore)

Round
    Each hub is asked to push again (resume) from where we are, partition by partition. The hubs then have ROUND_SECONDS
    to push.

Retry
    If a hub does not answer, its other partitions are skipped in this round, and the next round begins after a
    back-off.

End
    A round that brought nothing new and in which all hubs answered is the last. Until then a setting in the database
    marks the recovery as unfinished, so a restart continues it.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from mimids.ds.backoff import Backoff
from mimids.ds.peer_answers import expect_empty
from mimids.ds.ports import Clock, Peers
from mimids.errors import MimiError, NotFollowed, UnknownGroup, UnknownPartition
from mimids.store import partitions, providers, recoveries
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import drop_setting, setting
from mimids.wire.declare import encode
from mimids.wire.ids import ProviderId
from mimids.wire.messages import ResumeRequest

RESUMED_PARTITIONS: Final = 10_000  # of each hub, the newest
ROUND_SECONDS: Final = 5.0


class RecoveryAsFollower:
    """Asks hubs to push again after a restore; `run` ends when nothing is missing."""

    def __init__(self, store: Store, clock: Clock, peers: Peers, *, provider: ProviderId, backoff: Backoff) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers
        self._provider = provider
        self._backoff = backoff

    async def run(self) -> None:
        """Ask all hubs to push again, if this server was restored, until that brings nothing new."""
        if await self._store.read(lambda tx: setting(tx, recoveries.RESUME_EVERYTHING)) is None:
            return
        before = None
        failures = 0
        positions = partial(resume_requests, self._provider, RESUMED_PARTITIONS)
        while (here := await self._store.read(positions)) != before or failures:
            before = here
            failures = 0 if await self._ask(here) else failures + 1
            await self._clock.sleep(self._backoff.seconds(failures) if failures else ROUND_SECONDS)
        await self._store.write(lambda tx: drop_setting(tx, recoveries.RESUME_EVERYTHING))

    async def _ask(self, requests: list[tuple[ProviderId, ResumeRequest]]) -> bool:
        """Ask hubs to push again; return whether all of them answered."""
        failed: set[ProviderId] = set()
        for domain, request in requests:
            if domain in failed:
                continue
            try:
                expect_empty(await self._peers.call(domain, "POST", "/ds/v1/resume", encode(request)))
            except (UnknownGroup, UnknownPartition, NotFollowed):
                pass  # the hub does not push this partition to us any more
            except MimiError:
                failed.add(domain)
        return not failed


def resume_requests(ours: ProviderId, limit: int, tx: Tx) -> list[tuple[ProviderId, ResumeRequest]]:
    """Return, for each hub but ourselves, requests to push again its `limit` newest partitions from where we are."""
    found = []
    for domain in providers.every_domain(tx):
        if domain != ours:
            number = providers.provider_row(tx, domain) or 0
            newest = partitions.newest_of_hub(tx, number, limit=limit)
            found += [(domain, ResumeRequest(group_id, key, counter)) for group_id, key, counter in newest]
    return found
