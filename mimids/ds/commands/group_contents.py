"""Commands on the contents of a group: list its members, show its octets, delete it."""

from __future__ import annotations

from typing import Any, Final

from mimids.ds.commands.declare import Argument, Command, Context, Effect, Hints, JsonObject
from mimids.ds.commands.groups import GROUP, HUB, find_group, group_name
from mimids.ds.groups.states import States
from mimids.errors import NotFound
from mimids.mls.code_points import CredentialType
from mimids.mls.identity import user_of
from mimids.mls.knowledge import Derived, state_of
from mimids.mls.leaf_node import LeafNode
from mimids.store import group_deletion, group_storage, groups, tips
from mimids.store.engine.transaction import Tx
from mimids.store.overview import GroupSummary
from mimids.wire.base64url import base64url

BRANCHES: Final = 16  # whose members are listed
PARTITIONS: Final = 200  # whose storage is listed


def _members(tx: Tx, _: Context, *, group: str, hub: str | None = None) -> JsonObject:
    """Return the members at the end of each open branch, where the public state is known."""
    found = find_group(tx, group, hub)
    row, states = groups.group_by_row(tx, found.row), States()
    branches = []
    for tip in tips.open_tips(tx, found.row, limit=BRANCHES):
        knowledge = states.knowledge(tx, row, tip)
        state = state_of(knowledge)
        known = "unknown" if state is None else "derived" if isinstance(knowledge, Derived) else "claimed"
        members = [] if state is None else [_member(index, leaf) for index, leaf in state.members()]
        branches.append({"partition": tip.masked_key.hex(), "epoch": tip.epoch, "state": known, "members": members})
    return {**_named(found), "branches": branches}


def _member(index: int, leaf: LeafNode) -> JsonObject:
    user = user_of(leaf.credential)
    content = leaf.credential.content
    device = None
    if user is not None and leaf.credential.credential_type is CredentialType.BASIC and isinstance(content, bytes):
        device = content.decode("ascii", "replace").partition("/d/")[2] or None
    return {"leaf": index, "user_id": None if user is None else user.decode(), "device": device}


def _storage(tx: Tx, _: Context, *, group: str, hub: str | None = None) -> JsonObject:
    found = find_group(tx, group, hub)
    parts, shared = group_storage.partitions_of(tx, found.row), group_storage.shared_of(tx, found.row)
    return {
        **_named(found),
        "messages": sum(each.messages for each in parts),
        "message_octets": sum(each.message_octets for each in parts),
        "group_info_octets": sum(each.group_info_octets for each in parts),
        "tree_octets": shared.tree_octets,
        "welcome_octets": shared.welcome_octets,
        "oldest_message_at": min((each.oldest_at for each in parts if each.oldest_at is not None), default=None),
        "newest_message_at": max((each.newest_at for each in parts if each.newest_at is not None), default=None),
        "largest": [
            {
                "partition": each.masked_key.hex(),
                "epoch": each.epoch,
                "messages": each.messages,
                "message_octets": each.message_octets,
                "group_info_octets": each.group_info_octets,
            }
            for each in parts[:PARTITIONS]
        ],
    }


def _delete(tx: Tx, context: Context, *, group: str, hub: str | None = None) -> JsonObject:
    found = find_group(tx, group, hub)
    deleted = group_deletion.delete_group(tx, found.row, context.now, hosted=found.hub == context.config.provider)
    return {
        **_named(found),
        "partitions": deleted.partitions,
        "messages": deleted.messages,
        "welcomes_dropped": deleted.welcomes,
        "followers": list(deleted.followers),
    }


def _named(group: GroupSummary) -> dict[str, Any]:
    return {"group_id": base64url(group.group_id), "name": group_name(group.group_id), "hub": group.hub}


_NAMED_EXAMPLE: Final = '"group_id": "bWltaTovL2EuZXhhbXBsZS9nLzE", "name": "mimi://a.example/g/1", "hub": "a.example"'
_NO_GROUP: Final[Hints] = {NotFound: "run `mimids group list` to see the groups"}
_ARGUMENTS: Final[tuple[Argument, ...]] = (GROUP, HUB)

GROUP_CONTENTS: Final = (
    Command(
        name="group members",
        summary="List the members of a group at the end of each open branch, where its public state is known.",
        arguments=_ARGUMENTS,
        work=_members,
        answer=f'{{{_NAMED_EXAMPLE}, "branches": [{{"partition": "8c5a", "epoch": 4, "state": "derived",'
        ' "members": [{"leaf": 0, "user_id": "mimi://a.example/u/alice", "device": "phone"}]}]}',
        example="mimids group members mimi://a.example/g/1",
        writes=False,
        hints=_NO_GROUP,
    ),
    Command(
        name="group storage",
        summary="Show how many octets a group takes: messages, GroupInfos, ratchet trees, waiting Welcomes.",
        arguments=_ARGUMENTS,
        work=_storage,
        answer=f'{{{_NAMED_EXAMPLE}, "messages": 17, "message_octets": 8704, "group_info_octets": 1200,'
        ' "tree_octets": 4100, "welcome_octets": 0, "oldest_message_at": 1764000000000,'
        ' "newest_message_at": 1764000900000, "largest": [{"partition": "8c5a", "epoch": 4, "messages": 9,'
        ' "message_octets": 4608, "group_info_octets": 1200}]}',
        example="mimids group storage mimi://a.example/g/1",
        writes=False,
        hints=_NO_GROUP,
    ),
    Command(
        name="group delete",
        summary="Delete a group here with all its messages. Followers keep their copies and are not told.",
        arguments=_ARGUMENTS,
        asks="Delete the group {group} here, with all its messages?",
        work=_delete,
        answer=f'{{{_NAMED_EXAMPLE}, "partitions": 5, "messages": 17, "welcomes_dropped": 0,'
        ' "followers": ["b.example"]}',
        example="mimids group delete mimi://a.example/g/1 --yes",
        effects=(Effect.MESSAGES, Effect.SWEEP),
        hints=_NO_GROUP,
    ),
)
