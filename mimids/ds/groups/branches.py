"""Terminating a branch of a group, and opening it again (semantics: partitions-and-forks).

These functions run inside a transaction, for the operator and for the configured rule. After the commit, the caller
notifies the job that sends Welcomes.
"""

from __future__ import annotations

from mimids.config import GroupSettings
from mimids.errors import Malformed
from mimids.store import groups, open_branches, partitions, terminations, welcomes
from mimids.store.engine.transaction import Tx
from mimids.store.partitions import Partition
from mimids.values import DAY_MILLISECONDS, Milliseconds


def terminate(tx: Tx, partition: Partition, why: str, now: Milliseconds) -> int:
    """Terminate a branch: a partition and all below it. Return how many of these partitions were open before.

    Their unsent Welcomes are cancelled. The first sibling branch that is still open is treated as the first branch from
    then on, so its held Welcomes are released (semantics: welcomes-and-leaving).
    """
    ended = terminations.terminate(tx, partition.id, why, now)
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

    One branch stays: the first branch whose partition carried a commit, or the first branch if no partition carried a
    commit. The other branches are terminated once they are older than `terminate_age_days`. A branch that carried no
    commit, while another branch did, is terminated after `terminate_childless_days`. The amount of traffic is not
    considered, because an attacker can produce traffic.
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
    """Open a terminated branch again; return how many partitions were opened.

    If the branch lies inside another terminated branch, its partitions stay terminated as part of the other branch.
    Cancelled Welcomes stay cancelled: their KeyPackages may be gone, and members may have added the devices again.

    Raises `Malformed` if another group replaces this one, and if a linear group would get a second branch.
    """
    group = groups.group_by_row(tx, partition.group)
    if group.successor is not None:
        raise Malformed("another group replaces this one, so its branches stay terminated")
    if group.linear and open_branches.has_sibling_in_force(tx, partition):
        raise Malformed("the group is linear, and a branch beside this one is open: terminate that branch first")
    return terminations.undo_termination(tx, partition.id)
