"""The sweeper deletes expired data every `[retention] sweep_seconds` (semantics: limits-and-retention).

A sweep covers KeyPackages, tokens and claims; old reports and audit entries; Welcomes; messages and partitions
(`ds.upkeep.retention`); branches that the operator's rule terminates. Once a day it also deletes the digests of old
repeats, and the nodes of ratchet trees that no partition refers to any more (`ds.upkeep.tree_sweep`).

Each page is a transaction of its own, so other writes never wait long, and if a sweep is interrupted, the next one does
the rest. When the disk takes no writes, the sweeper tries again soon. Its first successful write also makes the store
count as writable again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import attrs
import trio

from mimids.config import Config
from mimids.ds.elapsed import JUMP_MILLISECONDS, Moment, PeerDate, advance, first_seen, peers_agree
from mimids.ds.groups import branches
from mimids.ds.groups.recent import Recent
from mimids.ds.key_packages import stock
from mimids.ds.notifier import OUTGOING, SWEEP, Notifier, Waiter
from mimids.ds.ports import Clock
from mimids.ds.upkeep.pacing import Pacing
from mimids.ds.upkeep.retention import PAGE_ROWS, RetentionSweep
from mimids.ds.upkeep.tree_sweep import sweep_trees
from mimids.errors import StorageUnavailable
from mimids.store import audit, overview, participations, partitions, providers, reports, seen_time, trees, welcomes
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import drop_setting, put_setting
from mimids.store.seen_time import SeenTime
from mimids.telemetry import Log
from mimids.values import DAY_MILLISECONDS, Milliseconds
from mimids.wire.ids import ProviderId

FULL_DISK_SECONDS: Final = 10.0  # until the next attempt when the disk takes no writes
TRIAL_OCTETS: Final = 65_536  # written and deleted again, to find out whether the disk takes writes
_TRIAL: Final = "room"  # the name of a setting that exists only within the trial's transaction
FORKS: Final = 100  # branches that are read on one snapshot


@attrs.frozen
class SweeperStatistics:
    """Counts since the start."""

    sweeps: int
    messages: int  # messages whose content was deleted
    partitions: int  # partitions that expired
    welcomes: int  # Welcomes that no provider accepted in time
    terminated: int  # branches that the operator's rule terminated


class Sweeper:
    """Deletes expired data; `run` is the job."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        notifier: Notifier,
        recent: Recent,
        log: Log,
        *,
        peer_dates: Callable[[], Mapping[ProviderId, PeerDate]] = dict,
    ) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._notifier = notifier
        self._recent = recent
        self._log = log
        self._peer_dates = peer_dates
        self._waiter = Waiter()
        self._first = self._moment()  # what the clocks showed before the first sweep
        self._reported: int | None = None  # the jump of the clock that was logged last
        self._sweeps = self._messages = self._partitions = self._welcomes = self._terminated = 0

    def statistics(self) -> SweeperStatistics:
        """Return the counts so far."""
        return SweeperStatistics(self._sweeps, self._messages, self._partitions, self._welcomes, self._terminated)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep every `[retention] sweep_seconds`, and after `sweep_soon`, forever."""
        with suppress(StorageUnavailable):
            await self._see_time()
        self._notifier.add(self._waiter, SWEEP)
        task_status.started()
        seconds: float = self._config.retention.sweep_seconds
        while True:
            await self._waiter.wait_at_most(self._clock, seconds)
            try:
                await self.sweep()
                seconds = self._config.retention.sweep_seconds
            except StorageUnavailable:
                self._log.warning("sweep failed: the disk takes no writes")
                seconds = min(FULL_DISK_SECONDS, self._config.retention.sweep_seconds)

    def sweep_soon(self) -> None:
        """Make the job sweep now, or once more if it is sweeping; the job may run in another process."""
        self._waiter.notify(SWEEP)
        self._notifier.notify(SWEEP)

    async def sweep(self) -> None:
        """Delete everything that has expired by now; raise `StorageUnavailable` if the disk takes no writes."""
        await self._store.write(_try_disk)
        now = await self._see_time()
        window = self._config.tokens.abuse_window_hours * 3600
        await self._in_pages(lambda tx: stock.sweep(tx, now, abuse_window_seconds=window, limit=PAGE_ROWS))
        reports_before = Milliseconds(now - self._config.retention.report_days * DAY_MILLISECONDS)
        await self._in_pages(lambda tx: reports.drop_older(tx, reports_before, limit=PAGE_ROWS))
        audit_before = Milliseconds(now - self._config.retention.audit_days * DAY_MILLISECONDS)
        await self._in_pages(lambda tx: audit.drop_older(tx, audit_before, limit=PAGE_ROWS))
        ours = await self._store.write(lambda tx: providers.ensure_provider(tx, self._config.provider))
        messages = RetentionSweep(self._store, self._config.retention, now, ours=ours)
        await self._sweep_welcomes(messages.cutoffs.welcomes, now)
        left_before = messages.cutoffs.welcomes
        await self._in_pages(lambda tx: participations.forget_left(tx, left_before, limit=PAGE_ROWS))
        await self._terminate_branches(ours, now)
        try:
            await messages.run()
        finally:
            if messages.emptied:
                self._recent.clear()
            self._messages += messages.emptied
            self._partitions += messages.expired
        swept_at = await self._store.read(trees.last_sweep)
        if swept_at is None or abs(now - swept_at) >= DAY_MILLISECONDS:
            await messages.forget_repeats()
            await sweep_trees(self._store, now, Pacing(self._store).pause)
        await self._store.separate_rows()
        await self._store.truncate_log()
        self._sweeps += 1

    def _moment(self) -> Moment:
        return Moment(self._clock.now(), self._clock.running(), self._clock.boot())

    async def _see_time(self) -> Milliseconds:
        """Return the time to sweep by: the clock's or, after a jump of the clock, an earlier time (`ds.elapsed`)."""
        moment = self._moment()
        agree = peers_agree(self._peer_dates(), moment)

        def look(tx: Tx) -> SeenTime:
            seen = seen_time.load(tx) or first_seen(self._first, overview.newest_moment(tx))
            seen = advance(seen, moment, confirmed=seen_time.take_confirmation(tx), peers_agree=agree)
            seen_time.save(tx, seen)
            return seen

        seen = await self._store.write(look)
        if abs(seen.ahead) <= JUMP_MILLISECONDS:
            self._reported = None
        elif self._reported is None or abs(self._reported - seen.ahead) > JUMP_MILLISECONDS:
            self._reported = seen.ahead
            self._log.warning(
                "the clock jumped: expired data is kept until the time is confirmed; see mimids clock show",
                ahead_seconds=seen.ahead // 1000,
            )
        return min(moment.now, seen.believed)

    async def _in_pages(self, work: Callable[[Tx], int]) -> None:
        """Repeat `work`, which returns how many rows it changed, with pauses, while it changes PAGE_ROWS or more."""
        pacing = Pacing(self._store)
        while await self._store.write(work) >= PAGE_ROWS:
            await pacing.pause()

    async def _sweep_welcomes(self, before: Milliseconds, now: Milliseconds) -> None:
        held_before = Milliseconds(now - self._config.welcome.hold_days * DAY_MILLISECONDS)
        self._welcomes += await self._store.write(
            lambda tx: welcomes.expire_unsent(tx, held_before=held_before, due_before=before)
        )
        while await self._store.write(lambda tx: welcomes.sweep_page(tx, before, limit=PAGE_ROWS)):
            pass

    async def _terminate_branches(self, ours: int, now: Milliseconds) -> None:
        """Terminate branches by the operator's rule, if it is configured (semantics: partitions-and-forks)."""
        rule = self._config.group
        days = [each for each in (rule.terminate_age_days, rule.terminate_childless_days) if each]
        if not days:
            return
        before, after = Milliseconds(now - min(days) * DAY_MILLISECONDS), 0

        def find(tx: Tx) -> list[partitions.Partition]:
            return partitions.forks_of_hub(tx, ours, before, after=after, limit=FORKS)

        while forks := await self._store.read(find):
            for fork in forks:
                self._terminated += await self._store.write(
                    lambda tx, fork=fork: branches.terminate_by_rule(tx, fork, rule, now)  # type: ignore[misc]
                )
            after = forks[-1].id
        self._notifier.notify(OUTGOING)  # Welcomes to the branch beside a terminated one may be sent now


def _try_disk(tx: Tx) -> None:
    """Write TRIAL_OCTETS and delete them again, so that `/readyz` tells whether the disk has room."""
    put_setting(tx, _TRIAL, bytes(TRIAL_OCTETS))
    drop_setting(tx, _TRIAL)
