"""Proposals by reference: which were sequenced in a partition, and which were refused there."""

from __future__ import annotations

import attrs

from mimids.store.db import Tx


@attrs.frozen
class StoredProposal:
    """What a commit in the same partition may cover; a refused one has no message but a reason."""

    ref: bytes
    seq: int | None
    refusal: str | None  # `rule` of the refusal, with its section behind a tab


def add_proposal(tx: Tx, partition: int, ref: bytes, *, seq: int | None, refusal: str | None = None) -> None:
    """Remember a proposal; one that was sequenced stays so whatever comes later under its reference."""
    tx.execute(
        "INSERT INTO proposals (partition, ref, seq, refusal) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (partition, ref, seq, refusal),
    )


def find_proposal(tx: Tx, partition: int, ref: bytes) -> StoredProposal | None:
    """Return what is known of one reference."""
    row = tx.one("SELECT ref, seq, refusal FROM proposals WHERE partition = ? AND ref = ?", (partition, ref))
    return None if row is None else StoredProposal(*row)


def proposals_of(tx: Tx, partition: int) -> list[StoredProposal]:
    """Return the sequenced proposals of a partition, in order."""
    rows = tx.all(
        "SELECT ref, seq, refusal FROM proposals WHERE partition = ? AND seq IS NOT NULL ORDER BY seq", (partition,)
    )
    return [StoredProposal(*row) for row in rows]


def count_refused(tx: Tx, partition: int) -> int:
    """Count the refused references that are remembered for a partition."""
    row = tx.one("SELECT count(*) FROM proposals WHERE partition = ? AND refusal IS NOT NULL", (partition,))
    return int(row[0]) if row else 0
