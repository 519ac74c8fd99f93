"""Which groups of other hubs this provider follows. Groups are keyed by (hub, group_id)."""

from __future__ import annotations

from mimids.store import groups, participations, partitions, welcomes
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.ids import MLS10, CipherSuite, Counter, GroupId
from mimids.wire.messages import PushedEpoch


def add_followed_group(tx: Tx, hub: int, group_id: GroupId, now: Milliseconds) -> Group:
    """Add a group of which only the id is known; its suite is 0 until a GroupInfo names it."""
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


def find_followed_group(tx: Tx, hub: int, group_id: GroupId, now: Milliseconds, *, asked: bool) -> Group | None:
    """Return a group whose messages we want, or None.

    A group that all our devices have left is not wanted. An unknown group is added if we `asked` the hub for it, or if
    an accepted Welcome of that hub is waiting for its group; otherwise it is not wanted. For None, the answer to a
    push is `NO_LONGER_FOLLOWED` (`Intake.append`).
    """
    group = groups.find_group(tx, hub, group_id)
    if group is None:
        if asked:
            return add_followed_group(tx, hub, group_id, now)
        row = welcomes.match_group(tx, hub, lambda: add_followed_group(tx, hub, group_id, now).id)
        return None if row is None else groups.group_by_row(tx, row)
    ours = participations.participants(tx, group.id)
    return None if ours.left and not ours.present else group


def exceeds_unmatched_bytes(tx: Tx, group: Group, epoch: PushedEpoch, limit: int) -> bool:
    """Tell whether a hub pushed more than `limit` octets of groups that no device of ours takes part in.

    If it has not, the epoch's octets are counted. If it has, the partition is not followed until a device presents its
    key. Answering with the counter wanted next instead would make the hub push again and again, and delay everything
    else that it has for us.
    """
    if participations.participants(tx, group.id).present:
        return False
    known = partitions.find_partition(tx, group.hub, [epoch.masked_partition_key])
    counter = Counter(0) if known is None else known.next_counter
    octets = sum(
        len(each.message.encoded)
        + (0 if each.commit is None or each.commit.group_info is None else len(each.commit.group_info.encoded))
        for each in epoch.epoch.messages[max(0, counter - epoch.counter) :]
    )
    if epoch.opening is not None and (known is None or known.state is None):
        octets += len(epoch.opening.group_info.encoded)
    if groups.unmatched_bytes(tx, group.hub) + octets > limit:
        return True
    groups.add_unmatched(tx, group.id, octets)
    return False
