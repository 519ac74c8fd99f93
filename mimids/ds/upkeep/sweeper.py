"""The sweeper: drops what is over (semantics: limits-and-retention), a page at a time; a stop loses nothing.

Every `[retention] sweep_seconds` it looks through all that has an end: KeyPackages and tokens, Welcomes, messages and
partitions (`ds.upkeep.retention`), branches by the operator's rule, and, once a day or after partitions went, the
nodes of
ratchet trees that no partition refers to any more. Each page is a transaction of its own, so that nobody waits for
long; what a stop leaves undone is found again. A disk that takes nothing is tried again soon: its first success is
also what tells that it takes writes again.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import attrs
import trio

from mimids.ds.groups import branches
from mimids.ds.key_packages import stock
from mimids.ds.notifier import OUTGOING
from mimids.ds.services import Services
from mimids.ds.upkeep.retention import PAGE_ROWS, Sweep
from mimids.errors import StorageUnavailable
from mimids.store import partitions, providers, reports, trees, welcomes
from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import drop_setting, put_setting
from mimids.values import Milliseconds

DAY_MILLISECONDS: Final = 86_400_000
FULL_DISK_SECONDS: Final = 10.0  # until a disk that took nothing is tried again
ROOM_OCTETS: Final = 65_536
_ROOM: Final = "room"  # a setting that is never there
TREE_PAGE_ROWS: Final = 1000
FORKS: Final = 100  # looked at on one snapshot


@attrs.frozen
class SweeperStatistics:
    """What was dropped since the start."""

    sweeps: int
    messages: int
    partitions: int
    welcomes: int  # given up on
    terminated: int  # partitions, by rule


class Sweeper:
    """What is due now and then; `run` is the job."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.store
        self._config = services.config
        self._trees_swept_at = Milliseconds(0)
        self._sweeps = self._messages = self._partitions = self._welcomes = self._terminated = 0

    def statistics(self) -> SweeperStatistics:
        """Return the counts so far."""
        return SweeperStatistics(self._sweeps, self._messages, self._partitions, self._welcomes, self._terminated)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep every `[retention] sweep_seconds`, for ever."""
        task_status.started()
        seconds: float = self._config.retention.sweep_seconds
        while True:
            await self._services.clock.sleep(seconds)
            try:
                await self.sweep()
                seconds = self._config.retention.sweep_seconds
            except StorageUnavailable:
                self._services.telemetry.log.warning("nothing swept: the disk takes no writes")
                seconds = min(FULL_DISK_SECONDS, self._config.retention.sweep_seconds)

    async def sweep(self) -> None:
        """Drop all that is over now; raise `StorageUnavailable` where the disk takes nothing."""
        now = self._services.clock.now()
        window = self._config.tokens.abuse_window_hours * 3600
        await self._store.write(_try_disk)
        await self._store.write(lambda tx: stock.sweep(tx, now, abuse_window_seconds=window))
        reports_before = Milliseconds(now - self._config.retention.report_days * DAY_MILLISECONDS)
        await self._store.write(lambda tx: reports.drop_older(tx, reports_before))
        ours = await self._store.write(lambda tx: providers.ensure_provider(tx, self._config.provider))
        due = Sweep(self._store, self._config.retention, now, ours=ours)
        await self._sweep_welcomes(due.cutoffs.welcomes, now)
        await self._end_branches(ours, now)
        try:
            await due.run()
        finally:
            if due.emptied:
                self._services.recent.clear()
            self._messages += due.emptied
            self._partitions += due.expired
        if due.expired or now >= self._trees_swept_at + DAY_MILLISECONDS:
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

    async def _end_branches(self, ours: int, now: Milliseconds) -> None:
        """End branches by the operator's rule, if there is one (semantics: partitions-and-forks)."""
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
        self._services.notifier.notify(OUTGOING)  # the next sibling's Welcomes may go out


def _try_disk(tx: Tx) -> None:
    """Take some room and give it back: a disk that has it takes writes, which is what `/readyz` tells."""
    put_setting(tx, _ROOM, bytes(ROOM_OCTETS))
    drop_setting(tx, _ROOM)


async def run(services: Services, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Sweep for ever, and let metrics show what was dropped."""
    sweeper = Sweeper(services)
    services.telemetry.watch("sweeper", sweeper.statistics)
    await sweeper.run(task_status=task_status)
