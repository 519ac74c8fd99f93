"""Which partition an external commit is for: its sender holds no partition key yet."""

from __future__ import annotations

from mimids.ds.groups.judging import MlsJudge
from mimids.errors import BranchTerminated, WrongEpoch
from mimids.mls.framing import MLSMessage
from mimids.store import messages, partitions
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition


def partition_of_join(tx: Tx, mls: MlsJudge, group: Group, message: MLSMessage, digest: bytes) -> Partition:
    """Return the partition in whose state an external commit verifies, else the newest one of unknown state.

    (semantics: joining-from-outside)

    Raises `BranchTerminated` if all partitions of its epoch are terminated, and `WrongEpoch` if there is none.
    """
    found = [
        partition
        for partition in partitions.partitions_of_epoch(tx, group.id, message.epoch or 0)
        if not partition.detached
    ]
    for partition in found:  # a repeat is answered before termination is checked (semantics: sequencing)
        if messages.find_repeat(tx, partition.id, digest) is not None:
            return partition
    usable = [partition for partition in found if not partition.terminated]
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
    raise WrongEpoch("no open partition has that epoch")
