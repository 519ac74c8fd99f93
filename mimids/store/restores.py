"""The restores that a database went through, and whether it descends from a backup (semantics: restore)."""

from __future__ import annotations

import json
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import put_setting, setting
from mimids.values import Milliseconds

_HISTORY: Final = "restores"  # a setting: JSON, oldest first


@attrs.frozen
class Restore:
    """One restore; rows with an id up to `last_id` came from the backup."""

    backup_made_at: Milliseconds
    restored_at: Milliseconds
    last_id: int
    carried_over: bool  # removals and revocations came from the database that was replaced


def history(tx: Tx) -> list[Restore]:
    """Return the restores of this database, oldest first."""
    stored = setting(tx, _HISTORY)
    return [] if stored is None else [Restore(**each) for each in json.loads(stored)]


def note(tx: Tx, restore: Restore) -> None:
    """Record a restore."""
    put_setting(tx, _HISTORY, json.dumps([attrs.asdict(each) for each in [*history(tx), restore]]).encode())


def descends(newer: Tx, backup: Tx, made_at: Milliseconds) -> bool:
    """Tell whether a database is a later state of the database from which a backup was made at `made_at`.

    Also returns True if that database was since restored from this backup or from a later backup. If it returns True,
    every row of the backup is in the database under the same id, or was deleted since.
    """
    restored, before = history(newer), history(backup)
    if not _has_origin_of(newer, backup) or restored[: len(before)] != before:
        return False
    return len(restored) == len(before) or restored[len(before)].backup_made_at >= made_at


def _has_origin_of(newer: Tx, backup: Tx) -> bool:
    """Tell whether both databases were made at the same moment, with the same OHTTP identity if `backup` has one."""
    made = "SELECT applied_at FROM schema_version ORDER BY version LIMIT 1"
    identity = setting(backup, "ohttp_identity_public")  # made by the first start of the server
    return newer.one(made) == backup.one(made) and identity in (None, setting(newer, "ohttp_identity_public"))
