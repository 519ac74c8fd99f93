"""Retention: which messages and partitions may be deleted, and when (semantics: limits-and-retention).

A provider or a device *waits* for a message if it may still fetch it. These wait: a provider that follows the
partition; a device of ours that presented the partition's key, from the counter it asked for; a device that has come no
further than an earlier epoch; and the recipient of a Welcome to the partition, until the Welcome is fetched. A provider
or device without activity for `message_days` is *silent*. A message is deleted when it is older than
`acknowledged_message_days` and has no waiter, or older than `message_days` and has only silent ones.

Tips are the open partitions at the ends of branches in use. They keep their state, and their proposals, which the next
commit may cover. An ancestor of a tip expires with its last message. A branch without messages, beside one with
messages, expires too, because no member went there. Detached partitions expire `detached_days` after their last
message, with or without waiters.

A plan is made on a snapshot and carried out a page at a time, each page in a transaction of its own. A stop loses
nothing: the rest is planned again. A device that begins to wait between the plan and its execution finds the message
deleted, just as if it had come a moment later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

import attrs

from mimids.config import RetentionSettings
from mimids.store import cursors, retention
from mimids.store.cursors import DeviceCursor
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.retention import Follow, Kept
from mimids.values import Milliseconds
from mimids.wire.ids import Counter

PAGE_ROWS: Final = 500  # deleted in one transaction
GROUPS_AT_ONCE: Final = 100  # listed on one snapshot
DAY_MILLISECONDS: Final = 86_400_000


@attrs.frozen
class DeletableMessages:
    """Messages of a partition to delete: counters from `start` to below `end`, if accepted before `before`."""

    start: Counter
    end: Counter
    before: Milliseconds


@attrs.frozen
class RetentionPlan:
    """What to delete of one partition."""

    partition: int
    messages: tuple[DeletableMessages, ...]
    applications_only: bool
    expires: bool  # the partition itself expires, once no message is left in it


@attrs.frozen
class GroupPlan:
    """What to delete of one group."""

    partitions: tuple[RetentionPlan, ...]
    cursors: tuple[DeviceCursor, ...]  # superseded by later ones of the same device


@attrs.frozen
class Cutoffs:
    """Times: data older than its cutoff is due for deletion."""

    acknowledged: Milliseconds
    silent: Milliseconds
    detached: Milliseconds
    repeats: Milliseconds
    welcomes: Milliseconds

    @classmethod
    def of(cls, keep: RetentionSettings, now: Milliseconds) -> Cutoffs:
        """Return the cutoffs of a configuration at `now`."""

        def before(days: int) -> Milliseconds:
            return Milliseconds(now - days * DAY_MILLISECONDS)

        silent = min(before(keep.message_days), before(keep.acknowledged_message_days))
        return cls(
            before(keep.acknowledged_message_days),
            silent,
            before(keep.detached_days),
            before(keep.repeat_days),
            before(keep.welcome_days),
        )


@attrs.define
class _Waiting:
    """The first counter of a partition with any waiter, and the first with a waiter that is not silent."""

    by_anybody: Counter
    by_present: Counter

    def add(self, counter: Counter, *, silent: bool) -> None:
        self.by_anybody = min(self.by_anybody, counter)
        if not silent:
            self.by_present = min(self.by_present, counter)


class _Tree:
    """A group's partitions, by parent."""

    def __init__(self, partitions: Iterable[Kept]) -> None:
        self.partitions = {each.id: each for each in partitions}
        self.children: defaultdict[int, list[Kept]] = defaultdict(list)
        for each in self.partitions.values():
            if each.parent is not None:
                self.children[each.parent].append(each)

    def above(self, partition: int) -> Iterable[int]:
        """Yield the ancestors of a partition, nearest first."""
        here = self.partitions.get(partition)
        while here is not None and here.parent is not None:
            yield here.parent
            here = self.partitions.get(here.parent)

    def below(self, partition: int) -> Iterable[int]:
        """Yield the descendants of a partition, in no particular order."""
        waiting = list(self.children[partition])
        while waiting:
            each = waiting.pop()
            yield each.id
            waiting += self.children[each.id]

    def is_abandoned(self, partition: Kept) -> bool:
        """Tell whether an open branch carries no messages while an open sibling does."""
        siblings = () if partition.parent is None else self.children[partition.parent]
        return not partition.next_counter and any(each.next_counter and not each.terminated for each in siblings)

    def is_tip(self, partition: Kept) -> bool:
        """Tell whether a branch in use ends with this partition."""
        if partition.terminated or partition.detached or self.is_abandoned(partition):
            return False
        return all(child.terminated for child in self.children[partition.id])


def plan_group(tx: Tx, group: int, hub: int, *, ours: int, cutoffs: Cutoffs) -> GroupPlan:
    """Plan the deletions of a group; `ours` is the row of this provider, `hub` the row of the group's hub."""
    tree = _Tree(retention.kept_of_group(tx, group))
    shown = cursors.cursors_of_group(tx, group)
    waiting = {each.id: _Waiting(each.next_counter, each.next_counter) for each in tree.partitions.values()}
    for partition in retention.welcomed_partitions(tx, group):
        for further in (partition, *tree.below(partition)):
            waiting[further].add(Counter(0), silent=False)
    if hub != ours and not shown:  # pushed here because of a Welcome, and no device has fetched anything yet
        for each in waiting.values():
            each.add(Counter(0), silent=True)
    _add_followers(tree, waiting, retention.follows_of_group(tx, group), cutoffs)
    stale = _add_devices(tree, waiting, shown, cutoffs)
    plans = (_plan(tree, each, waiting[each.id], cutoffs) for each in tree.partitions.values())
    return GroupPlan(tuple(plan for plan in plans if plan is not None), tuple(stale))


def _add_followers(tree: _Tree, waiting: dict[int, _Waiting], follows: Sequence[Follow], cutoffs: Cutoffs) -> None:
    known = {(each.provider, each.partition) for each in follows}
    for each in follows:
        silent = each.failing_since is not None and each.failing_since < cutoffs.silent
        waiting[each.partition].add(each.next_counter, silent=silent)
        if (
            each.next_counter < tree.partitions[each.partition].next_counter
        ):  # its next message may be the commit that leads to one of these
            for further in tree.below(each.partition):
                if (each.provider, further) not in known:
                    waiting[further].add(Counter(0), silent=silent)


def _add_devices(
    tree: _Tree, waiting: dict[int, _Waiting], shown: Sequence[DeviceCursor], cutoffs: Cutoffs
) -> list[DeviceCursor]:
    """Note what devices wait for; return the cursors that later ones of the same device supersede."""
    passed = {(each.device, above) for each in shown for above in tree.above(each.partition)}
    stale = []
    for each in shown:
        partition = tree.partitions[each.partition]
        if (each.device, each.partition) in passed:  # the device is in a later epoch already
            if each.next_counter >= partition.next_counter or each.seen_at < cutoffs.acknowledged:
                stale.append(each)
            else:
                waiting[each.partition].add(each.next_counter, silent=False)
            continue
        silent = each.seen_at < cutoffs.silent
        waiting[each.partition].add(each.next_counter, silent=silent)
        for further in tree.below(each.partition):
            waiting[further].add(Counter(0), silent=silent)
    return stale


def _plan(tree: _Tree, partition: Kept, waiting: _Waiting, cutoffs: Cutoffs) -> RetentionPlan | None:
    if partition.expired or partition.detached:
        return None
    tip = tree.is_tip(partition)
    ends = ((waiting.by_anybody, cutoffs.acknowledged), (waiting.by_present, cutoffs.silent))
    deletable = tuple(
        DeletableMessages(partition.kept_from, end, before)
        for end, before in ends
        if partition.kept_from < end and partition.oldest_at < before
    )
    silently = partition.active_at < cutoffs.silent and waiting.by_present >= partition.next_counter
    at_once = partition.active_at < cutoffs.acknowledged and waiting.by_anybody >= partition.next_counter
    # A terminated branch may be opened again, so it keeps its state for longer.
    expires = not tip and (silently or (at_once and not partition.terminated))
    return RetentionPlan(partition.id, deletable, tip, expires) if deletable or expires else None


class RetentionSweep:
    """Deletes everything that is due, page by page."""

    def __init__(self, store: Store, keep: RetentionSettings, now: Milliseconds, *, ours: int) -> None:
        self._store = store
        self._now = now
        self._ours = ours
        self.cutoffs = Cutoffs.of(keep, now)
        self.emptied = 0  # messages whose content was deleted
        self.expired = 0  # partitions that expired

    async def run(self) -> None:
        """Delete everything that is due; raise `StorageUnavailable` if the disk takes no writes."""
        await self._drop_detached()
        await self._sweep_groups()
        await self._drop_unmatched_groups()
        await self._forget_repeats()

    async def _sweep_groups(self) -> None:
        cutoff, after = self.cutoffs.acknowledged, 0
        while found := await self._store.read(
            partial(retention.groups_with_old, before=cutoff, after=after, limit=GROUPS_AT_ONCE)
        ):
            for group, hub in found:
                plan = await self._store.read(
                    partial(plan_group, group=group, hub=hub, ours=self._ours, cutoffs=self.cutoffs)
                )
                await self._carry_out(plan)
            after = found[-1][0]

    async def _carry_out(self, plan: GroupPlan) -> None:
        if plan.cursors:
            await self._store.write(lambda tx: cursors.forget(tx, plan.cursors))
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

    async def _drop_detached(self) -> None:
        after = 0
        while found := await self._store.read(
            partial(retention.old_detached, before=self.cutoffs.detached, after=after, limit=PAGE_ROWS)
        ):
            for row, next_counter, expired in found:
                if expired:
                    await self._store.write(partial(retention.remove_detached, partition=row))
                    continue
                everything = DeletableMessages(Counter(0), next_counter, self._now)
                await self._delete(row, everything, applications_only=False)
                self.expired += await self._store.write(
                    partial(retention.expire_partition, partition=row, now=self._now)
                )
            after = found[-1][0]

    async def _drop_unmatched_groups(self) -> None:
        cutoff = self.cutoffs.welcomes
        group: int | None = 0
        while group is not None:
            group = await self._store.read(partial(retention.unmatched_group, before=cutoff, after=group))
            while group is not None and await self._store.write(
                partial(retention.drop_group_page, group=group, limit=PAGE_ROWS)
            ):
                pass

    async def _forget_repeats(self) -> None:
        after: int | None = 0
        while after is not None:
            after = await self._store.write(
                partial(retention.forget_repeats, before=self.cutoffs.repeats, after=after, limit=PAGE_ROWS)
            )
