"""Bearer tokens: their digests and counters; the tokens themselves are not stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds, TokenId, UserRow, hour_of
from mimids.wire.ids import UserId


@attrs.frozen
class NewToken:
    """A token to store."""

    user: UserRow
    digest: bytes  # SHA-256
    scheme: str
    label: str
    device: DeviceRow | None  # the device that issued it; None: the operator did
    created_at: Milliseconds
    expires_at: Milliseconds | None
    uses_left: int | None
    rate_claims: int | None
    rate_seconds: int | None


class TokenRow(NamedTuple):
    """The columns of a token against which a claim is checked.

    A tuple to be cheap to make, because each claim reads a token.
    """

    id: TokenId
    user: UserRow
    scheme: str
    state: str
    expires_at: Milliseconds | None
    uses_left: int | None
    rate_claims: int | None
    rate_seconds: int | None
    rate_started_at: Milliseconds
    rate_used: int
    abuse_started_at: Milliseconds
    unanswered_claims: int


@attrs.frozen
class TokenRecord:
    """A token as its owner and the operator see it."""

    id: TokenId
    scheme: str
    label: str
    state: str  # "live", "revoked", "banned"
    created_at: Milliseconds
    expires_at: Milliseconds | None
    uses_left: int | None
    rate_claims: int | None
    rate_seconds: int | None
    warned_at: Milliseconds | None


def insert(tx: Tx, token: NewToken) -> TokenId:
    """Store a token."""
    return TokenId(
        tx.insert(
            "INSERT INTO tokens (owner, digest, scheme, label, issuer_device, created_at, expires_at, uses_left,"
            " rate_claims, rate_seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            attrs.astuple(token),
        )
    )


def find(tx: Tx, user_id: UserId, digest: bytes) -> TokenRow | None:
    """Return a user's token by digest; runs one statement, no matter whether the user and the token exist.

    Returns None while the user is suspended.
    """
    found = tx.one(
        "SELECT t.id, t.owner, t.scheme, t.state, t.expires_at, t.uses_left, t.rate_claims, t.rate_seconds,"
        " t.rate_started_at, t.rate_used, t.abuse_started_at, t.unanswered_claims"
        " FROM tokens t JOIN users u ON u.id = t.owner WHERE t.digest = ? AND u.user_id = ?"
        " AND u.suspended_at IS NULL",
        (digest, user_id),
    )
    return None if found is None else TokenRow._make(found)


def count_claims(tx: Tx, claimed: Iterable[TokenRow]) -> None:
    """Update the counters of tokens with which something was claimed.

    `note_abuse` is a statement of its own: the CHECKs of its columns would cost each claim 4 us.
    """
    tx.executemany(
        "UPDATE tokens SET uses_left = ?, rate_started_at = ?, rate_used = ?, abuse_started_at = ?,"
        " unanswered_claims = ? WHERE id = ?",
        [
            (row.uses_left, row.rate_started_at, row.rate_used, row.abuse_started_at, row.unanswered_claims, row.id)
            for row in claimed
        ],
    )


def note_abuse(tx: Tx, token: TokenId, now: Milliseconds, *, ban: bool) -> None:
    """Record in which hour the abuse rule applied to a token; with `ban`, ban the token."""
    hour = hour_of(now)
    tx.execute("UPDATE tokens SET warned_at = ? WHERE id = ?", (hour, token))
    if ban:
        tx.execute("UPDATE tokens SET state = 'banned', ended_at = ? WHERE id = ?", (hour, token))


def end(tx: Tx, user: UserRow, token: TokenId, state: str, now: Milliseconds) -> bool:
    """Revoke or ban a token of this user; return False if the user has no such token."""
    changed = tx.execute(
        "UPDATE tokens SET state = ?, ended_at = coalesce(ended_at, ?) WHERE id = ? AND owner = ?",
        (state, hour_of(now), token, user),
    )
    return changed > 0


def tokens_of(tx: Tx, user: UserRow) -> list[TokenRecord]:
    """Return a user's tokens, in the order they were issued."""
    rows = tx.all(
        "SELECT id, scheme, label, state, created_at, expires_at, uses_left, rate_claims, rate_seconds, warned_at"
        " FROM tokens WHERE owner = ? ORDER BY id",
        (user,),
    )
    return [TokenRecord(*row) for row in rows]


def count_issued_by(tx: Tx, device: DeviceRow) -> int:
    """Count the tokens that a device issued, including revoked and expired tokens that were not swept yet."""
    found = tx.one("SELECT count(*) FROM tokens WHERE issuer_device = ?", (device,))
    return int(found[0]) if found else 0


def forget_claims(tx: Tx, now: Milliseconds, *, before: Milliseconds, limit: int) -> int:
    """Forget windows of claims that ended: by `now` for rates, by `before` for the abuse rule.

    Changes up to `limit` tokens of each kind; returns the greater number.
    """
    rates = tx.execute(
        "UPDATE tokens SET rate_started_at = 0, rate_used = 0 WHERE id IN (SELECT id FROM tokens"
        " WHERE rate_started_at > 0 AND rate_started_at + coalesce(rate_seconds, 0) * 1000 <= ? LIMIT ?)",
        (now, limit),
    )
    abuse = tx.execute(
        "UPDATE tokens SET abuse_started_at = 0, unanswered_claims = 0 WHERE id IN (SELECT id FROM tokens"
        " WHERE abuse_started_at > 0 AND abuse_started_at < ? LIMIT ?)",
        (before, limit),
    )
    return max(rates, abuse)


def sweep(tx: Tx, before: Milliseconds, *, limit: int = 500) -> int:
    """Delete up to `limit` tokens that ended or expired before `before`; return how many.

    Claims with a deleted token then get the answer for an unknown token.
    """
    return tx.execute(
        "DELETE FROM tokens WHERE id IN (SELECT id FROM tokens WHERE coalesce(ended_at, expires_at) < ? LIMIT ?)",
        (before, limit),
    )
