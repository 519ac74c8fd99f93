"""Saved token buckets of the rate limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds

# The tokens that a stored bucket has by now; parameter 6 is how many it gets in a second.
_REFILLED: Final = (
    "(b.tokens_left + CASE WHEN excluded.updated_at > b.updated_at"
    " THEN (excluded.updated_at - b.updated_at) * CAST(?6 AS DOUBLE PRECISION) / 1000 ELSE 0 END)"
)


@attrs.frozen
class StoredBucket:
    """How many whole tokens one key of a rate limit had left, and roughly when."""

    rate: str
    key: str
    left: float
    at: Milliseconds


def save(tx: Tx, buckets: Iterable[StoredBucket], *, full: Iterable[tuple[str, str]]) -> None:
    """Save buckets, and delete full buckets, which are given by rate and key."""
    tx.executemany(
        "INSERT INTO rate_buckets (rate, key, tokens_left, updated_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (rate, key) DO UPDATE SET tokens_left = excluded.tokens_left, updated_at = excluded.updated_at",
        [(each.rate, each.key, each.left, each.at) for each in buckets],
    )
    tx.executemany("DELETE FROM rate_buckets WHERE rate = ? AND key = ?", full)


@attrs.frozen
class Taken:
    """How many tokens were taken from a bucket since the last save, and the rate that refills it."""

    rate: str
    key: str
    count: int
    at: Milliseconds  # roughly
    per_second: float
    burst: int


def add(tx: Tx, taken: Iterable[Taken]) -> None:
    """Take tokens from stored buckets, after refilling them; other processes take from these buckets, too."""
    tx.executemany(
        "INSERT INTO rate_buckets AS b (rate, key, tokens_left, updated_at)"
        " VALUES (?1, ?2, CAST(?3 AS DOUBLE PRECISION) - CAST(?4 AS DOUBLE PRECISION), ?5)"
        " ON CONFLICT (rate, key) DO UPDATE SET"
        f" tokens_left = CASE WHEN {_REFILLED} < ?3 THEN {_REFILLED} ELSE ?3 END - CAST(?4 AS DOUBLE PRECISION),"
        " updated_at = CASE WHEN excluded.updated_at > b.updated_at THEN excluded.updated_at ELSE b.updated_at END",
        [(each.rate, each.key, float(each.burst), each.count, each.at, each.per_second) for each in taken],
    )


def buckets_of(tx: Tx, rate: str, keys: Sequence[str]) -> list[StoredBucket]:
    """Return the stored buckets of these keys."""
    places = ", ".join("?" * len(keys))
    rows = tx.all(
        f"SELECT rate, key, tokens_left, updated_at FROM rate_buckets WHERE rate = ? AND key IN ({places})",
        (rate, *keys),
    )
    return [StoredBucket(*row) for row in rows]


def forget_full(tx: Tx, full: Iterable[Taken], now: Milliseconds) -> None:
    """Delete those of these buckets that are full; other processes may have taken tokens from them."""
    tx.executemany(
        "DELETE FROM rate_buckets WHERE rate = ? AND key = ?"
        " AND tokens_left + (? - updated_at) * CAST(? AS DOUBLE PRECISION) / 1000 >= ?",
        [(each.rate, each.key, now, each.per_second, float(each.burst)) for each in full],
    )


def load(tx: Tx, *, limit: int) -> list[StoredBucket]:
    """Return the `limit` buckets that were used last, the least recently used first."""
    rows = tx.all(
        "SELECT rate, key, tokens_left, updated_at FROM rate_buckets ORDER BY updated_at DESC LIMIT ?", (limit,)
    )
    return [StoredBucket(*row) for row in reversed(rows)]
