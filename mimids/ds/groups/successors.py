"""Groups that another group replaces, because their branches were all terminated (semantics: replaced-groups).

The server stores which group replaces another one, and tells readers. No device joins the other group by itself: a
person has to decide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from mimids.errors import GroupOpen, GroupReplaced, Malformed
from mimids.store import groups, moved, open_branches, providers, tips
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group, Successor
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.ids import MaskedPartitionKey, nameable_group_id, provider_id

PROBLEM_OCTETS: Final = 2048  # of a problem that another provider wrote; a longer problem is not read


def check_not_replaced(group: Group) -> None:
    """Raise `GroupReplaced` if another group replaces this one."""
    if group.successor is not None:
        raise GroupReplaced(base64url(group.successor.group_id), group.successor.hub)


def successor_in(problem: bytes) -> Successor | None:
    """Return the group that the JSON of a `group-replaced` problem names; None for anything else."""
    if len(problem) > PROBLEM_OCTETS:
        return None
    try:
        members = json.loads(problem)
    except (ValueError, RecursionError):
        return None
    if not isinstance(members, dict) or members.get("type") != GroupReplaced.problem_type():
        return None
    return named_successor(members)


def named_successor(members: Mapping[str, object]) -> Successor | None:
    """Return the group that the members `group_id` and `hub` of a JSON object name, or None."""
    group_id, hub = members.get("group_id"), members.get("hub")
    if not isinstance(group_id, str) or not isinstance(hub, str):
        return None
    try:
        return Successor(nameable_group_id(from_base64url(group_id)), provider_id(hub))
    except ValueError:
        return None


def replace_group(tx: Tx, group: Group, successor: Successor) -> list[MaskedPartitionKey]:
    """Record which group replaces a group of ours; return the partitions whose readers must be told.

    A repeat changes nothing. Raises `GroupReplaced` if a different group replaces it already, `GroupOpen` while a
    branch is not terminated, and `Malformed` if the group would replace itself.
    """
    if group.successor == successor:
        return []
    check_not_replaced(group)
    if successor == Successor(group.group_id, providers.domain_of(tx, group.hub)):
        raise Malformed("a group cannot replace itself")
    if open_branches.has_open_branch(tx, group.id):
        raise GroupOpen("terminate all branches of the group first")
    return note_replaced(tx, group, successor)


def note_replaced(tx: Tx, group: Group, successor: Successor) -> list[MaskedPartitionKey]:
    """Record that a hub says its group is replaced; return the partitions whose readers must be told."""
    groups.replace(tx, group.id, successor)
    ends = tips.ends(tx, group.id)
    moved.touch(tx, ends)
    return list(ends.values())
