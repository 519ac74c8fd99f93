"""Proposals by reference: those that were sequenced in a partition, and those that were refused there."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store.engine.transaction import Tx


@attrs.frozen
class StoredProposal:
    """A proposal that a commit in the same partition may name; a refused one has `refusal` instead of `seq`."""

    ref: bytes
    seq: int | None
    refusal: str | None


def add_proposal(
    tx: Tx, partition: int, ref: bytes, *, proposal_type: int, seq: int | None = None, refusal: str | None = None
) -> None:
    """Store a proposal: with `seq` if it was sequenced, otherwise with `refusal`.

    If the reference is stored already, nothing changes, except that a sequenced proposal replaces a refused one: a
    reference does not cover the membership tag, so the same proposal may come once with a broken tag and once whole.
    """
    tx.execute(
        "INSERT INTO proposals (partition, ref, seq, proposal_type, refusal) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET seq = excluded.seq, refusal = NULL"
        " WHERE proposals.seq IS NULL AND excluded.seq IS NOT NULL",
        (partition, ref, seq, proposal_type, refusal),
    )


def add_sequenced(tx: Tx, rows: Iterable[tuple[int, bytes, int, int]]) -> None:
    """Store sequenced proposals: partition, reference, proposal type and seq of each."""
    tx.executemany(
        "INSERT INTO proposals (partition, ref, proposal_type, seq) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET seq = excluded.seq, refusal = NULL WHERE proposals.seq IS NULL",
        rows,
    )


def find_proposal(tx: Tx, partition: int, ref: bytes) -> StoredProposal | None:
    """Return the proposal of a reference, None if it is unknown."""
    row = tx.one("SELECT ref, seq, refusal FROM proposals WHERE partition = ? AND ref = ?", (partition, ref))
    return None if row is None else StoredProposal(*row)


def self_removes_of(tx: Tx, partition: int) -> list[StoredProposal]:
    """Return the sequenced SelfRemoves of a partition, in order."""
    rows = tx.all(
        "SELECT ref, seq, refusal FROM proposals"
        " WHERE partition = ? AND proposal_type = 10 AND seq IS NOT NULL ORDER BY seq",
        (partition,),
    )
    return [StoredProposal(*row) for row in rows]


def count_refused(tx: Tx, partition: int) -> int:
    """Count the refused proposals that are stored for a partition."""
    row = tx.one("SELECT count(*) FROM proposals WHERE partition = ? AND seq IS NULL", (partition,))
    return int(row[0]) if row else 0
