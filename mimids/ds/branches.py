"""Ending a branch of a group, and opening it again (DESIGN 6.5).

Functions of a transaction, for the operator and for the rules that act in the operator's stead. Whoever commits wakes
what sends Welcomes.
"""

from __future__ import annotations

from mimids.store import partitions, welcomes
from mimids.store.db import Tx
from mimids.store.partitions import Partition
from mimids.values import Milliseconds


def terminate(tx: Tx, partition: Partition, why: str, now: Milliseconds) -> int:
    """End a partition and all below it that are not ended yet; return how many.

    Their unsent Welcomes are cancelled, and where the ended branch was the first, the next one that is open counts as
    first from now on: its Welcomes wait no longer (6.11).
    """
    ended = partitions.terminate(tx, partition.id, why, now)
    waiting = [partition.id]
    while waiting:
        each = waiting.pop()
        welcomes.cancel_unsent(tx, each)
        waiting += [child.id for child in partitions.children(tx, each)]
    if partition.parent is not None:
        first = next((each for each in partitions.children(tx, partition.parent) if not each.terminated), None)
        if first is not None and first.held_welcomes:
            welcomes.release_held(tx, first.id)
    return ended


def undo_termination(tx: Tx, partition: Partition) -> int:
    """Open a branch again, unless one around it is ended too; return how many partitions that concerns.

    Cancelled Welcomes stay cancelled: their KeyPackages may be gone, and members may have added anew.
    """
    return partitions.undo_termination(tx, partition.id)
