"""Saved token buckets of the rate limits."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds


@attrs.frozen
class StoredBucket:
    """How many tokens one key of a rate limit had left, and when."""

    rate: str
    key: str
    left: float
    at: Milliseconds


def save(tx: Tx, buckets: Iterable[StoredBucket], *, full: Iterable[tuple[str, str]]) -> None:
    """Save buckets, and delete those that are full, given by rate and key."""
    tx.executemany(
        "INSERT INTO rate_buckets (rate, key, tokens_left, updated_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET tokens_left = excluded.tokens_left, updated_at = excluded.updated_at",
        [(each.rate, each.key, each.left, each.at) for each in buckets],
    )
    tx.executemany("DELETE FROM rate_buckets WHERE rate = ? AND key = ?", full)


def load(tx: Tx, *, limit: int) -> list[StoredBucket]:
    """Return the `limit` buckets that were used last, the least recently used first."""
    rows = tx.all(
        "SELECT rate, key, tokens_left, updated_at FROM rate_buckets ORDER BY updated_at DESC LIMIT ?", (limit,)
    )
    return [StoredBucket(*row) for row in reversed(rows)]
