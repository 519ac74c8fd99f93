"""Ending a branch of a group, and opening it again (semantics: partitions-and-forks).

Functions of a transaction, for the operator and for the rules that act in the operator's stead. Whoever commits wakes
what sends Welcomes.
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
    """End a partition and all below it that are not ended yet; return how many.

    Their unsent Welcomes are cancelled, and where the ended branch was the first, the next one that is open counts as
    first from now on: its Welcomes wait no longer (semantics: welcomes-and-leaving).
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
    """End what the operator's rule says of the branches under a partition; return how many partitions that concerns.

    The branch that stays is the first whose partition carried a commit, or the first of all where none did. The others
    end once they are older than `terminate_age_days`; with `terminate_childless_days` those that carried no commit
    until then, beside one that did. How much is said in a branch counts for nothing: an attacker can say much.
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
    """Open a branch again, unless one around it is ended too; return how many partitions that concerns.

    Cancelled Welcomes stay cancelled: their KeyPackages may be gone, and members may have added anew.
    """
    return partitions.undo_termination(tx, partition.id)
