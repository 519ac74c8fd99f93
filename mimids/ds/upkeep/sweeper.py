"""The sweeper deletes expired data every `[retention] sweep_seconds` (semantics: limits-and-retention).

A sweep covers KeyPackages, tokens and claims; old reports; Welcomes; messages and partitions
(`ds.upkeep.retention`); branches that the operator's rule terminates. Once a day, and after a sweep that expired
partitions, it also deletes nodes of ratchet trees that no partition refers to any more.

Each page is a transaction of its own, so other writes never wait long, and a sweep that is interrupted continues with
the next one. When the disk takes no writes, the sweeper tries again soon: its first successful write is also what makes
the store count as writable again.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import attrs
import trio

from mimids.config import Config
from mimids.ds.groups import branches
from mimids.ds.groups.recent import Recent
from mimids.ds.key_packages import stock
from mimids.ds.notifier import OUTGOING, Notifier
from mimids.ds.ports import Clock
from mimids.ds.upkeep.retention import PAGE_ROWS, RetentionSweep
from mimids.errors import StorageUnavailable
from mimids.store import partitions, providers, reports, trees, welcomes
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import drop_setting, put_setting
from mimids.telemetry import Log
from mimids.values import Milliseconds

DAY_MILLISECONDS: Final = 86_400_000
FULL_DISK_SECONDS: Final = 10.0  # until the next attempt when the disk takes no writes
TRIAL_OCTETS: Final = 65_536  # written and deleted again, to learn whether the disk takes writes
_TRIAL: Final = "room"  # the name of a setting that exists only within the trial's transaction
TREE_PAGE_ROWS: Final = 1000
FORKS: Final = 100  # branches looked at on one snapshot


@attrs.frozen
class SweeperStatistics:
    """Counts since the start."""

    sweeps: int
    messages: int  # whose content was deleted
    partitions: int  # that expired
    welcomes: int  # that nobody accepted in time
    terminated: int  # branches that the operator's rule terminated


class Sweeper:
    """Deletes expired data; `run` is the job."""

    def __init__(
        self, config: Config, store: Store, clock: Clock, notifier: Notifier, recent: Recent, log: Log
    ) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._notifier = notifier
        self._recent = recent
        self._log = log
        self._trees_swept_at = Milliseconds(0)
        self._sweeps = self._messages = self._partitions = self._welcomes = self._terminated = 0

    def statistics(self) -> SweeperStatistics:
        """Return the counts so far."""
        return SweeperStatistics(self._sweeps, self._messages, self._partitions, self._welcomes, self._terminated)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep every `[retention] sweep_seconds`, forever."""
        task_status.started()
        seconds: float = self._config.retention.sweep_seconds
        while True:
            await self._clock.sleep(seconds)
            try:
                await self.sweep()
                seconds = self._config.retention.sweep_seconds
            except StorageUnavailable:
                self._log.warning("sweep failed: the disk takes no writes")
                seconds = min(FULL_DISK_SECONDS, self._config.retention.sweep_seconds)

    async def sweep(self) -> None:
        """Delete everything that has expired by now; raise `StorageUnavailable` if the disk takes no writes."""
        now = self._clock.now()
        window = self._config.tokens.abuse_window_hours * 3600
        await self._store.write(_try_disk)
        await self._store.write(lambda tx: stock.sweep(tx, now, abuse_window_seconds=window))
        reports_before = Milliseconds(now - self._config.retention.report_days * DAY_MILLISECONDS)
        await self._store.write(lambda tx: reports.drop_older(tx, reports_before))
        ours = await self._store.write(lambda tx: providers.ensure_provider(tx, self._config.provider))
        messages = RetentionSweep(self._store, self._config.retention, now, ours=ours)
        await self._sweep_welcomes(messages.cutoffs.welcomes, now)
        await self._terminate_branches(ours, now)
        try:
            await messages.run()
        finally:
            if messages.emptied:
                self._recent.clear()
            self._messages += messages.emptied
            self._partitions += messages.expired
        if messages.expired or now >= self._trees_swept_at + DAY_MILLISECONDS:
            await self._store.write(trees.begin_sweep)
            self._trees_swept_at = now
        while await self._store.write(partial(trees.sweep_page, limit=TREE_PAGE_ROWS)):
            pass
        self._sweeps += 1

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
    """Write TRIAL_OCTETS and delete them again, so that `/readyz` answers by whether the disk has room."""
    put_setting(tx, _TRIAL, bytes(TRIAL_OCTETS))
    drop_setting(tx, _TRIAL)
