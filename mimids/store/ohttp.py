"""What the OHTTP gateway keeps: its keys, and the answers that a replay gets again."""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds


@attrs.frozen
class StoredKeyRow:
    """A gateway key as it lies in the store; times in seconds."""

    key_id: int
    created_at: int
    retire_at: int
    private_key: bytes


@attrs.frozen
class Answered:
    """An encapsulation that was answered: the request's digest and the sealed response."""

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
    """Store the same key in another form."""
    tx.execute("UPDATE ohttp_keys SET private_key = ? WHERE key_id = ?", (private_key, key_id))


def delete_key(tx: Tx, key_id: int) -> None:
    """Delete a key: what was sealed to it stays sealed."""
    tx.execute("DELETE FROM ohttp_keys WHERE key_id = ?", (key_id,))


def setting(tx: Tx, name: str) -> bytes | None:
    """Return a setting's value."""
    found = tx.one("SELECT value FROM settings WHERE name = ?", (name,))
    return None if found is None else bytes(found[0])


def put_setting(tx: Tx, name: str, value: bytes) -> None:
    """Set or replace a setting."""
    tx.execute(
        "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
        (name, value),
    )


def drop_setting(tx: Tx, name: str) -> None:
    """Drop a setting, if it is there."""
    tx.execute("DELETE FROM settings WHERE name = ?", (name,))


def answered(tx: Tx, enc: bytes) -> Answered | None:
    """Return how this encapsulation was answered."""
    found = tx.one("SELECT digest, response FROM ohttp_replays WHERE enc = ?", (enc,))
    return None if found is None else Answered(*found)


def keep_answer(tx: Tx, enc: bytes, answer: Answered, keep_until: Milliseconds) -> None:
    """Remember an answer until `keep_until`, included."""
    tx.insert(
        "INSERT INTO ohttp_replays (enc, digest, keep_until, response) VALUES (?, ?, ?, ?)",
        (enc, answer.digest, keep_until, answer.response),
    )


def forget_answers(tx: Tx, now: Milliseconds) -> None:
    """Delete answers whose requests can be replayed no more, up to the oldest that is still to be kept."""
    tx.execute(
        "DELETE FROM ohttp_replays WHERE rowid < coalesce("
        "(SELECT rowid FROM ohttp_replays WHERE keep_until >= ? ORDER BY rowid LIMIT 1), 9223372036854775807)",
        (now,),
    )


def room_taken(tx: Tx) -> int:
    """Return how many answers are kept: rows are numbered without a gap, and leave from the lowest on."""
    found = tx.one("SELECT (SELECT max(rowid) FROM ohttp_replays) - (SELECT min(rowid) FROM ohttp_replays) + 1")
    return int(found[0] or 0) if found else 0
