"""What a push to a follower contains, and what its answer changes (semantics: following-and-delivery).

These functions run inside a transaction. There is no queue: pending pushes are found by a query over the partitions
that a follower follows and the counter that it wants next of each. That counter is written when the follower answers.
So a crash between a push and its answer pushes the same messages again, and the follower ignores them.

Dropped messages
    If retention dropped messages before they were pushed, an epoch without messages tells the follower at which
    counter the kept messages begin.

Suspended partitions
    If a push can never succeed (a message larger than the follower accepts, a wanted counter that is no longer kept),
    the partition is suspended for this follower and the others go on. A resume ends that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from mimids.ds.groups import pages
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import States
from mimids.errors import MimiError, NotFollowed, PeerFailed, UnknownGroup, UnknownPartition
from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage
from mimids.store import follows, groups, messages, partitions, peers, providers
from mimids.store.engine.transaction import Tx
from mimids.store.follows import Due
from mimids.store.peers import PeerState
from mimids.wire.declare import decode
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, ProviderId
from mimids.wire.messages import GroupInfoResponse, ResumeRequest, encode_push_request, pushed_epoch_parts

EPOCHS_IN_A_PUSH: Final = 64


@attrs.frozen
class Push:
    """One request to a follower; a page without messages moves the follower on to its counter."""

    epochs: tuple[pages.Page, ...]
    body: bytes
    settles_up_to: int | None  # the global sequence number that is reached if the follower accepts everything

    @property
    def messages(self) -> int:
        """Return the number of messages."""
        return sum(len(epoch.messages) for epoch in self.epochs)


class Pushes:
    """Makes pushes and settles them."""

    def __init__(self, states: States, recent: Recent) -> None:
        self._states = states
        self._recent = recent

    def next_push(self, peer: PeerState, octets: int, tx: Tx) -> Push | None:
        """Return the next request to a follower; None if nothing is due.

        It has messages of as many partitions as are due and fit into `octets`, and at least one message.
        """
        reached = messages.last_seq(tx)
        due = follows.due_partitions(tx, peer.provider, peer.cursor_seq, limit=EPOCHS_IN_A_PUSH)
        epochs: list[pages.Page] = []
        parts: list[list[bytes]] = []
        room = octets
        for each in due:
            if room <= 0:
                break
            partition = partitions.partition_by_row(tx, each.partition)
            epoch = pages.kept_page(tx, partition, each.next_counter, limit_octets=room, recent=self._recent)
            if epoch.counter > each.next_counter:
                epoch = epoch.without_messages()
            epochs.append(epoch)
            parts.append(self._parts(tx, each, epoch))
            room -= sum(map(len, parts[-1]))
        if not epochs:
            return None
        whole = len(due) < EPOCHS_IN_A_PUSH and len(epochs) == len(due) and all(epoch.complete for epoch in epochs)
        return Push(tuple(epochs), encode_push_request(parts), reached if whole else None)

    def _parts(self, tx: Tx, due: Due, epoch: pages.Page) -> list[bytes]:
        group = groups.group_by_row(tx, due.group)
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
        cursor = push.settles_up_to if all(settled) else None
        peers.note_success(tx, peer.provider, cursor)
        return attrs.evolve(peer, failures=0, cursor_seq=max(peer.cursor_seq, cursor or 0))

    def _settle_epoch(self, tx: Tx, peer: PeerState, epoch: pages.Page, wanted: Counter) -> bool:
        """Write what a follower wants next of a partition; return whether nothing of this epoch is left to push."""
        end = epoch.counter + len(epoch.messages)
        if wanted == NO_LONGER_FOLLOWED:
            # Only this partition: the follower may have presented the key of another one while it answered.
            follows.end(tx, peer.provider, epoch.partition.id)
            return True
        wanted = Counter(min(wanted, end))
        if not epoch.messages and wanted < end:
            follows.suspend(tx, peer.provider, epoch.partition.id, "the counter that it wants next is no longer kept")
            return True
        follows.settle(tx, peer.provider, epoch.partition.id, wanted)
        self._follow_children(tx, peer, epoch)
        return wanted == end

    def _follow_children(self, tx: Tx, peer: PeerState, epoch: pages.Page) -> None:
        """Make a follower follow the partitions that the pushed public commits opened, if it has members there."""
        if ContentType.COMMIT not in epoch.kinds:
            return
        group = groups.group_by_row(tx, epoch.partition.group)
        for child in partitions.children(tx, epoch.partition.id):
            public = messages.is_public(tx, child.opened_by or 0)
            if public and self._states.has_leaf_of(tx, group, child, peer.domain):
                follows.follow(tx, peer.provider, child.id)

    def rewind(self, hub: ProviderId, follower: ProviderId, request: ResumeRequest, tx: Tx) -> MimiError | None:
        """Push again from a counter on, and start to push if the known state has a leaf of the follower's users.

        Returns `UnknownGroup`, `UnknownPartition` or `NotFollowed` where that is refused.
        """
        group = groups.find_group(tx, providers.ensure_provider(tx, hub), request.group_id)
        if group is None:
            return UnknownGroup()
        partition = partitions.find_partition(tx, group.hub, [request.masked_partition_key])
        if partition is None or partition.group != group.id:
            return UnknownPartition()
        number = providers.ensure_provider(tx, follower)
        counter = min(request.counter, partition.next_counter)
        if not follows.resume(tx, number, partition.id, Counter(counter)):
            if partition.detached or not self._states.has_leaf_of(tx, group, partition, follower):
                return NotFollowed()
            follows.follow(tx, number, partition.id, next_counter=counter, needs_opening=True)
        peers.try_soon(tx, number)
        return None


def follow_again(provider: int, epoch: pages.Page, tx: Tx) -> None:
    """Make a follower follow a partition from this epoch's counter on, with an opening."""
    follows.follow(tx, provider, epoch.partition.id, next_counter=epoch.counter, needs_opening=True)


def suspend(provider: int, epoch: pages.Page, error: MimiError, tx: Tx) -> None:
    """Suspend a partition for a follower, because of an error that a retry cannot change."""
    follows.suspend(tx, provider, epoch.partition.id, f"{error.code}: {error}")
