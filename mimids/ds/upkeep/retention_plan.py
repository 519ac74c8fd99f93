"""Plans of retention: what may be deleted of one group, and when to look at it again.

A provider or a device *waits* for a message that the provider or device may still fetch. A provider waits if it follows
the partition. A device of ours waits for the messages from the counter with which it presented the partition's key. A
device also waits for all messages while it is in an earlier epoch, or if it takes part in the group and has no stored
position. The recipient of a Welcome to the partition waits until the Welcome is fetched. A provider or device without
activity for `message_days` is *silent*. A message without waiters is deleted when it is older than
`acknowledged_message_days`. A message for which only silent providers and devices wait is deleted when it is older than
`message_days`.

Tips are the open partitions at the ends of branches in use. They keep their state, and their proposals, which the next
commit may cover. An ancestor of a tip expires with its last message. A branch without messages expires if a branch
beside it has messages, because no member used it. Detached partitions expire `detached_days` after their last message,
even if somebody waits for their messages.

A plan is made in one pass over the tree. The partitions are put in an order in which all descendants of a partition
directly follow it. So a partition with all its descendants is a range. A waiter adds one at the start of its range and
subtracts one after its end; a running sum then tells how many wait for each partition.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate, zip_longest
from typing import Final

import attrs

from mimids.config import RetentionSettings
from mimids.store import cursors, participations, retention
from mimids.store.cursors import DeviceCursor
from mimids.store.engine.transaction import Tx
from mimids.store.retention import Follow, Kept
from mimids.values import DAY_MILLISECONDS, Milliseconds
from mimids.wire.ids import Counter

LOOKS: Final = 30  # plans of a group with waiters in each `acknowledged_message_days`


@attrs.frozen
class DeletableMessages:
    """Messages of a partition to delete: counters from `start` to below `end`, if accepted before `before`."""

    start: Counter
    end: Counter
    before: Milliseconds


@attrs.frozen
class RetentionPlan:
    """The deletions in one partition."""

    partition: int
    messages: tuple[DeletableMessages, ...]
    applications_only: bool
    expires: bool  # the partition itself expires, once no message is left in it


@attrs.frozen
class GroupPlan:
    """The deletions in one group."""

    partitions: tuple[RetentionPlan, ...]
    cursors: tuple[DeviceCursor, ...]  # superseded by later ones of the same device
    due_at: Milliseconds  # when to plan the group again
    waits: bool  # old messages are kept only because somebody waits for them


@attrs.frozen
class Cutoffs:
    """Times: data older than its cutoff is due for deletion."""

    now: Milliseconds
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
            now,
            before(keep.acknowledged_message_days),
            silent,
            before(keep.detached_days),
            before(keep.repeat_days),
            before(keep.welcome_days),
        )

    @property
    def look_again_after(self) -> Milliseconds:
        """Return how long to wait before a group is planned again if nothing expires sooner: at most a day."""
        return Milliseconds(min(DAY_MILLISECONDS, (self.now - self.acknowledged) // LOOKS))


class _Tree:
    """A group's partitions in tree order: each is directly followed by all of its descendants."""

    def __init__(self, partitions: Iterable[Kept]) -> None:
        self.order: list[Kept] = []
        self.place: dict[int, int] = {}  # by the partition's row
        self.children: defaultdict[int | None, list[Kept]] = defaultdict(list)
        known = {each.id: each for each in partitions}
        for each in known.values():
            self.children[each.parent if each.parent in known else None].append(each)
        self.ends: list[int] = []  # by place: the place after its last descendant
        waiting: list[Kept | int] = list(reversed(self.children[None]))
        while waiting:
            following = waiting.pop()
            if isinstance(following, int):
                self.ends[following] = len(self.order)
                continue
            place = self.place[following.id] = len(self.order)
            self.order.append(following)
            self.ends.append(place)
            waiting += [place, *reversed(self.children[following.id])]
        self._in_use = {
            parent
            for parent, children in self.children.items()
            if parent is not None and any(each.next_counter and not each.terminated for each in children)
        }

    def is_abandoned(self, partition: Kept) -> bool:
        """Tell whether an open branch carries no messages while an open sibling does."""
        return not partition.next_counter and partition.parent in self._in_use

    def is_tip(self, partition: Kept) -> bool:
        """Tell whether a branch in use ends with this partition."""
        if partition.terminated or partition.detached or self.is_abandoned(partition):
            return False
        return all(child.terminated for child in self.children[partition.id])


class _Waiting:
    """For each place in the tree, the first counter for which anybody waits, and the same without silent waiters."""

    def __init__(self, tree: _Tree) -> None:
        self.by_anybody = [each.next_counter for each in tree.order]
        self.by_present = list(self.by_anybody)
        self._everything_by_anybody = [0] * (len(tree.order) + 1)  # changes of how many wait for all messages
        self._everything_by_present = [0] * (len(tree.order) + 1)

    def add(self, place: int, counter: Counter, *, silent: bool) -> None:
        """Add a waiter for messages of one partition from `counter` on."""
        self.by_anybody[place] = min(self.by_anybody[place], counter)
        if not silent:
            self.by_present[place] = min(self.by_present[place], counter)

    def add_range(self, start: int, end: int, *, silent: bool, waiters: int = 1) -> None:
        """Add waiters for all messages of the partitions from `start` to below `end`; `waiters` -1 removes one."""
        for changes in (self._everything_by_anybody, *(() if silent else (self._everything_by_present,))):
            changes[start] += waiters
            changes[end] -= waiters

    def finish(self) -> None:
        """Set the first counter to 0 at the places where somebody waits for all messages."""
        for firsts, changes in (
            (self.by_anybody, self._everything_by_anybody),
            (self.by_present, self._everything_by_present),
        ):
            for place, waiters in enumerate(accumulate(changes[:-1])):
                if waiters:
                    firsts[place] = Counter(0)


def plan_group(tx: Tx, group: int, hub: int, *, ours: int, cutoffs: Cutoffs) -> GroupPlan:
    """Plan the deletions of a group; `ours` is the row of this provider, `hub` the row of the group's hub."""
    tree = _Tree(retention.kept_of_group(tx, group))
    shown = cursors.cursors_of_group(tx, group)
    waiting, everywhere = _Waiting(tree), (0, len(tree.order))
    for partition in retention.welcomed_partitions(tx, group):
        place = tree.place[partition]
        waiting.add_range(place, tree.ends[place], silent=False)
    if hub != ours and not shown:  # pushed here because of a Welcome, and no device has fetched messages yet
        waiting.add_range(*everywhere, silent=True)
    for joined_at in participations.without_cursor(tx, group):  # it is not known which messages such a device has
        waiting.add_range(*everywhere, silent=joined_at < cutoffs.silent)
    _add_followers(tree, waiting, retention.follows_behind(tx, group), cutoffs)
    stale = _add_devices(tree, waiting, shown, cutoffs)
    waiting.finish()
    plans, due_at, waits = [], cutoffs.now + cutoffs.look_again_after, False
    for place, each in enumerate(tree.order):
        plan = _plan(tree, each, waiting.by_anybody[place], waiting.by_present[place], cutoffs)
        if plan is not None:
            plans.append(plan)
        if not each.expired and not each.detached:
            due_at = min([due_at, *_next_ends(each, cutoffs)])
            waits = (
                waits
                or (each.active_at < cutoffs.acknowledged and waiting.by_anybody[place] < each.next_counter)
                or (each.kept_from < each.next_counter and each.oldest_at < cutoffs.acknowledged)
            )
    return GroupPlan(tuple(plans), tuple(stale), Milliseconds(max(due_at, cutoffs.now + 1)), waits)


def _next_ends(partition: Kept, cutoffs: Cutoffs) -> Iterable[int]:
    """Yield the times at which the oldest message of a partition, and the partition itself, may expire."""
    keep = cutoffs.now - cutoffs.acknowledged
    for at in (partition.oldest_at, partition.active_at):
        if at >= cutoffs.acknowledged:
            yield at + keep + 1


def _add_followers(tree: _Tree, waiting: _Waiting, follows: Sequence[Follow], cutoffs: Cutoffs) -> None:
    """Add followers as waiters. `follows` has all partitions of each follower that lacks messages in any of them."""
    of_provider: defaultdict[int, list[tuple[int, Follow]]] = defaultdict(list)
    for each in follows:
        of_provider[each.provider].append((tree.place[each.partition], each))
    for positions in of_provider.values():
        covered = 0  # below this place, the follower is behind in an ancestor
        for place, each in sorted(positions, key=lambda position: position[0]):
            silent = each.failing_since is not None and each.failing_since < cutoffs.silent
            waiting.add(place, each.next_counter, silent=silent)
            if place < covered:  # the follower follows this partition too, from a counter of its own
                waiting.add_range(place, place + 1, silent=silent, waiters=-1)
            elif each.next_counter < tree.order[place].next_counter:
                # The follower's next message may be the commit that leads to one of these descendants.
                covered = tree.ends[place]
                waiting.add_range(place + 1, covered, silent=silent)


def _add_devices(tree: _Tree, waiting: _Waiting, shown: Sequence[DeviceCursor], cutoffs: Cutoffs) -> list[DeviceCursor]:
    """Add devices as waiters; return the cursors that are superseded by a later cursor of the same device."""
    positions = sorted(
        ((each, tree.place[each.partition]) for each in shown), key=lambda position: (position[0].device, position[1])
    )
    stale = []
    for (each, place), following in zip_longest(positions, positions[1:]):
        partition = tree.order[place]
        if following is not None and following[0].device == each.device and following[1] < tree.ends[place]:
            # The device is in a later epoch already.
            if each.next_counter >= partition.next_counter or each.seen_at < cutoffs.acknowledged:
                stale.append(each)
            else:
                waiting.add(place, each.next_counter, silent=False)
            continue
        silent = each.seen_at < cutoffs.silent
        waiting.add(place, each.next_counter, silent=silent)
        waiting.add_range(place + 1, tree.ends[place], silent=silent)
    return stale


def _plan(
    tree: _Tree, partition: Kept, by_anybody: Counter, by_present: Counter, cutoffs: Cutoffs
) -> RetentionPlan | None:
    if partition.expired or partition.detached:
        return None
    tip = tree.is_tip(partition)
    ends = ((by_anybody, cutoffs.acknowledged), (by_present, cutoffs.silent))
    deletable = tuple(
        DeletableMessages(partition.kept_from, end, before)
        for end, before in ends
        if partition.kept_from < end and partition.oldest_at < before
    )
    silently = partition.active_at < cutoffs.silent and by_present >= partition.next_counter
    at_once = partition.active_at < cutoffs.acknowledged and by_anybody >= partition.next_counter
    # A terminated branch may be opened again, so it keeps its state for longer.
    expires = not tip and (silently or (at_once and not partition.terminated))
    return RetentionPlan(partition.id, deletable, tip, expires) if deletable or expires else None
