"""Bearer tokens as rows: digests and counters, never the token."""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds, TokenId, UserRow
from mimids.wire.ids import UserId


@attrs.frozen
class NewToken:
    """A token about to be stored."""

    user: UserRow
    digest: bytes  # SHA-256
    scheme: str
    label: str
    device: DeviceRow | None  # that issued it; None: the operator
    created_at: Milliseconds
    expires_at: Milliseconds | None
    uses_left: int | None
    rate_claims: int | None
    rate_seconds: int | None


@attrs.frozen
class TokenRow:
    """A token as a claim sees it."""

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
    abuse_open: int


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
            "INSERT INTO tokens (user, digest, scheme, label, device, created_at, expires_at, uses_left, rate_claims,"
            " rate_seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            attrs.astuple(token),
        )
    )


def find(tx: Tx, user_id: UserId, digest: bytes) -> TokenRow | None:
    """Return the token of that digest if it is this user's; one statement, whoever asks for whatever."""
    found = tx.one(
        "SELECT t.id, t.user, t.scheme, t.state, t.expires_at, t.uses_left, t.rate_claims, t.rate_seconds,"
        " t.rate_started_at, t.rate_used, t.abuse_started_at, t.abuse_open"
        " FROM tokens t JOIN users u ON u.id = t.user WHERE t.digest = ? AND u.user_id = ?",
        (digest, user_id),
    )
    return None if found is None else TokenRow(*found)


def count_claim(
    tx: Tx,
    token: TokenId,
    *,
    uses_left: int | None,
    rate_started_at: Milliseconds,
    rate_used: int,
    abuse_started_at: Milliseconds,
    abuse_open: int,
) -> None:
    """Record what a claim changes in its token; apart from `note_abuse`, whose CHECKs would cost each claim 4 us."""
    tx.execute(
        "UPDATE tokens SET uses_left = ?, rate_started_at = ?, rate_used = ?, abuse_started_at = ?, abuse_open = ?"
        " WHERE id = ?",
        (uses_left, rate_started_at, rate_used, abuse_started_at, abuse_open, token),
    )


def note_abuse(tx: Tx, token: TokenId, now: Milliseconds, *, ban: bool) -> None:
    """Record that a token met the abuse rule, and end it if that says so."""
    tx.execute("UPDATE tokens SET warned_at = ? WHERE id = ?", (now, token))
    if ban:
        tx.execute("UPDATE tokens SET state = 'banned', ended_at = ? WHERE id = ?", (now, token))


def end(tx: Tx, user: UserRow, token: TokenId, state: str, now: Milliseconds) -> bool:
    """Revoke or ban a token of this user at once; False if the user has no such token."""
    changed = tx.execute(
        "UPDATE tokens SET state = ?, ended_at = coalesce(ended_at, ?) WHERE id = ? AND user = ?",
        (state, now, token, user),
    )
    return changed > 0


def tokens_of(tx: Tx, user: UserRow) -> list[TokenRecord]:
    """Return a user's tokens, in the order they were issued."""
    rows = tx.all(
        "SELECT id, scheme, label, state, created_at, expires_at, uses_left, rate_claims, rate_seconds, warned_at"
        " FROM tokens WHERE user = ? ORDER BY id",
        (user,),
    )
    return [TokenRecord(*row) for row in rows]


def count_issued_by(tx: Tx, device: DeviceRow) -> int:
    """Count the tokens that a device issued, ended ones too: those leave by `sweep` only."""
    found = tx.one("SELECT count(*) FROM tokens WHERE device = ?", (device,))
    return int(found[0]) if found else 0


def sweep(tx: Tx, before: Milliseconds) -> int:
    """Delete tokens that ended or expired before `before`: they answer like those that never were."""
    return tx.execute("DELETE FROM tokens WHERE coalesce(ended_at, expires_at) < ?", (before,))
