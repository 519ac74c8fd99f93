"""Commands on groups: show the tree of partitions, terminate a branch, release a restored group."""

from __future__ import annotations

from contextlib import suppress
from string import hexdigits
from typing import Final

from mimids.ds.commands.declare import Argument, ArgumentKind, Command, Context, Effect, JsonObject
from mimids.ds.groups import branches
from mimids.ds.groups.successors import replace_group
from mimids.errors import GroupOpen, GroupReplaced, Malformed, NotFound
from mimids.store import groups, overview, partitions, providers, recoveries
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Successor
from mimids.store.overview import GroupSummary, PartitionSummary
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.ids import GroupId, ProviderId, nameable_group_id, provider_id

_KEY_DIGITS: Final = 6  # an argument with fewer digits of a masked key names no partition
_LIKE_NAMES: Final = 64  # partitions that are read to find the one that is named

GROUP: Final = Argument("group", "the group id, as text or in base64url", "mimi://a.example/g/1")
HUB: Final = Argument(
    "hub", "the group's hub, if two hubs have a group with this id", "a.example", required=False, flag="--hub"
)


def _list_groups(tx: Tx, _: Context) -> JsonObject:
    waits_for = {each.group: each.waits_for for each in recoveries.held(tx)}
    return {
        "groups": [
            {**_summary(group), "waits_for": list(waits_for.get(group.row, ()))}
            for group in overview.group_summaries(tx)
        ]
    }


def _show_group(tx: Tx, _: Context, *, group: str, hub: str | None = None) -> JsonObject:
    found = find_group(tx, group, hub)
    summaries = overview.partition_summaries(tx, found.row)
    keys = {partition.row: partition.masked_key.hex() for partition in summaries}
    waits_for = recoveries.waited_for(tx, found.row)
    return {**_summary(found), "waits_for": waits_for, "tree": [_partition(each, keys) for each in summaries]}


def _release(tx: Tx, context: Context, *, group: str, provider: str | None = None) -> JsonObject:
    found = find_group(tx, group, context.config.provider)
    row = None
    if provider is not None:
        if provider not in recoveries.waited_for(tx, found.row):
            raise Malformed(f"the group does not wait for {provider}")
        row = providers.provider_row(tx, ProviderId(provider))
    released = recoveries.release(tx, found.row, row)
    waits_for = recoveries.waited_for(tx, found.row)
    return {"group_id": base64url(found.group_id), "did_not_answer": released, "waits_for": waits_for}


def _terminate(
    tx: Tx, context: Context, *, group: str, partition: str, hub: str | None = None, why: str = "", undo: bool = False
) -> JsonObject:
    found = find_group(tx, group, hub)
    if found.hub != context.config.provider:
        raise Malformed(f"the hub of this group is {found.hub}; only its operator can terminate a branch")
    named = _named(tx, found, partition)
    if not named:
        raise NotFound("no partition of this group has a masked key that begins with these digits")
    if len(named) > 1:
        raise Malformed("more than one partition has a masked key that begins with these digits; give more digits")
    meant = partitions.partition_by_row(tx, named[0])
    if undo:
        changed = branches.undo_termination(tx, meant)
        if not changed:
            raise Malformed("no branch that begins with this partition was terminated; there is nothing to undo")
    else:
        changed = branches.terminate(tx, meant, why, context.now)
    return {"partition": meant.masked_key.hex(), "partitions": changed}


def _replace(tx: Tx, context: Context, *, group: str, successor_group: str, successor_hub: str) -> JsonObject:
    found = find_group(tx, group, context.config.provider)
    try:
        successor = Successor(_group_id(successor_group), provider_id(successor_hub))
    except ValueError as error:
        raise Malformed(str(error)) from error
    replace_group(tx, groups.group_by_row(tx, found.row), successor)
    names = {"group_id": base64url(successor.group_id), "hub": successor.hub}
    return {"group_id": base64url(found.group_id), "successor": names}


def _group_id(written: str) -> GroupId:
    """Read a group id: a MIMI URI as text, or any id in base64url; raise `ValueError`."""
    return nameable_group_id(written.encode() if written.startswith("mimi://") else from_base64url(written))


def find_group(tx: Tx, group: str, hub: str | None) -> GroupSummary:
    """Return the group; raise `NotFound`, or `Malformed` if two hubs have a group with this id."""
    ids = {GroupId(group.encode())}
    with suppress(ValueError):
        ids.add(GroupId(from_base64url(group)))
    found = [each for each in overview.group_summaries_of_id(tx, ids) if hub in (None, each.hub)]
    if not found:
        raise NotFound("there is no group with this id")
    if len(found) > 1:
        raise Malformed(
            f"more than one hub has a group with this id; give the hub: {', '.join(each.hub for each in found)}"
        )
    return found[0]


def _named(tx: Tx, group: GroupSummary, written: str) -> list[int]:
    """Return the rows of a group's partitions whose masked key begins with these digits, at most two rows."""
    digits = written.lower()
    if len(digits) < _KEY_DIGITS or not set(digits) <= set(hexdigits):
        return []
    hub = providers.provider_row(tx, group.hub) or 0
    prefix = bytes.fromhex(digits[: len(digits) // 2 * 2])
    found = partitions.rows_by_key_prefix(tx, hub, group.row, prefix, limit=_LIKE_NAMES)
    return [row for row, key in found if key.hex().startswith(digits)]


def _summary(group: GroupSummary) -> JsonObject:
    return {
        "group_id": base64url(group.group_id),
        "name": group_name(group.group_id),
        "hub": group.hub,
        "cipher_suite": group.cipher_suite,
        "created_at": group.created_at,
        "epoch": group.epoch,
        "partitions": group.partitions,
        "detached": group.detached,
        "messages": group.messages,
        "live_forks": group.live_forks,
        "linear": group.linear,
        "successor": None
        if group.successor_group_id is None
        else {"group_id": base64url(group.successor_group_id), "hub": group.successor_hub},
    }


def _partition(partition: PartitionSummary, keys: dict[int, str]) -> JsonObject:
    return {
        "partition": keys[partition.row],
        "parent": None if partition.parent is None else keys.get(partition.parent),
        "epoch": partition.epoch,
        "messages": partition.messages,
        "state": partition.knowledge,
        "detached": partition.detached,
        "terminated": partition.terminated,
        "why": partition.terminated_reason,
        "group_info": partition.has_group_info,
        "held_welcomes": partition.held_welcomes,
        "followers": list(partition.followers),
        "opened_at": partition.opened_at,
        "live_fork": partition.live_fork,
    }


def group_name(group_id: GroupId) -> str | None:
    """Return a group's id as text, or None if it is not printable text."""
    try:
        name = group_id.decode()
    except UnicodeDecodeError:
        return None
    return name if name.isprintable() else None


_SUMMARY_EXAMPLE: Final = (
    '"group_id": "bWltaTovL2EuZXhhbXBsZS9nLzE", "name": "mimi://a.example/g/1", "hub": "a.example", "cipher_suite": 1,'
    ' "created_at": 1764000000000, "epoch": 4, "partitions": 5, "detached": 0, "messages": 17, "live_forks": 0,'
    ' "linear": false, "successor": null'
)

GROUPS: Final = (
    Command(
        name="group list",
        summary="List the groups that are hosted or followed here.",
        work=_list_groups,
        answer=f'{{"groups": [{{{_SUMMARY_EXAMPLE}, "waits_for": []}}]}}',
        example="mimids group list",
        writes=False,
    ),
    Command(
        name="group show",
        summary="Show a group's tree of partitions: epochs, forks, and what is known of each.",
        arguments=(GROUP, HUB),
        work=_show_group,
        answer=f'{{{_SUMMARY_EXAMPLE}, "waits_for": [], "tree": [{{"partition": "8c5a", "parent": null, "epoch": 0,'
        ' "messages": 1, "state": "derived", "detached": false, "terminated": false, "why": null, "group_info": true,'
        ' "held_welcomes": 0, "followers": ["b.example"], "opened_at": 1764000000000, "live_fork": false}]}',
        example="mimids group show mimi://a.example/g/1",
        writes=False,
        hints={NotFound: "run `mimids group list` to see the groups"},
    ),
    Command(
        name="group release",
        summary="Continue a restored group without the providers that have not answered.",
        arguments=(
            GROUP,
            Argument("provider", "only this provider; default: all", "b.example", required=False, flag="--provider"),
        ),
        work=_release,
        effects=(Effect.DELIVERY,),
        answer='{"group_id": "bWltaTovL2EuZXhhbXBsZS9nLzE", "did_not_answer": 1, "waits_for": []}',
        example="mimids group release mimi://a.example/g/1 --provider b.example",
        hints={
            NotFound: "run `mimids group list` to see the groups",
            Malformed: "run `mimids group show GROUP` to see the providers that it waits for",
        },
    ),
    Command(
        name="group terminate",
        summary="Terminate a branch of a group: a partition and all below it. Its messages can still be received.",
        arguments=(
            GROUP,
            Argument(
                "partition", f"the partition's masked key in hex, at least the first {_KEY_DIGITS} digits", "8c5a03"
            ),
            HUB,
            Argument("why", "a note for other operators", "stale fork", required=False, flag="--why", secret=True),
            Argument("undo", "open the branch again", True, ArgumentKind.FLAG, required=False, flag="--undo"),
        ),
        work=_terminate,
        answer='{"partition": "8c5a", "partitions": 3}',
        example="mimids group terminate mimi://a.example/g/1 8c5a03 --why 'stale fork'",
        effects=(Effect.WELCOMES,),
        hints={NotFound: "run `mimids group list` and `mimids group show GROUP` to see the groups and partitions"},
    ),
    Command(
        name="group replace",
        summary="Say which group replaces a group, once all its branches are terminated. This cannot be changed.",
        arguments=(
            GROUP,
            Argument(
                "successor_group",
                "the id of the group that replaces it, in base64url or as a mimi:// URI",
                "mimi://b.example/g/2",
            ),
            Argument("successor_hub", "the hub of that group", "b.example"),
        ),
        asks="Tell everybody in the group {group} that {successor_group} replaces it? This cannot be changed.",
        work=_replace,
        answer='{"group_id": "bWltaTovL2EuZXhhbXBsZS9nLzE",'
        ' "successor": {"group_id": "bWltaTovL2IuZXhhbXBsZS9nLzI", "hub": "b.example"}}',
        example="mimids group replace mimi://a.example/g/1 mimi://b.example/g/2 b.example --yes",
        effects=(Effect.REPLACED,),
        hints={
            NotFound: "run `mimids group list` to see the groups",
            GroupOpen: "run `mimids group show GROUP`, and `mimids group terminate` for each open branch",
            GroupReplaced: "run `mimids group show GROUP` to see which group replaces it",
        },
    ),
)
