"""What may be dropped, and when: messages that nobody waits for, and what hangs on them.

(semantics: limits-and-retention)

Whoever may still come for a message *waits* for it: a provider that follows its partition; a device of ours that
presented the partition's key, from the counter it asked for; one that has come no further than an epoch before it; and
whoever a Welcome to it is for that was not taken yet. One that has shown nothing for `message_days` is *silent*. A
message goes when it is older than `acknowledged_message_days` and nobody waits for it, or older than `message_days`
and only silent ones do: with nobody away for so long, nothing is dropped that anybody still waits for.

Tips, the open partitions that branches in use end with, keep their state, and their proposals, which the next commit
may cover. What lies behind them expires with its last message. A branch that carries nothing, beside one that is used,
expires with it: nobody went there. Detached partitions expire `detached_days` after their last message, whoever waits.

Plans are made on a snapshot and carried out a page at a time, each a transaction of its own: a stop loses nothing and
costs only that the rest is planned anew. Whoever begins to wait between the two finds it dropped, as a moment later.
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

PAGE_ROWS: Final = 500  # in one transaction
GROUPS_AT_ONCE: Final = 100  # listed on one snapshot
DAY_MILLISECONDS: Final = 86_400_000


@attrs.frozen
class Emptying:
    """Messages of a partition that may go: from `start` to below `end`, if accepted before `before`."""

    start: Counter
    end: Counter
    before: Milliseconds


@attrs.frozen
class RetentionPlan:
    """What may go of one partition."""

    partition: int
    messages: tuple[Emptying, ...]
    applications_only: bool
    expires: bool  # the whole partition, once no message is left in it


@attrs.frozen
class GroupPlan:
    """What may go of one group."""

    partitions: tuple[RetentionPlan, ...]
    cursors: tuple[DeviceCursor, ...]  # that say nothing any more


@attrs.frozen
class Cutoffs:
    """What is older than these moments is due."""

    acknowledged: Milliseconds
    silent: Milliseconds
    detached: Milliseconds
    repeats: Milliseconds
    welcomes: Milliseconds

    @classmethod
    def of(cls, keep: RetentionSettings, now: Milliseconds) -> Cutoffs:
        """Return those of a configuration at `now`."""

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
    """Up to where a partition's messages are waited for by nobody; and by none but silent ones."""

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
        """Yield the partitions that lead to one, without it."""
        here = self.partitions.get(partition)
        while here is not None and here.parent is not None:
            yield here.parent
            here = self.partitions.get(here.parent)

    def below(self, partition: int) -> Iterable[int]:
        """Yield the partitions that one leads to, without it."""
        waiting = list(self.children[partition])
        while waiting:
            each = waiting.pop()
            yield each.id
            waiting += self.children[each.id]

    def is_abandoned(self, partition: Kept) -> bool:
        """Tell whether an open branch carries nothing, and another one beside it does."""
        beside = () if partition.parent is None else self.children[partition.parent]
        return not partition.next_counter and any(each.next_counter and not each.terminated for each in beside)

    def is_tip(self, partition: Kept) -> bool:
        """Tell whether an open branch that may go on ends here."""
        if partition.terminated or partition.detached or self.is_abandoned(partition):
            return False
        return all(child.terminated for child in self.children[partition.id])


def plan_group(tx: Tx, group: int, hub: int, *, ours: int, cutoffs: Cutoffs) -> GroupPlan:
    """Say what may go of a group; `ours` is the row of this provider, `hub` that of the group's."""
    tree = _Tree(retention.kept_of_group(tx, group))
    shown = cursors.cursors_of_group(tx, group)
    waiting = {each.id: _Waiting(each.next_counter, each.next_counter) for each in tree.partitions.values()}
    for partition in retention.welcomed_partitions(tx, group):
        for further in (partition, *tree.below(partition)):
            waiting[further].add(Counter(0), silent=False)
    if hub != ours and not shown:  # pushed here for a Welcome, and no device has come yet
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
        if each.next_counter < tree.partitions[each.partition].next_counter:  # what comes next leads it on
            for further in tree.below(each.partition):
                if (each.provider, further) not in known:
                    waiting[further].add(Counter(0), silent=silent)


def _add_devices(
    tree: _Tree, waiting: dict[int, _Waiting], shown: Sequence[DeviceCursor], cutoffs: Cutoffs
) -> list[DeviceCursor]:
    """Let devices wait; return the cursors that say nothing any more."""
    passed = {(each.device, above) for each in shown for above in tree.above(each.partition)}
    stale = []
    for each in shown:
        partition = tree.partitions[each.partition]
        if (each.device, each.partition) in passed:  # it has gone on from here
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
    emptying = tuple(
        Emptying(partition.kept_from, end, before)
        for end, before in ends
        if partition.kept_from < end and partition.oldest_at < before
    )
    silently = partition.active_at < cutoffs.silent and waiting.by_present >= partition.next_counter
    at_once = partition.active_at < cutoffs.acknowledged and waiting.by_anybody >= partition.next_counter
    # An ended branch may be opened again: it keeps its state for longer.
    expires = not tip and (silently or (at_once and not partition.terminated))
    return RetentionPlan(partition.id, emptying, tip, expires) if emptying or expires else None


class Sweep:
    """Carries out what is due, page by page; `store` is this provider's own."""

    def __init__(self, store: Store, keep: RetentionSettings, now: Milliseconds, *, ours: int) -> None:
        self._store = store
        self._now = now
        self._ours = ours
        self.cutoffs = Cutoffs.of(keep, now)
        self.emptied = 0  # messages
        self.expired = 0  # partitions

    async def run(self) -> None:
        """Do all that is due; raise `StorageUnavailable` where the disk takes nothing."""
        await self._detached()
        await self._groups()
        await self._unmatched_groups()
        await self._repeats()

    async def _groups(self) -> None:
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
            for emptying in each.messages:
                await self._empty(each.partition, emptying, applications_only=each.applications_only)
            if each.expires:
                self.expired += await self._store.write(
                    partial(retention.expire_partition, partition=each.partition, now=self._now)
                )

    async def _empty(self, partition: int, emptying: Emptying, *, applications_only: bool) -> None:
        start: Counter | None = emptying.start
        while start is not None and start < emptying.end:
            emptied, start = await self._store.write(
                partial(
                    retention.empty_page,
                    partition=partition,
                    start=start,
                    end=min(emptying.end, start + PAGE_ROWS),
                    before=emptying.before,
                    applications_only=applications_only,
                )
            )
            self.emptied += emptied

    async def _detached(self) -> None:
        after = 0
        while found := await self._store.read(
            partial(retention.old_detached, before=self.cutoffs.detached, after=after, limit=PAGE_ROWS)
        ):
            for row, next_counter, expired in found:
                if expired:
                    await self._store.write(partial(retention.remove_detached, partition=row))
                    continue
                everything = Emptying(Counter(0), next_counter, self._now)
                await self._empty(row, everything, applications_only=False)
                self.expired += await self._store.write(
                    partial(retention.expire_partition, partition=row, now=self._now)
                )
            after = found[-1][0]

    async def _unmatched_groups(self) -> None:
        cutoff = self.cutoffs.welcomes
        group: int | None = 0
        while group is not None:
            group = await self._store.read(partial(retention.unmatched_group, before=cutoff, after=group))
            while group is not None and await self._store.write(
                partial(retention.drop_group_page, group=group, limit=PAGE_ROWS)
            ):
                pass

    async def _repeats(self) -> None:
        after: int | None = 0
        while after is not None:
            after = await self._store.write(
                partial(retention.forget_repeats, before=self.cutoffs.repeats, after=after, limit=PAGE_ROWS)
            )
