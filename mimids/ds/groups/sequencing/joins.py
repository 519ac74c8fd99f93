"""Finding the partition that an external commit is for: its sender has no partition key yet."""

from __future__ import annotations

from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.states import is_joinable
from mimids.ds.groups.successors import check_not_replaced
from mimids.errors import BranchTerminated, UnknownGroup, WrongEpoch
from mimids.mls.framing import MLSMessage
from mimids.store import messages, partitions
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.wire.declare import decode


def partition_of_join(tx: Tx, mls: MlsJudge, group: Group, message: MLSMessage, digest: bytes) -> Partition:
    """Return the partition whose state verifies an external commit, or else the newest partition of unknown state.

    (semantics: joining-from-outside)

    Raises `WrongEpoch` if no partition has the epoch of the commit, `BranchTerminated` if all partitions of that epoch
    are terminated, and `GroupReplaced`. In a linear group, raises `UnknownGroup` if nobody can have made the commit
    with a GroupInfo of this hub.
    """
    found = partitions.attached_of_epoch(tx, group.id, message.epoch or 0)
    for partition in found:  # a repeat is answered before termination is checked (semantics: sequencing)
        if messages.find_repeat(tx, partition.id, digest) is not None:
            return partition
    check_not_replaced(group)
    usable = [partition for partition in found if not partition.terminated]
    if group.linear and usable:
        # A commit that cannot be verified would keep the members from committing (semantics: linear-groups).
        usable = [partition for partition in usable if partition.state is not None or _may_be_joined(tx, partition)]
        if not usable:
            raise UnknownGroup
    unknown = [partition for partition in usable if partition.state is None]
    for partition in usable:
        if partition.state is not None and mls.signature_fits(tx, group, partition, message):
            return partition
    if unknown:
        return unknown[0]
    if usable:
        return usable[0]  # all states are known and none fits: judging refuses the signature
    if found:
        raise BranchTerminated
    raise WrongEpoch("no open partition has that epoch: fetch the GroupInfo again, and join with it")


def _may_be_joined(tx: Tx, partition: Partition) -> bool:
    """Tell whether a partition has a GroupInfo with which a joiner can make an external commit."""
    stored = partitions.group_info_of(tx, partition.id)
    return stored is not None and is_joinable(decode(MLSMessage, stored))
