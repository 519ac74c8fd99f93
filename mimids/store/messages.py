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
_COLUMNS: Final = "seq, partition, counter, accepted_at, kind, digest, digest_key, sender_provider, sender_device, body"
_FIND_REPEATS: Final = (
    "SELECT digest, counter, accepted_at, next_masked_key FROM messages"
    f" WHERE partition = ? AND digest_key IN ({', '.join('?' * REPEATS_AT_ONCE)})"
)


class NewMessage(NamedTuple):
    """A message to append; a tuple, so that `executemany` takes many without another copy."""

    seq: int
    partition: int
    counter: Counter
    accepted_at: Milliseconds
    kind: int  # ContentType
    digest: bytes  # SHA-256 of the MLSMessage
    digest_key: int
    next_masked_key: MaskedPartitionKey | None
    sender_provider: int | None
    sender_device: int | None
    body: bytes
    group_info: bytes | None


@attrs.frozen
class AcceptedMessage:
    """The answer that a message got, and that a repeat of it gets again."""

    counter: Counter
    accepted_at: Milliseconds
    next_masked_key: MaskedPartitionKey | None


@attrs.frozen
class StoredMessage:
    """One message as it is delivered; `body` is None once retention emptied it."""

    seq: int
    counter: Counter
    kind: int
    body: bytes | None
    next_masked_key: MaskedPartitionKey | None
    group_info: bytes | None


def last_seq(tx: Tx) -> int:
    """Return the highest sequence number ever given; retention never deletes the newest message."""
    found = tx.one("SELECT max(seq) FROM messages")
    return int(found[0] or 0) if found else 0


def digest_of(body: bytes) -> bytes:
    """Return the digest by which a repeat of a message is recognised: the SHA-256 of its MLSMessage."""
    return hashlib.sha256(body).digest()


def digest_key(digest: bytes) -> int:
    """Return the integer by which a digest is looked up: its first 8 octets, signed."""
    return int.from_bytes(digest[:8], "big", signed=True)


def append(tx: Tx, messages: Iterable[NewMessage]) -> None:
    """Add messages; the caller has given each its seq and its counter."""
    plain: list[tuple[object, ...]] = []
    commits: list[tuple[object, ...]] = []
    for seq, partition, counter, at, kind, digest, key, next_key, provider, device, body, group_info in messages:
        row = (seq, partition, counter, at, kind, bytearray(digest), key, provider, device, bytearray(body))
        if next_key is None and group_info is None:
            plain.append(row)
        else:
            commits.append((*row, next_key, group_info))
    # For `bytes` and None, sqlite3 looks for an adapter in each row, a tenth of an insert; for `bytearray` it does not.
    if plain:
        tx.executemany(f"INSERT INTO messages ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", plain)
    if commits:
        tx.executemany(
            f"INSERT INTO messages ({_COLUMNS}, next_masked_key, group_info)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            commits,
        )


def digest_at(tx: Tx, partition: int, counter: Counter) -> bytes | None:
    """Return the digest of the message at a counter, None if there is none."""
    row = tx.one("SELECT digest FROM messages WHERE partition = ? AND counter = ?", (partition, counter))
    return None if row is None else row[0]


def find_repeat(tx: Tx, partition: int, digest: bytes) -> AcceptedMessage | None:
    """Return the answer that a message got when it was sent to this partition before, None if it was not."""
    row = tx.one(
        "SELECT counter, accepted_at, next_masked_key FROM messages"
        " WHERE partition = ? AND digest_key = ? AND digest = ?",
        (partition, digest_key(digest), digest),
    )
    return None if row is None else AcceptedMessage(*row)


def find_repeats(tx: Tx, partition: int, digests: Sequence[bytes]) -> dict[bytes, AcceptedMessage | None]:
    """Do as `find_repeat` does for many messages, in few statements."""
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
    """Return counter and next masked key of the commits in a partition, in order."""
    rows = tx.all(
        "SELECT counter, next_masked_key FROM messages INDEXED BY commits"
        " WHERE partition = ? AND kind = 3 ORDER BY counter",
        (partition,),
    )
    return [(row[0], row[1]) for row in rows]


def messages_from(tx: Tx, partition: int, counter: Counter, *, limit_octets: int) -> list[StoredMessage]:
    """Return messages from `counter` on: the first, and then as many as fit in `limit_octets`."""
    found: list[StoredMessage] = []
    room = limit_octets
    while True:
        rows = tx.all(
            "SELECT seq, counter, kind, body, next_masked_key, group_info FROM messages"
            " WHERE partition = ? AND counter >= ? ORDER BY counter LIMIT 64",
            (partition, counter),
        )
        for row in rows:
            message = StoredMessage(*row)
            room -= len(message.body or b"") + len(message.group_info or b"") + 80
            if room < 0 and found:
                return found
            found.append(message)
        if len(rows) < 64:
            return found
        counter = Counter(found[-1].counter + 1)


def drop_group_info(tx: Tx, seq: int) -> None:
    """Delete the GroupInfo of a stored commit."""
    tx.execute("UPDATE messages SET group_info = NULL WHERE seq = ?", (seq,))


def first_kept(tx: Tx, partition: int, counter: Counter) -> Counter:
    """Return the first counter from `counter` on whose message has a body; the partition's next counter if none has."""
    row = tx.one(
        "SELECT coalesce((SELECT counter FROM messages WHERE partition = p.id AND counter >= max(p.kept_from, ?2)"
        " AND body IS NOT NULL ORDER BY counter LIMIT 1), p.next_counter) FROM partitions p WHERE p.id = ?1",
        (partition, counter),
    )
    return counter if row is None else Counter(row[0])


def is_public(tx: Tx, seq: int) -> bool:
    """Return whether a message is a PublicMessage: the wire format follows the version (RFC 9420 section 6)."""
    row = tx.one("SELECT substr(body, 1, 4) FROM messages WHERE seq = ?", (seq,))
    return row is not None and row[0] == b"\0\1\0\1"


def body_of(tx: Tx, seq: int) -> bytes | None:
    """Return the MLSMessage of a sequence number, None once retention emptied it."""
    row = tx.one("SELECT body FROM messages WHERE seq = ?", (seq,))
    return None if row is None else row[0]
