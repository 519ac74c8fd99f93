"""Lists in pages, for the console. The cost of a page depends on its rows only, not on the size of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mimids.store.accounts import User
from mimids.store.engine.transaction import Tx
from mimids.store.overview import GroupSummary, summaries_of_rows
from mimids.store.tokens import TokenRecord
from mimids.values import TokenId
from mimids.wire.ids import UserId

_NEWEST: Final = (1 << 63) - 1  # greater than every row's number


def users_from(tx: Tx, beginning: UserId, after: UserId, *, limit: int) -> list[User]:
    """Return the users whose id begins with `beginning` and comes after `after`, in the order of their ids."""
    rows = tx.all(
        "SELECT id, user_id, created_at, (SELECT count(*) FROM devices WHERE owner = users.id), suspended_at FROM users"
        " WHERE user_id >= ? AND user_id < ? AND user_id > ? ORDER BY user_id LIMIT ?",
        (beginning, _after_all_of(beginning), after, limit),
    )
    return [User(*row) for row in rows]


def newest_tokens(tx: Tx, before: TokenId | None, *, limit: int) -> list[tuple[UserId, TokenRecord]]:
    """Return the newest bearer tokens with their users; if `before` is given, only tokens older than that token."""
    rows = tx.all(
        "SELECT u.user_id, t.id, t.scheme, t.label, t.state, t.created_at, t.expires_at, t.uses_left, t.rate_claims,"
        " t.rate_seconds, t.warned_at FROM tokens t CROSS JOIN users u WHERE u.id = t.owner AND t.id < ?"
        " ORDER BY t.id DESC LIMIT ?",
        (_NEWEST if before is None else before, limit),
    )
    return [(UserId(user_id), TokenRecord(*token)) for user_id, *token in rows]


def groups_before(tx: Tx, row: int | None, *, limit: int) -> list[GroupSummary]:
    """Return the newest groups; if `row` is given, only groups older than the group in that row."""
    rows = tx.all(
        "SELECT id FROM groups WHERE id < ? AND deleted_at IS NULL ORDER BY id DESC LIMIT ?",
        (_NEWEST if row is None else row, limit),
    )
    return summaries_of_rows(tx, [each for (each,) in rows])


def groups_beginning_with(tx: Tx, beginnings: Sequence[bytes], *, limit: int) -> list[GroupSummary]:
    """Return the newest groups whose id begins with one of these; read at most `limit` groups for each beginning."""
    found: set[int] = set()
    for beginning in beginnings:
        rows = tx.all(
            "SELECT g.id FROM providers h CROSS JOIN groups g WHERE g.hub = h.id AND g.group_id >= ? AND g.group_id < ?"
            " AND g.deleted_at IS NULL LIMIT ?",
            (beginning, _after_all_of(beginning), limit),
        )
        found.update(row for (row,) in rows)
    return summaries_of_rows(tx, sorted(found, reverse=True)[:limit])


def _after_all_of(beginning: bytes) -> bytes:
    """Return the least octet string that is greater than all octet strings that begin with `beginning`."""
    kept = beginning.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\xff" * 0x10000
