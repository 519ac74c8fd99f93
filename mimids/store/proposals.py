"""Proposals by reference: which were sequenced in a partition, and which were refused there."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store.engine.transaction import Tx


@attrs.frozen
class StoredProposal:
    """What a commit in the same partition may cover; a refused one has no message but a reason."""

    ref: bytes
    seq: int | None
    refusal: str | None


def add_proposal(
    tx: Tx, partition: int, ref: bytes, *, proposal_type: int, seq: int | None = None, refusal: str | None = None
) -> None:
    """Remember a proposal: `seq` of one that was sequenced, else `refusal`. The first word on a reference stands.

    Except that sequencing lifts a refusal: a reference does not cover the membership tag, so the same proposal may
    come once with a broken tag and once whole.
    """
    tx.execute(
        "INSERT INTO proposals (partition, ref, seq, proposal_type, refusal) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET seq = excluded.seq, refusal = NULL"
        " WHERE proposals.seq IS NULL AND excluded.seq IS NOT NULL",
        (partition, ref, seq, proposal_type, refusal),
    )


def add_sequenced(tx: Tx, rows: Iterable[tuple[int, bytes, int, int]]) -> None:
    """Remember proposals that were sequenced: partition, reference, proposal type and seq of each."""
    tx.executemany(
        "INSERT INTO proposals (partition, ref, proposal_type, seq) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET seq = excluded.seq, refusal = NULL WHERE proposals.seq IS NULL",
        rows,
    )


def find_proposal(tx: Tx, partition: int, ref: bytes) -> StoredProposal | None:
    """Return what is known of one reference."""
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
    """Count the refused references that are remembered for a partition."""
    row = tx.one("SELECT count(*) FROM proposals WHERE partition = ? AND seq IS NULL", (partition,))
    return int(row[0]) if row else 0
