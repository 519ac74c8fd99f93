"""Proposals by reference: those that were sequenced in a partition, and those that were refused there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx

REFERENCES_AT_ONCE: Final = 64
SELF_REMOVES_READ: Final = 1024  # in an unknown state, anybody with the partition's key can send any number


@attrs.frozen
class StoredProposal:
    """A proposal that a commit in the same partition may name; if it was refused, it has `refusal` instead of `seq`."""

    ref: bytes
    seq: int | None
    refusal: str | None


def add_proposal(
    tx: Tx, partition: int, ref: bytes, *, proposal_type: int, seq: int | None = None, refusal: str | None = None
) -> None:
    """Store a proposal: with `seq` if it was sequenced, otherwise with `refusal`.

    If the reference is stored already, nothing changes, except that a sequenced proposal replaces a refused one. A
    reference does not cover the membership tag, so the same proposal may come first with a wrong tag and then with the
    right tag.
    """
    tx.execute(
        "INSERT INTO proposals (partition, ref, seq, proposal_type, refusal) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (partition, ref) DO UPDATE SET seq = excluded.seq, refusal = NULL"
        " WHERE proposals.seq IS NULL AND excluded.seq IS NOT NULL",
        (partition, ref, seq, proposal_type, refusal),
    )


def add_sequenced(tx: Tx, rows: Iterable[tuple[int, bytes, int, int]]) -> None:
    """Store sequenced proposals: partition, reference, proposal type and seq of each."""
    tx.executemany(
        "INSERT INTO proposals (partition, ref, proposal_type, seq) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (partition, ref) DO UPDATE SET seq = excluded.seq, refusal = NULL WHERE proposals.seq IS NULL",
        rows,
    )


def find_proposals(tx: Tx, partition: int, refs: Sequence[bytes]) -> list[StoredProposal]:
    """Return the proposals of these references that are known, in the order of the references."""
    found: dict[bytes, StoredProposal] = {}
    for start in range(0, len(refs), REFERENCES_AT_ONCE):
        some = refs[start : start + REFERENCES_AT_ONCE]
        places = ", ".join("?" * len(some))
        rows = tx.all(
            f"SELECT ref, seq, refusal FROM proposals WHERE partition = ? AND ref IN ({places})", (partition, *some)
        )
        found.update((row[0], StoredProposal(*row)) for row in rows)
    return [found[ref] for ref in refs if ref in found]


def self_removes_of(tx: Tx, partition: int) -> list[StoredProposal]:
    """Return the first SELF_REMOVES_READ sequenced SelfRemoves of a partition, in order."""
    rows = tx.all(
        "SELECT ref, seq, refusal FROM proposals"
        f" WHERE partition = ? AND proposal_type = 10 AND seq IS NOT NULL ORDER BY seq LIMIT {SELF_REMOVES_READ}",
        (partition,),
    )
    return [StoredProposal(*row) for row in rows]


def self_removes_that_begin(tx: Tx, partition: int, head: bytes, *, among: int) -> list[StoredProposal]:
    """Return the SelfRemoves whose message begins with these octets, among a partition's newest `among` SelfRemoves."""
    rows = tx.all(
        "SELECT p.ref, p.seq, p.refusal FROM (SELECT ref, seq, refusal FROM proposals WHERE partition = ?"
        "  AND proposal_type = 10 AND seq IS NOT NULL ORDER BY seq DESC LIMIT ?) p"
        " JOIN messages m ON m.seq = p.seq WHERE substr(m.body, 1, CAST(? AS INTEGER)) = ?",
        (partition, among, len(head), head),
    )
    return [StoredProposal(*row) for row in rows]


def newest_of_type(tx: Tx, partition: int, proposal_type: int, *, limit: int) -> list[StoredProposal]:
    """Return the newest sequenced proposals of a type in a partition."""
    rows = tx.all(
        "SELECT ref, seq, refusal FROM proposals WHERE partition = ? AND proposal_type = ? AND seq IS NOT NULL"
        " ORDER BY seq DESC LIMIT ?",
        (partition, proposal_type, limit),
    )
    return [StoredProposal(*row) for row in rows]


def count_refused(tx: Tx, partition: int) -> int:
    """Count the refused proposals that are stored for a partition."""
    row = tx.one("SELECT count(*) FROM proposals WHERE partition = ? AND seq IS NULL", (partition,))
    return int(row[0]) if row else 0
