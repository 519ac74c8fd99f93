"""Bearer tokens: the right to claim a user's KeyPackages (semantics: bearer-tokens).

A token is `shared` (one for everybody) or `unique` (one for each requester, so that abuse can be traced to a token). A
token may have an end, a number of uses and a rate. Only its SHA-256 is stored. A revocation takes effect at its commit.

A claim is refused if the user is unknown or suspended, or if the token is wrong, another user's, revoked, banned,
expired or used up. All these cases get the same answer after the same SQL statement, so neither the answer nor its
timing tells them apart.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar, Final, Literal

import attrs

from mimids.ds.key_packages.claims import Abuse, ChargedToken
from mimids.errors import KeyPackageRefused, Malformed, MimiError, NotFound, QuotaExceeded, RateLimited
from mimids.store import tokens
from mimids.store.engine.transaction import Tx
from mimids.store.tokens import NewToken, TokenRecord, TokenRow
from mimids.values import DeviceRow, Milliseconds, TokenId, UserRow, hour_of
from mimids.wire.ids import BearerToken, UserId

LABEL_CHARS: Final = 200
TOKEN_OCTETS: Final = 32


@attrs.frozen
class AbuseRule:
    """The abuse rule: what happens when `claims` claims within `window_seconds` were not followed by a Welcome.

    `revoke` ends a `unique` token. For a `shared` token, and with `warn`, the abuse is only logged.
    """

    action: Literal["warn", "revoke", "off"] = "warn"
    claims: int = 50
    window_seconds: int = 86_400


@attrs.frozen
class TokenTerms:
    """The limits of a new token: at most `rate_claims` claims in each `rate_seconds`. None means no limit."""

    scheme: str
    label: str = ""
    expires_at: Milliseconds | None = None
    uses: int | None = None
    rate_claims: int | None = None
    rate_seconds: int | None = None


@attrs.frozen
class IssuedToken:
    """A new token. Only its digest is stored, so this is the only time that the token can be shown."""

    id: TokenId
    bearer_token: BearerToken


class Scheme(ABC):
    """A kind of token.

    To add a scheme whose tokens are not stored (RFC 9578), verify them in `Tokens.check` and return a `TokenRow` made
    from what the token proves. A claim uses only that row.
    """

    name: ClassVar[str]

    @abstractmethod
    def may_be_banned(self, rule: AbuseRule) -> bool:
        """Tell whether the server itself may revoke a token of this kind because of abuse."""

    def mint(self) -> BearerToken:
        """Return a new token: 32 random octets."""
        return BearerToken(secrets.token_bytes(TOKEN_OCTETS))


class SharedScheme(Scheme):
    """One token for everybody. Abuse never ends it, because one holder could then cut off all others."""

    name = "shared"

    def may_be_banned(self, rule: AbuseRule) -> bool:
        """Return False."""
        return False


class UniqueScheme(Scheme):
    """One token for each requester."""

    name = "unique"

    def may_be_banned(self, rule: AbuseRule) -> bool:
        """Return whether the rule is to revoke."""
        return rule.action == "revoke"


SCHEMES: Final[dict[str, Scheme]] = {scheme.name: scheme for scheme in (SharedScheme(), UniqueScheme())}


def issue(
    tx: Tx, user: UserRow, terms: TokenTerms, now: Milliseconds, *, device: DeviceRow | None = None, quota: int = 0
) -> IssuedToken:
    """Issue a token for a user's KeyPackages.

    `device` issues it, or the operator if `device` is None. `quota` is how many tokens a device may have issued; ended
    tokens count until they are swept. 0 means no limit. Raises `Malformed` for wrong terms, and `QuotaExceeded`.
    """
    scheme = SCHEMES.get(terms.scheme)
    if scheme is None:
        raise Malformed(f"scheme must be one of {', '.join(SCHEMES)}")
    if len(terms.label) > LABEL_CHARS:
        raise Malformed(f"label must have at most {LABEL_CHARS} characters")
    if terms.expires_at is not None and not now < terms.expires_at < 1 << 53:
        raise Malformed("expires_at must be in the future, in milliseconds since the epoch")
    if any(each is not None and not 0 < each < 1 << 31 for each in (terms.uses, terms.rate_claims, terms.rate_seconds)):
        raise Malformed("uses, rate_claims and rate_seconds must be from 1 to 2147483647")
    if (terms.rate_claims is None) != (terms.rate_seconds is None):
        raise Malformed("rate_claims and rate_seconds must be given together")
    if device is not None and quota and tokens.count_issued_by(tx, device) >= quota:
        raise QuotaExceeded("device_contact_tokens")
    token = scheme.mint()
    row = NewToken(
        user=user,
        digest=token.digest(),
        scheme=scheme.name,
        label=terms.label,
        device=device,
        created_at=now,
        expires_at=terms.expires_at,
        uses_left=terms.uses,
        rate_claims=terms.rate_claims,
        rate_seconds=terms.rate_seconds,
    )
    return IssuedToken(tokens.insert(tx, row), token)


def revoke(tx: Tx, user: UserRow, token: TokenId, now: Milliseconds) -> None:
    """End a token at once, for its user; a repeat changes nothing. Raise `NotFound` if the token is not the user's."""
    if not tokens.end(tx, user, token, "revoked", now):
        raise NotFound("this user has no such token")


def ban(tx: Tx, user: UserRow, token: TokenId, now: Milliseconds) -> None:
    """End a token at once, for the operator: it is refused like a wrong token from then on. Raise `NotFound`."""
    if not tokens.end(tx, user, token, "banned", now):
        raise NotFound("this user has no such token")


def list_tokens(tx: Tx, user: UserRow) -> list[TokenRecord]:
    """Return a user's tokens; the secrets are not stored."""
    return tokens.tokens_of(tx, user)


class Tokens:
    """Checks the tokens of requests and counts their claims."""

    def __init__(self, rule: AbuseRule) -> None:
        self._rule = rule

    @property
    def watches(self) -> bool:
        """Tell whether the abuse rule needs to know which claims were followed by a Welcome."""
        return self._rule.action != "off"

    def find(self, tx: Tx, user_id: UserId, token: BearerToken) -> TokenRow | None:
        """Return a user's token; None if there is none, or if the user is suspended. Runs one statement."""
        return tokens.find(tx, user_id, token.digest())

    def check(self, found: TokenRow | None, now: Milliseconds) -> TokenRow | MimiError:
        """Return the token that `find` returned if it may claim a KeyPackage of its user now, else the refusal.

        A token that is over its rate gets a different refusal, because it is valid and its holder may try again.
        """
        if (
            found is None
            or found.scheme not in SCHEMES
            or found.state != "live"
            or found.uses_left == 0
            or (found.expires_at is not None and found.expires_at <= now)
        ):
            return KeyPackageRefused()
        if found.rate_claims is not None and found.rate_seconds is not None:
            ends_at = found.rate_started_at + found.rate_seconds * 1000
            if found.rate_started_at <= now < ends_at and found.rate_used >= found.rate_claims:
                return RateLimited("token_rate", -(-(ends_at - now) // 1000))
        return found

    def charge(self, token: TokenRow, now: Milliseconds) -> ChargedToken:
        """Return a token after one more claim, and the abuse if it now meets the abuse rule. Writes nothing.

        The claim itself stays valid: if the rule ends the token, only later claims are refused. Windows begin at
        multiples of their length or at the hour, so that the moment of the claim is not stored (docs/privacy.md). A
        window that begins in the future has no effect: the clock was ahead when it began.
        """
        rule = self._rule
        rate_started_at, rate_used = Milliseconds(0), 0
        if token.rate_seconds is not None:
            length = token.rate_seconds * 1000
            rated = token.rate_started_at <= now < token.rate_started_at + length
            rate_started_at = token.rate_started_at if rated else Milliseconds(now - now % length)
            rate_used = token.rate_used + 1 if rated else 1
        watched = token.abuse_started_at <= now < token.abuse_started_at + rule.window_seconds * 1000
        open_claims = token.unanswered_claims + 1 if watched else 1
        abuse_started_at = token.abuse_started_at if watched else hour_of(now)
        if not self.watches:
            open_claims, abuse_started_at = 0, Milliseconds(0)
        is_abused = self.watches and open_claims >= rule.claims
        banned = is_abused and SCHEMES[token.scheme].may_be_banned(rule)
        row = token._replace(
            state="banned" if banned else token.state,
            uses_left=None if token.uses_left is None else token.uses_left - 1,
            rate_started_at=rate_started_at,
            rate_used=rate_used,
            abuse_started_at=abuse_started_at,
            unanswered_claims=open_claims,
        )
        is_new = banned or (is_abused and open_claims == rule.claims)
        return ChargedToken(row, is_abused, Abuse(token.id, open_claims, banned) if is_new else None)

    def write(self, tx: Tx, charged: Collection[ChargedToken], now: Milliseconds) -> None:
        """Store tokens after their last claim in a transaction."""
        tokens.count_claims(tx, [each.row for each in charged])
        for each in charged:
            if each.is_abused:
                tokens.note_abuse(tx, each.row.id, now, ban=each.row.state == "banned")
