"""Retention: deletes messages and partitions that are no longer needed (semantics: limits-and-retention).

Each group has a time at which it is planned again (`ds.upkeep.retention_plan`). A sweep plans the groups that are due
and carries out each plan page by page, each page in a transaction of its own, with pauses. If the sweep is stopped, the
next sweep plans the remaining groups again. A message may be deleted even if a device begins to wait for it after the
plan was made.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from mimids.config import RetentionSettings
from mimids.ds.upkeep.pacing import Pacing
from mimids.ds.upkeep.retention_plan import Cutoffs, DeletableMessages, GroupPlan, plan_group
from mimids.store import cursors, group_deletion, retention
from mimids.store.engine.store import Store
from mimids.values import Milliseconds
from mimids.wire.ids import Counter

PAGE_ROWS: Final = 500  # deleted in one transaction
GROUPS_AT_ONCE: Final = 50  # listed on one snapshot, and settled in one transaction
_SPREAD: Final = 64  # groups are planned again at different times, up to a quarter earlier


class RetentionSweep:
    """Deletes everything that is due, page by page."""

    def __init__(self, store: Store, keep: RetentionSettings, now: Milliseconds, *, ours: int) -> None:
        self._store = store
        self._now = now
        self._ours = ours
        self._pacing = Pacing(store)
        self.cutoffs = Cutoffs.of(keep, now)
        self.emptied = 0  # messages whose content was deleted
        self.expired = 0  # partitions that expired

    async def run(self) -> None:
        """Delete everything that is due; raise `StorageUnavailable` if the disk takes no writes."""
        await self._drop_detached()
        await self._sweep_groups()
        await self._drop_unmatched_groups()
        await self._drop_deleted_groups()

    async def _sweep_groups(self) -> None:
        latest = Milliseconds(self._now + self.cutoffs.look_again_after)  # later only after the clock was set back
        while found := await self._store.read(
            partial(retention.due_groups, now=self._now, latest=latest, limit=GROUPS_AT_ONCE)
        ):
            due = []
            for group, hub in found:
                plan = await self._store.read(
                    partial(plan_group, group=group, hub=hub, ours=self._ours, cutoffs=self.cutoffs)
                )
                await self._carry_out(plan)
                due.append((self._spread(plan.due_at, group), plan.waits, group))
                await self._pacing.pause()
            await self._store.write(partial(retention.set_due, due=due))

    def _spread(self, due_at: Milliseconds, group: int) -> Milliseconds:
        """Return an earlier time for most groups, so that not all of them are planned in the same sweep."""
        wait = due_at - self._now
        return Milliseconds(due_at - wait * (group % _SPREAD) // (4 * _SPREAD))

    async def _carry_out(self, plan: GroupPlan) -> None:
        for start in range(0, len(plan.cursors), PAGE_ROWS):
            await self._store.write(partial(cursors.forget, cursors=plan.cursors[start : start + PAGE_ROWS]))
        for each in plan.partitions:
            for messages in each.messages:
                await self._delete(each.partition, messages, applications_only=each.applications_only)
            if each.expires:
                self.expired += await self._store.write(
                    partial(retention.expire_partition, partition=each.partition, now=self._now)
                )

    async def _delete(self, partition: int, messages: DeletableMessages, *, applications_only: bool) -> None:
        start: Counter | None = messages.start
        while start is not None and start < messages.end:
            emptied, start = await self._store.write(
                partial(
                    retention.empty_page,
                    partition=partition,
                    start=start,
                    end=min(messages.end, start + PAGE_ROWS),
                    before=messages.before,
                    applications_only=applications_only,
                )
            )
            self.emptied += emptied
            await self._pacing.pause()

    async def _drop_detached(self) -> None:
        after = (Milliseconds(0), 0)
        while found := await self._store.read(
            partial(retention.old_detached, before=self.cutoffs.detached, after=after, limit=PAGE_ROWS)
        ):
            for each in found:
                if each.expired:
                    await self._store.write(partial(retention.remove_detached, partition=each.id))
                    continue
                everything = DeletableMessages(Counter(0), each.next_counter, self._now)
                await self._delete(each.id, everything, applications_only=False)
                self.expired += await self._store.write(
                    partial(retention.expire_partition, partition=each.id, now=self._now)
                )
            after = (found[-1].opened_at, found[-1].id)

    async def _drop_unmatched_groups(self) -> None:
        cutoff = self.cutoffs.welcomes
        for group in await self._store.read(partial(retention.unmatched_groups, before=cutoff)):
            while await self._store.write(partial(retention.drop_group_page, group=group, limit=PAGE_ROWS)):
                await self._pacing.pause()

    async def _drop_deleted_groups(self) -> None:
        for group in await self._store.read(group_deletion.deleted_groups):
            while await self._store.write(partial(retention.drop_group_page, group=group, limit=PAGE_ROWS)):
                await self._pacing.pause()

    async def forget_repeats(self) -> None:
        """Delete the digests of repeats that are old enough. This reads all older messages, so call it once a day."""
        after = 0
        while found := await self._store.read(
            partial(retention.old_messages, before=self.cutoffs.repeats, after=after, limit=PAGE_ROWS)
        ):
            if emptied := [seq for seq, empty in found if empty]:
                await self._store.write(partial(retention.forget_repeats, emptied=emptied))
            after = found[-1][0]
            await self._pacing.pause()
