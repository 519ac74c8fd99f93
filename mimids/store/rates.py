"""Token buckets as they were last saved."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds


@attrs.frozen
class StoredBucket:
    """How many tokens a key of a rate had left, and when."""

    rate: str
    key: str
    left: float
    at: Milliseconds


def save(tx: Tx, buckets: Iterable[StoredBucket], *, full: Iterable[tuple[str, str]]) -> None:
    """Save buckets, and drop those that are full, by rate and key."""
    tx.executemany(
        "INSERT INTO rate_buckets (rate, key, left, at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET left = excluded.left, at = excluded.at",
        [(each.rate, each.key, each.left, each.at) for each in buckets],
    )
    tx.executemany("DELETE FROM rate_buckets WHERE rate = ? AND key = ?", full)


def load(tx: Tx, *, limit: int) -> list[StoredBucket]:
    """Return the buckets that were saved, the least used first."""
    rows = tx.all("SELECT rate, key, left, at FROM rate_buckets ORDER BY at DESC LIMIT ?", (limit,))
    return [StoredBucket(*row) for row in reversed(rows)]
