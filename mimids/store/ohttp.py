"""Rows of the OHTTP gateway: its keys, its settings, and the answers that are repeated to a replay."""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds


@attrs.frozen
class StoredKeyRow:
    """A gateway key as it is stored; times in seconds."""

    key_id: int
    created_at: int
    retire_at: int
    private_key: bytes


@attrs.frozen
class Answered:
    """An answered request: the SHA-256 of the encapsulated request, and the sealed response."""

    digest: bytes
    response: bytes


def keys(tx: Tx) -> list[StoredKeyRow]:
    """Return all keys, oldest first."""
    rows = tx.all("SELECT key_id, created_at, retire_at, private_key FROM ohttp_keys ORDER BY created_at")
    return [StoredKeyRow(*row) for row in rows]


def insert_key(tx: Tx, key: StoredKeyRow) -> None:
    """Store a key."""
    tx.execute(
        "INSERT INTO ohttp_keys (key_id, created_at, retire_at, private_key) VALUES (?, ?, ?, ?)", attrs.astuple(key)
    )


def replace_private_key(tx: Tx, key_id: int, private_key: bytes) -> None:
    """Replace the stored form of a key: encrypted under the operator's key file, or not."""
    tx.execute("UPDATE ohttp_keys SET private_key = ? WHERE key_id = ?", (private_key, key_id))


def delete_key(tx: Tx, key_id: int) -> None:
    """Delete a key; requests sealed to it can then never be opened."""
    tx.execute("DELETE FROM ohttp_keys WHERE key_id = ?", (key_id,))


def setting(tx: Tx, name: str) -> bytes | None:
    """Return the value of a setting, None if it is not set."""
    found = tx.one("SELECT value FROM settings WHERE name = ?", (name,))
    return None if found is None else bytes(found[0])


def put_setting(tx: Tx, name: str, value: bytes) -> None:
    """Set or replace a setting."""
    tx.execute(
        "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
        (name, value),
    )


def drop_setting(tx: Tx, name: str) -> None:
    """Delete a setting, if it is set."""
    tx.execute("DELETE FROM settings WHERE name = ?", (name,))


def answered(tx: Tx, enc: bytes) -> Answered | None:
    """Return the answer to the request with this encapsulated key, None if there was none."""
    found = tx.one("SELECT digest, response FROM ohttp_replays WHERE enc = ?", (enc,))
    return None if found is None else Answered(*found)


def keep_answer(tx: Tx, enc: bytes, answer: Answered, keep_until: Milliseconds) -> None:
    """Store an answer until `keep_until`, inclusive."""
    tx.insert(
        "INSERT INTO ohttp_replays (enc, digest, keep_until, response) VALUES (?, ?, ?, ?)",
        (enc, answer.digest, keep_until, answer.response),
    )


def forget_answers(tx: Tx, now: Milliseconds) -> None:
    """Delete answers from the oldest row on, up to the first that must still be kept."""
    tx.execute(
        "DELETE FROM ohttp_replays WHERE rowid < coalesce("
        "(SELECT rowid FROM ohttp_replays WHERE keep_until >= ? ORDER BY rowid LIMIT 1), 9223372036854775807)",
        (now,),
    )


def room_taken(tx: Tx) -> int:
    """Return how many answers are stored: rows are numbered without a gap, and the lowest are deleted first."""
    found = tx.one("SELECT (SELECT max(rowid) FROM ohttp_replays) - (SELECT min(rowid) FROM ohttp_replays) + 1")
    return int(found[0] or 0) if found else 0
