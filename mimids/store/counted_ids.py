"""Ids that are given out by counting; a restore skips the ids given out since the backup (semantics: restore).

A backup does not contain the numbers that were given out after it was made. If counting went on from the backup's
numbers, an id that another server, a device or the operator still knows would be given to something else. So after a
restore every counted id continues at a number that no earlier id can have reached: the time of the restore in
microseconds, or beyond the numbers of the database that is replaced.

`RULES` names every counted id that is not an AUTOINCREMENT column, and says where a restore skips its values, or
why that is not needed. A test compares `RULES` with the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mimids.store.engine.tables import moved_tables
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds

SKIPPED_IDS: Final = 1 << 32  # at least, in case the clock is behind

RULES: Final[Mapping[str, str]] = {
    "messages.seq": "within this file only: no answer and no other file names it",
    "partitions.next_counter": "readers are told the counter to start again at: store/restored_positions.py",
    "key_package_refs.turn": "within this file only: it orders the devices of one user",
    "offered_terms.revision": "skipped: store/arrangements.py, skip_revisions",
    "ohttp_replays.id": "within this file only: the order of storing",
    "requested_partitions.id": "within this file only: the order of a device's requests",
    "changes.generation": "in PostgreSQL only: a process clears its caches when it reads another number than before",
    "ohttp_keys.key_id": "skipped: ds/key_packages/gateway_keys.py, renew",
}


def outrun(tx: Tx, now: Milliseconds, newer: Tx | None = None, *, more: int = 0) -> int:
    """Make every AUTOINCREMENT column continue above all ids that may have been given out; return the last id skipped.

    `newer` is the database that this copy replaces. `more` ids are skipped in addition: with a random number, two
    restores of one backup give out different ids even if the clock shows the same time. Ids stay below 2^53, which
    JSON numbers represent exactly.
    """
    given = max(_highest(tx), 0 if newer is None else _highest(newer))
    last = max(now * 1000, given + SKIPPED_IDS) + more
    for table in counted_tables(tx):
        tx.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        tx.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, last))
    return last


def outrun_in_postgresql(tx: Tx, now: Milliseconds, *, more: int = 0) -> int:
    """Do the same as `outrun` in PostgreSQL, where a sequence counts the ids of a table."""
    found = tx.one("SELECT coalesce(max(last_value), 0) FROM pg_sequences WHERE schemaname = current_schema()")
    last = max(now * 1000, (0 if found is None else int(found[0])) + SKIPPED_IDS) + more
    for table in moved_tables():
        if table.counted:
            tx.all("SELECT setval(pg_get_serial_sequence(?, 'id'), ?)", (table.name, last))
    return last


def counted_tables(tx: Tx) -> list[str]:
    """Return the tables whose ids are counted by AUTOINCREMENT."""
    rows = tx.all("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%AUTOINCREMENT%' ORDER BY name")
    return [row[0] for row in rows]


def _highest(tx: Tx) -> int:
    found = tx.one("SELECT coalesce(max(seq), 0) FROM sqlite_sequence")
    return 0 if found is None else int(found[0])
