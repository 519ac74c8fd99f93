"""Deleting a group: at once for all requests, and its messages page by page in the sweep.

The group's id and the keys of its partitions are replaced by random octets, so no request finds them any more.
`store.retention.drop_group_page` deletes the remaining rows.
"""

from __future__ import annotations

import hashlib
import secrets

import attrs

from mimids.store import overview, providers
from mimids.store.engine.transaction import Tx
from mimids.store.welcomes import drop_unreferenced
from mimids.values import Milliseconds
from mimids.wire.ids import GroupId, ProviderId


@attrs.frozen
class DeletedGroup:
    """The numbers of deleted rows, and the group's followers."""

    partitions: int
    messages: int
    followers: tuple[ProviderId, ...]  # the followers, which keep their copies
    welcomes: int  # Welcomes that were not delivered


def delete_group(tx: Tx, group: int, now: Milliseconds, *, hosted: bool) -> DeletedGroup:
    """Delete a group; `hosted` tells whether we are its hub, so that its id must not be given to another group."""
    of_group = "(SELECT id FROM partitions WHERE group_ref = ?)"
    found = tx.one("SELECT count(*), coalesce(sum(next_counter), 0) FROM partitions WHERE group_ref = ?", (group,))
    followers = {name for each in overview.partition_summaries(tx, group) for name in each.followers}
    outgoing = tx.all(f"SELECT welcome, state FROM outgoing_welcomes WHERE partition IN {of_group}", (group,))
    if hosted:
        row = tx.one("SELECT group_id FROM groups WHERE id = ?", (group,))
        digest = hashlib.sha256(row[0] if row else b"").digest()
        tx.execute("INSERT INTO reserved_groups (digest) VALUES (?) ON CONFLICT DO NOTHING", (digest,))
    tx.execute(f"DELETE FROM outgoing_welcomes WHERE partition IN {of_group}", (group,))
    tx.execute(f"DELETE FROM unsendable_welcomes WHERE partition IN {of_group}", (group,))
    tx.execute(f"DELETE FROM follows WHERE partition IN {of_group}", (group,))
    tx.execute(f"DELETE FROM device_cursors WHERE partition IN {of_group}", (group,))
    for welcome in {welcome for welcome, _ in outgoing}:
        drop_unreferenced(tx, welcome)
    tx.execute("DELETE FROM participations WHERE group_ref = ?", (group,))
    tx.execute("DELETE FROM departures WHERE group_ref = ?", (group,))
    tx.execute("DELETE FROM recoveries WHERE group_ref = ?", (group,))
    tx.execute("DELETE FROM expected_welcomes WHERE matched_group = ?", (group,))
    keys = tx.all("SELECT id, length(masked_key) FROM partitions WHERE group_ref = ?", (group,))
    tx.executemany(
        "UPDATE partitions SET masked_key = ?, opener_provider = NULL, opener_device = NULL, forked = 0,"
        " held_welcomes = 0 WHERE id = ?",
        [(secrets.token_bytes(octets), row) for row, octets in keys],
    )
    tx.execute(
        "UPDATE groups SET group_id = ?, creator_device = NULL, unmatched_bytes = 0, deleted_at = ?,"
        " successor_group_id = NULL, successor_hub = NULL WHERE id = ?",
        (secrets.token_bytes(32), now, group),
    )
    waited = sum(state in ("held", "due", "offered") for _, state in outgoing)
    partitions, messages = found or (0, 0)
    return DeletedGroup(partitions, messages, tuple(sorted(followers)), waited)


def is_reserved(tx: Tx, group_id: GroupId) -> bool:
    """Return whether we, as hub, deleted a group with this id."""
    digest = hashlib.sha256(group_id).digest()
    return tx.one("SELECT 1 FROM reserved_groups WHERE digest = ?", (digest,)) is not None


def delete_reserved(tx: Tx, ours: ProviderId, now: Milliseconds) -> None:
    """Delete our own groups whose ids are reserved: they had been deleted, and came back with a backup."""
    hub = providers.ensure_provider(tx, ours)
    for group, group_id in tx.all("SELECT id, group_id FROM groups WHERE hub = ? AND deleted_at IS NULL", (hub,)):
        if is_reserved(tx, group_id):
            delete_group(tx, group, now, hosted=True)


def deleted_groups(tx: Tx) -> list[int]:
    """Return the groups that are deleted, and still have rows."""
    return [row[0] for row in tx.all("SELECT id FROM groups WHERE deleted_at IS NOT NULL")]
