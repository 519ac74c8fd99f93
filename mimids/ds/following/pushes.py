"""Making a push to a follower, and recording its answer (semantics: following-and-delivery).

These functions run inside a transaction. There is no queue: pending pushes are found by a query, from the partitions
that a follower follows and the next counter that it wants in each. That counter is written when the follower answers.
So a crash between a push and its answer pushes the same messages again, and the follower ignores them.

Dropped messages
    If retention dropped messages before they were pushed, an epoch without messages tells the follower at which
    counter the kept messages begin.

Suspended partitions
    A push can never succeed if a message is larger than the follower accepts, or if the follower wants a counter that
    is no longer kept. Then this partition, and no other, is suspended for this follower: it is not pushed any more. A
    resume ends the suspension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from mimids.ds.groups import pages
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import States
from mimids.errors import MimiError, NotFollowed, PeerFailed
from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage
from mimids.printable import printable
from mimids.store import follows, groups, messages, moved, partitions, peers, providers
from mimids.store.engine.transaction import Tx
from mimids.store.follows import Due
from mimids.store.groups import Group
from mimids.store.peers import PeerState
from mimids.wire.declare import decode
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, GroupId, ProviderId
from mimids.wire.messages import GroupInfoResponse, ResumeRequest, encode_push_request, pushed_epoch_parts

EPOCHS_IN_A_PUSH: Final = 64
REASON_CHARS: Final = 400  # stored of the reason for which a follower refused a push


@attrs.frozen
class Push:
    """One request to a follower; a page without messages tells the follower to skip the counters before that page."""

    epochs: tuple[pages.Page, ...]
    body: bytes
    groups: frozenset[GroupId]  # of the epochs
    first_stamp: int  # nothing with a lower stamp is due
    settles_up_to: int | None  # the cursor if the follower accepts everything and nothing more is due

    @property
    def messages(self) -> int:
        """Return the number of messages."""
        return sum(len(epoch.messages) for epoch in self.epochs)

    def is_partly_taken(self, answer: Sequence[Counter]) -> bool:
        """Tell whether the follower wants messages of this push, or earlier ones, again."""
        return any(wanted < each.counter + len(each.messages) for each, wanted in zip(self.epochs, answer, strict=True))


class Pushes:
    """Makes pushes and records their answers."""

    def __init__(self, states: States, recent: Recent) -> None:
        self._states = states
        self._recent = recent

    def next_push(self, peer: PeerState, octets: int, tx: Tx) -> Push | None:
        """Return the next request to a follower; None if nothing is due.

        The request has at least one message, and messages of further due partitions until `octets` are used up.
        """
        reached = moved.settled(tx)
        due = follows.due_partitions(tx, peer.provider, peer.next_stamp, limit=EPOCHS_IN_A_PUSH)
        epochs: list[pages.Page] = []
        parts: list[list[bytes]] = []
        pushed_groups: set[GroupId] = set()
        room = octets
        for each in due:
            if room <= 0:
                break
            partition = partitions.partition_by_row(tx, each.partition)
            epoch = pages.kept_page(
                tx,
                partition,
                each.next_counter,
                limit_octets=room,
                limit_messages=pages.MESSAGES_IN_A_PUSHED_EPOCH,
                recent=self._recent,
            )
            if epoch.counter > each.next_counter:
                epoch = epoch.without_messages()
            group = groups.group_by_row(tx, each.group)
            pushed_groups.add(group.group_id)
            epochs.append(epoch)
            parts.append(self._parts(tx, group, each, epoch))
            room -= sum(map(len, parts[-1]))
        if not epochs:
            return None
        whole = len(due) < EPOCHS_IN_A_PUSH and len(epochs) == len(due) and all(epoch.complete for epoch in epochs)
        body, first, settled = encode_push_request(parts), min(due[0].stamp, reached), reached if whole else None
        return Push(tuple(epochs), body, frozenset(pushed_groups), first, settled)

    def _parts(self, tx: Tx, group: Group, due: Due, epoch: pages.Page) -> list[bytes]:
        opening = None
        if due.needs_opening and (stored := partitions.group_info_of(tx, due.partition)) is not None:
            info = decode(MLSMessage, stored)
            opening = GroupInfoResponse(info, self._states.inferred_tree(tx, group, epoch.partition, info))
        return pushed_epoch_parts(group.group_id, due.masked_key, epoch.counter, opening, epoch.messages)

    def settle(self, peer: PeerState, push: Push, answer: Sequence[Counter], tx: Tx) -> PeerState | PeerFailed:
        """Write the counters that a follower answered; return `PeerFailed` if it accepted nothing of the push."""
        if all(epoch.messages and wanted == epoch.counter for epoch, wanted in zip(push.epochs, answer, strict=True)):
            return PeerFailed("the follower accepted nothing of a push")
        settled = [self._settle_epoch(tx, peer, each, wanted) for each, wanted in zip(push.epochs, answer, strict=True)]
        cursor = push.settles_up_to if all(settled) and push.settles_up_to is not None else push.first_stamp
        peers.note_success(tx, peer.provider, cursor)
        return attrs.evolve(peer, failures=0, next_stamp=max(peer.next_stamp, cursor))

    def _settle_epoch(self, tx: Tx, peer: PeerState, epoch: pages.Page, wanted: Counter) -> bool:
        """Write the counter that a follower wants next in a partition; return whether this epoch is done."""
        end = epoch.counter + len(epoch.messages)
        if wanted == NO_LONGER_FOLLOWED:
            # Only this partition: the follower may have presented the key of another one while it answered.
            follows.end_unless_presented(tx, peer.provider, epoch.partition.id, epoch.counter)
            return True
        wanted = Counter(min(wanted, end))
        if not epoch.messages and wanted < end:
            follows.suspend(
                tx, peer.provider, epoch.partition.id, "the message that the follower wants next is no longer kept"
            )
            return True
        follows.settle(tx, peer.provider, epoch.partition.id, wanted)
        self._follow_children(tx, peer, epoch)
        return wanted == end

    def _follow_children(self, tx: Tx, peer: PeerState, epoch: pages.Page) -> None:
        """Make a follower follow the partitions that pushed public commits opened, where the follower has members."""
        if ContentType.COMMIT not in epoch.kinds:
            return
        group = groups.group_by_row(tx, epoch.partition.group)
        end = Counter(epoch.counter + len(epoch.messages))
        for child in partitions.opened_between(tx, epoch.partition, epoch.counter, end):
            public = messages.is_public(tx, child.opened_by or 0)
            if public and self._states.has_leaf_of(tx, group, child, peer.domain):
                follows.follow(tx, peer.provider, child.id)

    def rewind(self, hub: ProviderId, follower: ProviderId, request: ResumeRequest, tx: Tx) -> MimiError | int:
        """Push a partition again from a counter on; return how many messages were pushed before and come again.

        A provider that does not follow the partition follows it from now on, if the known state has one of its users.
        Otherwise `NotFollowed` is returned. An unknown group or partition gets the same answer after the same SQL
        statements, so that a provider cannot find out which groups and partitions there are.
        """
        number = providers.ensure_provider(tx, follower)
        group = groups.find_group(tx, providers.ensure_provider(tx, hub), request.group_id)
        partition = partitions.find_partition(tx, group.hub if group else 0, [request.masked_partition_key])
        if partition is None or group is None or partition.group != group.id:
            follows.resume(tx, number, 0, request.counter)
            return NotFollowed()
        counter = min(request.counter, partition.next_counter)
        reached = follows.reached(tx, number, partition.id) or 0
        if not follows.resume(tx, number, partition.id, Counter(counter)):
            if partition.detached or not self._states.has_leaf_of(tx, group, partition, follower):
                return NotFollowed()
            follows.follow(tx, number, partition.id, next_counter=counter, needs_opening=True)
        peers.try_soon(tx, number)
        return max(0, reached - counter)


def suspend(provider: int, epoch: pages.Page, error: MimiError, tx: Tx) -> None:
    """Suspend a partition for a follower, because of an error that a retry cannot change."""
    follows.suspend(tx, provider, epoch.partition.id, printable(f"{error.code}: {error}", at_most=REASON_CHARS))
