"""Which groups of other hubs this provider follows. Groups are keyed by (hub, group_id)."""

from __future__ import annotations

from typing import Final

from mimids.ds.following.pending_requests import LeftGroups
from mimids.store import departures, groups, participations, partitions, requested_partitions, welcomes
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.ids import LAST_COUNTER, MLS10, NO_LONGER_FOLLOWED, CipherSuite, Counter, GroupId
from mimids.wire.messages import PushedEpoch

UNMATCHED_GROUPS: Final = 10_000  # groups of one hub, at most, in which no device of ours takes part


def add_followed_group(tx: Tx, hub: int, group_id: GroupId, now: Milliseconds) -> Group:
    """Add a group of which only the id is known; its suite is 0 until a GroupInfo names the suite."""
    return groups.add_group(
        tx,
        hub=hub,
        group_id=group_id,
        version=MLS10,
        cipher_suite=CipherSuite(0),
        creation_digest=None,
        creator=None,
        now=now,
    )


def take_part(tx: Tx, hub: int, group_id: GroupId, device: DeviceRow, now: Milliseconds) -> Group:
    """Record that a device of ours takes part in a group; add the group if it is new."""
    group = groups.find_group(tx, hub, group_id)
    if group is None:
        group = add_followed_group(tx, hub, group_id, now)
    participations.take_part(tx, group.id, device, now)
    return group


def answer_if_unstored(epoch: PushedEpoch) -> Counter | None:
    """Return the answer to an epoch of an unknown partition if nothing of the epoch can be stored, else None."""
    count = len(epoch.epoch.messages)
    if epoch.counter + count > LAST_COUNTER:
        return NO_LONGER_FOLLOWED
    if count:
        return Counter(0) if epoch.counter else None  # the messages before this counter are missing
    return Counter(0) if not epoch.counter and epoch.opening is None else None


class WantedGroups:
    """Tells which epochs of a hub's groups are wanted, in one transaction."""

    def __init__(self, tx: Tx, hub: int, left: LeftGroups, now: Milliseconds, *, unmatched_octets: int) -> None:
        """`unmatched_octets` bounds the octets that are stored of groups in which no device of ours takes part."""
        self._tx = tx
        self._hub = hub
        self._left = left
        self._now = now
        self._limit = unmatched_octets
        self._unmatched: tuple[int, int] | None = None  # octets and groups of the hub, once they were counted

    def group_of(self, epoch: PushedEpoch) -> Group | Counter:
        """Return the group of an epoch if we want its messages, or else the answer to the epoch.

        A push of a partition that a device requested makes the device take part in the group. If we accepted a
        KeyPackage reference for a Welcome of the hub, and the hub has not pushed the Welcome's group yet, then an
        unknown group is added, and a group that all our devices have left is wanted again. Such a group is wanted until
        it is dropped, and its octets are bounded. Other unknown groups are not wanted. Groups that all our devices have
        left are not wanted either, unless the leaf of a removed device still has to leave.
        """
        group = groups.find_group(self._tx, self._hub, epoch.group_id)
        if group is not None and participations.participants(self._tx, group.id).present:
            return group
        device = self._requester(epoch)
        if group is None and (answer := answer_if_unstored(epoch)) is not None:
            is_wanted = device is not None or welcomes.is_group_expected(self._tx, self._hub)
            return answer if is_wanted else NO_LONGER_FOLLOWED
        if device is not None:
            return take_part(self._tx, self._hub, epoch.group_id, device, self._now)
        group = self._admit(epoch) if group is None else self._followed(group, epoch)
        if group is None or self._exceeds_unmatched_octets(group, epoch):
            return NO_LONGER_FOLLOWED
        return group

    def _requester(self, epoch: PushedEpoch) -> DeviceRow | None:
        """Return the device that requested the partition of an epoch, unless it has left the group since."""
        requested = requested_partitions.find(self._tx, self._hub, epoch.masked_partition_key)
        if requested is None or self._left.has_left(requested, self._hub, epoch.group_id):
            return None
        return requested.device

    def _admit(self, epoch: PushedEpoch) -> Group | None:
        """Add an unknown group if we accepted a KeyPackage reference whose group the hub has not pushed yet."""
        if self._count_unmatched()[1] >= UNMATCHED_GROUPS:
            return None
        row = welcomes.match_group(
            self._tx,
            self._hub,
            lambda: add_followed_group(self._tx, self._hub, epoch.group_id, self._now).id,
        )
        return None if row is None else groups.group_by_row(self._tx, row)

    def _followed(self, group: Group, epoch: PushedEpoch) -> Group | None:
        ours = participations.participants(self._tx, group.id)
        if not ours.left or departures.is_awaited(self._tx, group.id, self._now):
            return group
        # If a device is in the group again, the hub begins to push a new partition after it has delivered a Welcome.
        known = partitions.find_partition(self._tx, self._hub, [epoch.masked_partition_key])
        if known is not None or epoch.opening is None:
            return None
        if welcomes.match_group(self._tx, self._hub, lambda: group.id) is None:
            return None
        participations.begin_again(self._tx, group.id, self._now)
        return group

    def _exceeds_unmatched_octets(self, group: Group, epoch: PushedEpoch) -> bool:
        """Tell whether a hub exceeds the limit on pushed octets of groups in which no device of ours takes part.

        If the limit is not exceeded, the epoch's octets are counted. If it is exceeded, the push must be answered with
        `NO_LONGER_FOLLOWED`, and the partition is not followed until a device presents its key. If we answered with the
        next counter, the hub would push again and again, which would delay everything else that it has for us.
        """
        octets = self._new_octets(group, epoch)
        before, count = self._count_unmatched()
        if before + octets > self._limit:
            return True
        groups.add_unmatched(self._tx, group.id, octets)
        self._unmatched = before + octets, count + 1  # the real numbers may be lower
        return False

    def _new_octets(self, group: Group, epoch: PushedEpoch) -> int:
        known = partitions.find_partition(self._tx, group.hub, [epoch.masked_partition_key])
        counter = Counter(0) if known is None else known.next_counter
        octets = sum(
            len(each.message.encoded)
            + (0 if each.commit is None or each.commit.group_info is None else len(each.commit.group_info.encoded))
            for each in epoch.epoch.messages[max(0, counter - epoch.counter) :]
        )
        if epoch.opening is not None and (known is None or known.state is None):
            octets += len(epoch.opening.group_info.encoded)
        return max(octets, 1) if known is None else octets  # a group without octets would never be dropped

    def _count_unmatched(self) -> tuple[int, int]:
        if self._unmatched is None:
            self._unmatched = groups.unmatched_bytes(self._tx, self._hub)
        return self._unmatched
