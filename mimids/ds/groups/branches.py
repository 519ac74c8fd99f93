"""Terminating a branch of a group, and opening it again (semantics: partitions-and-forks).

These functions run inside a transaction, for the operator and for the configured rule. After the commit, the caller
notifies the job that sends Welcomes.
"""

from __future__ import annotations

from typing import Final

from mimids.config import GroupSettings
from mimids.store import partitions, welcomes
from mimids.store.engine.transaction import Tx
from mimids.store.partitions import Partition
from mimids.values import Milliseconds

DAY_MILLISECONDS: Final = 86_400_000


def terminate(tx: Tx, partition: Partition, why: str, now: Milliseconds) -> int:
    """Terminate a branch: the partition and all below it. Return how many partitions were open before.

    Their unsent Welcomes are cancelled. The first branch beside it that is still open counts as the first from now on:
    its held Welcomes are released (semantics: welcomes-and-leaving).
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


def terminate_by_rule(tx: Tx, fork: Partition, rule: GroupSettings, now: Milliseconds) -> int:
    """Terminate branches under a partition by the configured rule; return how many partitions were terminated.

    The first branch whose partition carried a commit stays; if none did, the first branch. The others are terminated
    once they are older than `terminate_age_days`, and after `terminate_childless_days` if they carried no commit while
    another branch did. The amount of traffic does not count: an attacker can produce traffic.
    """
    branches = [each for each in partitions.children(tx, fork.id) if not each.terminated and not each.detached]
    if len(branches) < 2:
        return 0
    continued = {each.id for each in branches if partitions.children(tx, each.id)}
    stays = next((each for each in branches if each.id in continued), branches[0])
    ended = 0
    for each in branches:
        age = (now - each.opened_at) / DAY_MILLISECONDS
        if each is stays:
            continue
        childless = continued and each.id not in continued
        if rule.terminate_childless_days and childless and age > rule.terminate_childless_days:
            ended += terminate(tx, each, f"carried no commit for {rule.terminate_childless_days} days", now)
        elif rule.terminate_age_days and age > rule.terminate_age_days:
            ended += terminate(tx, each, f"another branch is open for {rule.terminate_age_days} days", now)
    return ended


def undo_termination(tx: Tx, partition: Partition) -> int:
    """Open a terminated branch again; return how many partitions that opened.

    If the branch is part of another terminated branch, its partitions stay terminated with that one. Cancelled
    Welcomes stay cancelled: their KeyPackages may be gone, and members may have added the devices again.
    """
    return partitions.undo_termination(tx, partition.id)
