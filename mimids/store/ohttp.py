"""Rows of the OHTTP gateway: its keys, its settings, and the answers that a replay gets again."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds

_BLANK_KEY: Final = bytes(33)
_ANY_TIME: Final = Milliseconds((1 << 63) - 1)
NOISE_COPIES: Final = 40  # copies of 2 KiB: ten pages, like the rows and indexes that a claim changes beside its answer


@attrs.frozen
class StoredKeyRow:
    """A gateway key as it is stored; times in seconds."""

    key_id: int
    created_at: int
    retire_at: int
    private_key: bytes


@attrs.frozen
class Resealing:
    """The values for sealing an answer again to the same octets; only the caller reads `items`."""

    nonce: bytes
    sealed_at: Milliseconds
    items: bytes


@attrs.frozen
class Answered:
    """An answered request: the SHA-256 of the encapsulated request, and the sealed response or how to seal it."""

    digest: bytes
    response: bytes | Resealing


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
    """Delete a key, so that requests sealed to it can never be opened again."""
    tx.execute("DELETE FROM ohttp_keys WHERE key_id = ?", (key_id,))


def blank_keys(tx: Tx) -> None:
    """Overwrite all private keys in a copy of the database.

    The rows stay, as retired keys, because the identifier of the next key follows from them.
    """
    tx.execute("UPDATE ohttp_keys SET private_key = ?, retire_at = created_at", (_BLANK_KEY,))


def setting(tx: Tx, name: str) -> bytes | None:
    """Return the value of a setting, None if it is not set."""
    found = tx.one("SELECT value FROM settings WHERE name = ?", (name,))
    return None if found is None else bytes(found[0])


def put_setting(tx: Tx, name: str, value: bytes) -> None:
    """Set or replace a setting."""
    tx.execute(
        "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )


def put_noise(tx: Tx, octets: bytes) -> None:
    """Replace octets that nothing reads, so that the transaction changes as many pages as if it stored an answer.

    `octets` are random, and as long as an answer. Copies of their first 2 KiB change as many other pages as a claim
    does.
    """
    put_setting(tx, "gateway_noise", octets + octets[:2048] * NOISE_COPIES)


def drop_setting(tx: Tx, name: str) -> None:
    """Delete a setting, if it is set."""
    tx.execute("DELETE FROM settings WHERE name = ?", (name,))


def answered(tx: Tx, enc: bytes) -> Answered | None:
    """Return the answer to the request with this encapsulated key, None if there was none."""
    found = tx.one("SELECT digest, response, nonce, sealed_at, items FROM ohttp_replays WHERE enc = ?", (enc,))
    if found is None:
        return None
    digest, response, *again = found
    return Answered(digest, Resealing(*again) if response is None else response)


def keep_answers(tx: Tx, answers: Iterable[tuple[bytes, Answered, Milliseconds]]) -> None:
    """Store sealed answers, each with the encapsulated key of its request, until a time, inclusive."""
    tx.executemany(
        "INSERT INTO ohttp_replays (enc, digest, keep_until, response) VALUES (?, ?, ?, ?)",
        [(enc, answer.digest, keep_until, answer.response) for enc, answer, keep_until in answers],
    )


def keep_resealing(tx: Tx, enc: bytes, digest: bytes, again: Resealing, keep_until: Milliseconds) -> None:
    """Store how to seal an answer again, until `keep_until`, inclusive."""
    tx.execute(
        "INSERT INTO ohttp_replays (enc, digest, keep_until, nonce, sealed_at, items) VALUES (?, ?, ?, ?, ?, ?)",
        (enc, digest, keep_until, again.nonce, again.sealed_at // 1000 * 1000, again.items),  # a Date has seconds
    )


def keep_package(tx: Tx, row: int, body: bytes, keep_until: Milliseconds) -> None:
    """Store a KeyPackage for answers that are sealed again, at least until `keep_until`.

    `row` is the row of its reference.
    """
    known = tx.execute(
        "UPDATE ohttp_replay_packages SET keep_until = CASE WHEN keep_until < ?1 THEN ?1 ELSE keep_until END"
        " WHERE id = ?2",
        (keep_until, row),
    )
    if not known:
        tx.execute("INSERT INTO ohttp_replay_packages (id, body, keep_until) VALUES (?, ?, ?)", (row, body, keep_until))


def kept_package(tx: Tx, row: int) -> bytes | None:
    """Return a KeyPackage that `keep_package` stored."""
    found = tx.one("SELECT body FROM ohttp_replay_packages WHERE id = ?", (row,))
    return None if found is None else bytes(found[0])


def forget_answers(tx: Tx, now: Milliseconds, *, limit: int, latest: Milliseconds = _ANY_TIME) -> int:
    """Delete up to `limit` answers, the oldest first; stop at the first answer that must still be kept.

    Answers that would be kept beyond `latest` are deleted too: the clock was ahead when they were stored. Also delete
    up to `limit` KeyPackages that no answer needs any more. Returns the greater of the two numbers of deleted rows.
    Both deletions compare `keep_until` themselves, because in PostgreSQL another transaction may store an answer
    meanwhile, or keep a KeyPackage for longer.
    """
    oldest = tx.all("SELECT id, keep_until FROM ohttp_replays ORDER BY id LIMIT ?", (limit,))
    old = [row[0] for row in takewhile(lambda row: not now <= row[1] <= latest, oldest)]
    if old:
        over = "(keep_until < ?2 OR keep_until > ?3)"
        tx.execute(f"DELETE FROM ohttp_replays WHERE id <= ?1 AND {over}", (old[-1], now, latest))
    packages = tx.execute(
        "DELETE FROM ohttp_replay_packages WHERE id IN"
        " (SELECT id FROM ohttp_replay_packages WHERE keep_until < ?1 OR keep_until > ?2 LIMIT ?3)"
        " AND (keep_until < ?1 OR keep_until > ?2)",
        (now, latest, limit),
    )
    return max(len(old), packages)


def room_taken(tx: Tx) -> int:
    """Return how many answers are stored; their rows have no gaps, so the lowest and the highest row are enough."""
    found = tx.one("SELECT (SELECT max(id) FROM ohttp_replays) - (SELECT min(id) FROM ohttp_replays) + 1")
    return int(found[0] or 0) if found else 0
