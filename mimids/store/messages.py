"""Sequenced messages: immutable, in one global sequence, with a gapless counter in each partition."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import Counter, MaskedPartitionKey

REPEATS_AT_ONCE: Final = 64
COMMITS_READ: Final = 64  # in one answer: a partition may have any number of commits
ROWS_AT_ONCE: Final = 64  # while it is not known how large the messages are
_COLUMNS: Final = "seq, partition, counter, accepted_at, kind, digest, digest_key, body"
_FIND_REPEATS: Final = (
    "SELECT digest, counter, accepted_at, next_masked_key FROM messages"
    f" WHERE partition = ? AND digest_key IN ({', '.join('?' * REPEATS_AT_ONCE)})"
)


class NewMessage(NamedTuple):
    """A message to append. It is a tuple, so that `executemany` takes many messages without another copy."""

    seq: int
    partition: int
    counter: Counter
    accepted_at: Milliseconds
    kind: int  # ContentType
    digest: bytes  # SHA-256 of the MLSMessage
    digest_key: int
    next_masked_key: MaskedPartitionKey | None
    body: bytes
    group_info: bytes | None


@attrs.frozen
class AcceptedMessage:
    """The answer that a message got; a repeat of the message gets it again."""

    counter: Counter
    accepted_at: Milliseconds
    next_masked_key: MaskedPartitionKey | None


@attrs.frozen
class StoredCommit:
    """A commit as it is stored."""

    seq: int
    expired: bool
    group_info: bytes | None


class StoredMessage(NamedTuple):
    """One message as it is delivered; `body` is None once retention emptied the message.

    It is a tuple to be cheap to make.
    """

    seq: int
    counter: Counter
    kind: int
    body: bytes | None
    next_masked_key: MaskedPartitionKey | None
    group_info: bytes | None


def free_seqs(tx: Tx) -> range:
    """Return the seqs that the next messages of this transaction get, in order.

    In PostgreSQL, where several transactions add messages at the same time, the seqs come from a
    sequence (`engine/translation.py`), a few at a time, and unused seqs are lost. In SQLite, retention never deletes
    the newest message, so that no seq is given twice.
    """
    found = tx.one("SELECT coalesce(max(seq), 0) + 1, 1 << 62 FROM messages")
    return range(found[0], found[0] + found[1]) if found else range(1, 2)


def digest_of(body: bytes) -> bytes:
    """Return the digest by which a repeat of a message is recognised: the SHA-256 of its MLSMessage."""
    return hashlib.sha256(body).digest()


def digest_key(digest: bytes) -> int:
    """Return the integer by which a digest is looked up: its first 8 octets, signed."""
    return int.from_bytes(digest[:8], "big", signed=True)


def append(tx: Tx, messages: Iterable[NewMessage]) -> None:
    """Add messages, to which the caller has given their seqs and counters."""
    plain: list[tuple[object, ...]] = []
    commits: list[tuple[object, ...]] = []
    for seq, partition, counter, at, kind, digest, key, next_key, body, group_info in messages:
        row = (seq, partition, counter, at, kind, bytearray(digest), key, bytearray(body))
        if next_key is None and group_info is None:
            plain.append(row)
        else:
            commits.append((*row, next_key, group_info))
    # For `bytes` and None, sqlite3 looks for an adapter in each row, which takes a tenth of the time of an insert. For
    # `bytearray` it does not.
    if plain:
        tx.executemany(f"INSERT INTO messages ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", plain)
    if commits:
        tx.executemany(
            f"INSERT INTO messages ({_COLUMNS}, next_masked_key, group_info) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            commits,
        )


def digests_between(
    tx: Tx, partition: int, first: Counter, end: Counter
) -> dict[Counter, tuple[bytes, MaskedPartitionKey | None]]:
    """Return the digests and next masked keys of the messages from counter `first` on and below `end`."""
    rows = tx.all(
        "SELECT counter, digest, next_masked_key FROM messages WHERE partition = ? AND counter >= ? AND counter < ?",
        (partition, first, end),
    )
    return {row[0]: (row[1], row[2]) for row in rows}


def end_of_known(tx: Tx, partition: int) -> Counter:
    """Return the counter after the last message that was ever stored in a partition; its next counter may be higher."""
    row = tx.one(
        "SELECT p.kept_from, coalesce((SELECT max(counter) + 1 FROM messages WHERE partition = p.id), 0)"
        " FROM partitions p WHERE p.id = ?",
        (partition,),
    )
    return Counter(0) if row is None else Counter(max(row))


def find_repeat(tx: Tx, partition: int, digest: bytes) -> AcceptedMessage | None:
    """Return the answer that a message got in this partition before, None if the message is new there."""
    row = tx.one(
        "SELECT counter, accepted_at, next_masked_key FROM messages"
        " WHERE partition = ? AND digest_key = ? AND digest = ?",
        (partition, digest_key(digest), digest),
    )
    return None if row is None else AcceptedMessage(*row)


def find_repeats(tx: Tx, partition: int, digests: Sequence[bytes]) -> dict[bytes, AcceptedMessage | None]:
    """Do the same as `find_repeat` for many messages, in few statements."""
    found: dict[bytes, AcceptedMessage | None] = dict.fromkeys(digests)
    keys = [digest_key(digest) for digest in found]
    for start in range(0, len(keys), REPEATS_AT_ONCE):
        some = keys[start : start + REPEATS_AT_ONCE]
        some += some[:1] * (REPEATS_AT_ONCE - len(some))
        for digest, *answer in tx.all(_FIND_REPEATS, (partition, *some)):
            if digest in found:
                found[digest] = AcceptedMessage(*answer)
    return found


def commits_of(tx: Tx, partition: int) -> list[tuple[Counter, MaskedPartitionKey]]:
    """Return counter and next masked key of the first COMMITS_READ commits in a partition, in order."""
    rows = tx.all(
        "SELECT counter, next_masked_key FROM messages WHERE partition = ? AND kind = 3"
        f" ORDER BY counter LIMIT {COMMITS_READ}",
        (partition,),
    )
    return [(row[0], row[1]) for row in rows]


def commit_at(tx: Tx, partition: int, counter: Counter) -> StoredCommit | None:
    """Return the commit at a counter of a partition, None if there is none."""
    row = tx.one(
        "SELECT seq, body IS NULL, group_info FROM messages WHERE partition = ? AND counter = ? AND kind = 3",
        (partition, counter),
    )
    return None if row is None else StoredCommit(row[0], bool(row[1]), row[2])


def messages_from(
    tx: Tx, partition: int, counter: Counter, *, limit_octets: int, limit_messages: int
) -> list[StoredMessage]:
    """Return messages from `counter` on: the first message, and then as many as fit in both limits."""
    found: list[StoredMessage] = []
    room, at_once = limit_octets, ROWS_AT_ONCE
    while True:
        rows = tx.all(
            "SELECT seq, counter, kind, body, next_masked_key, group_info FROM messages"
            " WHERE partition = ? AND counter >= ? ORDER BY counter LIMIT ?",
            (partition, counter, at_once),
        )
        for row in rows:
            message = StoredMessage(*row)
            room -= len(message.body or b"") + len(message.group_info or b"") + 80
            if found and room < 0:
                return found
            found.append(message)
            if len(found) >= limit_messages:
                return found
        if len(rows) < at_once:
            return found
        counter = Counter(found[-1].counter + 1)
        # As many as may fit, if later ones are as large as those so far: a statement for 64 costs as much as 20 rows.
        likely = len(found) * room // (limit_octets - room)
        at_once = max(ROWS_AT_ONCE, min(limit_messages - len(found), likely))


def set_group_info(tx: Tx, seq: int, group_info: bytes) -> None:
    """Store the GroupInfo of a commit that had none."""
    tx.execute("UPDATE messages SET group_info = ? WHERE seq = ?", (group_info, seq))


def drop_group_info(tx: Tx, seq: int) -> None:
    """Delete the GroupInfo of a stored commit."""
    tx.execute("UPDATE messages SET group_info = NULL WHERE seq = ?", (seq,))


def first_kept(tx: Tx, partition: int, counter: Counter) -> Counter:
    """Return the first counter from `counter` on whose message still has a body, or else the next counter."""
    row = tx.one(
        "SELECT coalesce((SELECT counter FROM messages WHERE partition = p.id AND counter >= p.kept_from"
        " AND counter >= ?2 AND body IS NOT NULL ORDER BY counter LIMIT 1), p.next_counter)"
        " FROM partitions p WHERE p.id = ?1",
        (partition, counter),
    )
    return counter if row is None else Counter(row[0])


def is_public(tx: Tx, seq: int) -> bool:
    """Return whether a message is a PublicMessage: the wire format follows the version (RFC 9420 section 6)."""
    row = tx.one("SELECT substr(body, 1, 4) FROM messages WHERE seq = ?", (seq,))
    return row is not None and row[0] == b"\0\1\0\1"


def body_of(tx: Tx, seq: int) -> bytes | None:
    """Return the MLSMessage of a sequence number, None once retention emptied the message."""
    row = tx.one("SELECT body FROM messages WHERE seq = ?", (seq,))
    return None if row is None else row[0]
