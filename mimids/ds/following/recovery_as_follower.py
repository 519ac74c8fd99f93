"""After a restore, as follower: fetch messages and Welcomes that hubs delivered after the backup.

(semantics: restore)

Welcomes
    Each known provider is asked to send again the Welcomes that it delivered to us, until it has answered once.

Round
    Each hub is asked to push each partition again (resume), from the counter that we have. The hubs then have
    ROUND_SECONDS to push.

Retry
    If a hub does not answer, its other partitions are skipped in this round, and the next round begins after a
    back-off, or when the hub calls.

End
    The recovery ends after a round in which all hubs answered and nothing new arrived. Until then, and until all
    providers were asked for Welcomes, a setting in the database marks the recovery as unfinished, so a restart
    continues it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Final

import trio

from mimids.ds.backoff import Backoff
from mimids.ds.early_retries import wait_for_call
from mimids.ds.notifier import Notifier, heard_topic
from mimids.ds.peer_answers import expect_empty
from mimids.ds.ports import Clock, Peers
from mimids.errors import (
    MimiError,
    NotFollowed,
    PeerUnavailable,
    RateLimited,
    StorageUnavailable,
    UnknownGroup,
    UnknownPartition,
)
from mimids.store import partitions, providers, recoveries
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import drop_setting, setting
from mimids.telemetry import Log
from mimids.wire.declare import encode
from mimids.wire.ids import LAST_COUNTER, ProviderId
from mimids.wire.messages import ResumeRequest

RESUMED_PARTITIONS: Final = 10_000  # the newest partitions of each hub
ROUND_SECONDS: Final = 5.0


class RecoveryAsFollower:
    """Asks hubs to push again after a restore; `run` ends when nothing is missing."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        peers: Peers,
        notifier: Notifier,
        *,
        provider: ProviderId,
        backoff: Backoff,
        log: Log,
    ) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers
        self._notifier = notifier
        self._provider = provider
        self._backoff = backoff
        self._log = log

    async def run(self) -> None:
        """If this server was restored, ask all hubs to push again, until nothing new arrives."""
        if await self._store.read(lambda tx: setting(tx, recoveries.RESUME_EVERYTHING)) is None:
            return
        async with trio.open_nursery() as recovering:
            recovering.start_soon(self._ask_for_messages)
            recovering.start_soon(self._ask_for_welcomes)
        with suppress(StorageUnavailable):  # the next start asks the hubs once more
            await self._store.write(lambda tx: drop_setting(tx, recoveries.RESUME_EVERYTHING))

    async def _ask_for_messages(self) -> None:
        before = None
        failures = early = 0
        positions = partial(resume_requests, self._provider, RESUMED_PARTITIONS)
        while (here := await self._store.read(positions)) != before or failures:
            before = here
            with self._notifier.listen(*{heard_topic(hub) for hub, _ in here}) as waiter:
                failed = await self._ask(here)
                self._notifier.remove(waiter, *(heard_topic(hub) for hub, _ in here if hub not in failed))
                failures = failures + 1 if failed else 0
                if failed:
                    seconds = self._backoff.seconds(failures)
                    early = await wait_for_call(waiter, self._clock, seconds, early=early)
                else:
                    await self._clock.sleep(ROUND_SECONDS)

    async def _ask_for_welcomes(self) -> None:
        waiting = set(await self._store.read(providers.every_domain)) - {self._provider}
        failures = 0
        while waiting:
            for domain in sorted(waiting):
                if await self._asked_for_welcomes(domain):
                    waiting.discard(domain)
            if waiting:
                failures += 1
                await self._clock.sleep(self._backoff.seconds(failures))

    async def _asked_for_welcomes(self, domain: ProviderId) -> bool:
        """Ask a provider to send Welcomes again; return False if it has to be asked later."""
        try:
            expect_empty(await self._peers.call(domain, "POST", "/ds/v1/recover/welcomes"))
        except (PeerUnavailable, RateLimited):
            return False
        except MimiError as error:  # the provider does not serve this request, or we may not call it
            self._log.info("asked another provider for Welcomes after a restore", peer=domain, result=error.code)
            return True
        self._log.info("asked another provider for Welcomes after a restore", peer=domain, result="they come again")
        return True

    async def _ask(self, requests: list[tuple[ProviderId, ResumeRequest]]) -> set[ProviderId]:
        """Ask hubs to push again; return those that did not answer."""
        failed: set[ProviderId] = set()
        for domain, request in requests:
            if domain in failed:
                continue
            try:
                expect_empty(await self._peers.call(domain, "POST", "/ds/v1/resume", encode(request)))
            except (UnknownGroup, UnknownPartition, NotFollowed):  # the first two from earlier versions
                pass  # the hub does not push this partition to us any more
            except MimiError:
                failed.add(domain)
        return failed


def resume_requests(ours: ProviderId, limit: int, tx: Tx) -> list[tuple[ProviderId, ResumeRequest]]:
    """Return, for each other hub, requests to push its `limit` newest partitions again from our counters."""
    found = []
    for domain in providers.every_domain(tx):
        if domain != ours:
            number = providers.provider_row(tx, domain) or 0
            newest = partitions.newest_of_hub(tx, number, limit=limit)
            # A counter beyond LAST_COUNTER cannot be encoded; it must not end the job that asks.
            found += [
                (domain, ResumeRequest(group_id, key, min(counter, LAST_COUNTER))) for group_id, key, counter in newest
            ]
    return found
