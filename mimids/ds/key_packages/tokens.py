"""Bearer tokens: who may claim a user's KeyPackages (semantics: bearer-tokens).

A token is `shared`, one for everybody, or `unique`, one for each requester, so that abuse has a name. Either may have
an end, a number of uses and a rate. It is stored as its SHA-256; revocation holds from its commit on.

An unknown user, and a token that is wrong, another user's, revoked, banned, expired or used up, are one answer after
one and the same SQL statement, so that neither the answer nor its making tells them apart.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from typing import ClassVar, Final, Literal

import attrs

from mimids.ds.key_packages.claims import Abuse
from mimids.errors import KeyPackageRefused, Malformed, MimiError, NotFound, QuotaExceeded, RateLimited
from mimids.store import tokens
from mimids.store.engine.transaction import Tx
from mimids.store.tokens import NewToken, TokenRecord, TokenRow
from mimids.values import DeviceRow, Milliseconds, TokenId, UserRow
from mimids.wire.ids import BearerToken, UserId

LABEL_CHARS: Final = 200
TOKEN_OCTETS: Final = 32


@attrs.frozen
class AbuseRule:
    """What `claims` within `window_seconds` that no Welcome has answered lead to.

    `revoke` ends a `unique` token; of others, and with `warn`, it is only told.
    """

    action: Literal["warn", "revoke", "off"] = "warn"
    claims: int = 50
    window_seconds: int = 86_400


@attrs.frozen
class TokenTerms:
    """What a token is to be; `rate_claims` in each `rate_seconds`. None is no limit."""

    scheme: str
    label: str = ""
    expires_at: Milliseconds | None = None
    uses: int | None = None
    rate_claims: int | None = None
    rate_seconds: int | None = None


@attrs.frozen
class IssuedToken:
    """A token that was just issued; it is not stored, and this is the only time that it is shown."""

    id: TokenId
    bearer_token: BearerToken


class Scheme(ABC):
    """A kind of token.

    One whose tokens have no row (RFC 9578) will bring a lookup of its own: `Tokens.check` is the place, and the row it
    returns, made up from what the token proves, the only thing that a claim knows of it.
    """

    name: ClassVar[str]

    @abstractmethod
    def may_be_banned(self, rule: AbuseRule) -> bool:
        """Tell whether abuse ends a token of this kind by itself."""

    def mint(self) -> BearerToken:
        """Return a new token: 32 random octets."""
        return BearerToken(secrets.token_bytes(TOKEN_OCTETS))


class SharedScheme(Scheme):
    """One token for everybody: never ended by itself, or one holder could cut off all others."""

    name = "shared"

    def may_be_banned(self, rule: AbuseRule) -> bool:
        """Never."""
        return False


class UniqueScheme(Scheme):
    """One token for each requester."""

    name = "unique"

    def may_be_banned(self, rule: AbuseRule) -> bool:
        """If the rule says so."""
        return rule.action == "revoke"


SCHEMES: Final[dict[str, Scheme]] = {scheme.name: scheme for scheme in (SharedScheme(), UniqueScheme())}


def issue(
    tx: Tx, user: UserRow, terms: TokenTerms, now: Milliseconds, *, device: DeviceRow | None = None, quota: int = 0
) -> IssuedToken:
    """Issue a token for a user's KeyPackages.

    `device` issues it, None is the operator, and `quota` how many a device may have issued (0: any number). Raise
    `Malformed` if the terms make no sense, `QuotaExceeded`.
    """
    scheme = SCHEMES.get(terms.scheme)
    if scheme is None:
        raise Malformed(f"the schemes are {', '.join(SCHEMES)}")
    if len(terms.label) > LABEL_CHARS:
        raise Malformed(f"a label has at most {LABEL_CHARS} characters")
    if terms.expires_at is not None and not now < terms.expires_at < 1 << 53:
        raise Malformed("expires_at is past")
    if any(each is not None and not 0 < each < 1 << 31 for each in (terms.uses, terms.rate_claims, terms.rate_seconds)):
        raise Malformed("uses and rates are at least 1")
    if (terms.rate_claims is None) != (terms.rate_seconds is None):
        raise Malformed("a rate is so many claims in so many seconds")
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
    """End a token at once, by its user; again changes nothing. Raise `NotFound` if it is not this user's."""
    if not tokens.end(tx, user, token, "revoked", now):
        raise NotFound("no such token")


def ban(tx: Tx, user: UserRow, token: TokenId, now: Milliseconds) -> None:
    """End a token at once, by the operator: its requester gets the same answer as for a wrong one. Raise `NotFound`."""
    if not tokens.end(tx, user, token, "banned", now):
        raise NotFound("no such token")


def list_tokens(tx: Tx, user: UserRow) -> list[TokenRecord]:
    """Return a user's tokens without what makes them worth anything."""
    return tokens.tokens_of(tx, user)


class Tokens:
    """Judges the tokens that come with requests."""

    def __init__(self, rule: AbuseRule) -> None:
        self._rule = rule

    def check(self, tx: Tx, user_id: UserId, token: BearerToken, now: Milliseconds) -> TokenRow | MimiError:
        """Return the token if it may claim a KeyPackage of this user now, else the refusal. Writes nothing.

        Over its rate is an answer of its own: it goes to holders of a right token only, who may try again.
        """
        found = tokens.find(tx, user_id, token.digest())
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
            if now < ends_at and found.rate_used >= found.rate_claims:
                return RateLimited("token_rate", -(-(ends_at - now) // 1000))
        return found

    def charge(self, tx: Tx, token: TokenRow, now: Milliseconds) -> Abuse | None:
        """Count a claim; tell if it meets the abuse rule. The claim itself is good: what a rule ends, ends after it."""
        rule = self._rule
        rated = token.rate_seconds is not None and now < token.rate_started_at + token.rate_seconds * 1000
        watched = now < token.abuse_started_at + rule.window_seconds * 1000
        open_claims = token.unanswered_claims + 1 if watched else 1
        tokens.count_claim(
            tx,
            token.id,
            uses_left=None if token.uses_left is None else token.uses_left - 1,
            rate_started_at=token.rate_started_at if rated else now,
            rate_used=token.rate_used + 1 if rated else 1,
            abuse_started_at=token.abuse_started_at if watched else now,
            unanswered_claims=open_claims,
        )
        if rule.action == "off" or open_claims < rule.claims:
            return None
        banned = SCHEMES[token.scheme].may_be_banned(rule)
        tokens.note_abuse(tx, token.id, now, ban=banned)
        return Abuse(token.id, open_claims, banned) if banned or open_claims == rule.claims else None
