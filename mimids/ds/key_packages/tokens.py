"""Bearer tokens: the right to claim a user's KeyPackages (semantics: bearer-tokens).

A token is `shared`, one for everybody, or `unique`, one for each requester, so that abuse can be traced to a token.
It may have an end, a number of uses and a rate. Its SHA-256 is stored. A revocation holds from its commit on.

An unknown user, and a token that is wrong, another user's, revoked, banned, expired or used up, get the same answer
after the same SQL statement, so that neither the answer nor its timing tells them apart.
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
    """What happens at `claims` claims within `window_seconds` that were not followed by a Welcome.

    `revoke` ends a `unique` token. For a `shared` token, and with `warn`, the abuse is only logged.
    """

    action: Literal["warn", "revoke", "off"] = "warn"
    claims: int = 50
    window_seconds: int = 86_400


@attrs.frozen
class TokenTerms:
    """The limits of a new token; at most `rate_claims` claims in each `rate_seconds`. None is no limit."""

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

    A scheme whose tokens have no row (RFC 9578) would add its own lookup to `Tokens.check` and return a row made from
    what the token proves: a claim uses nothing else of a token.
    """

    name: ClassVar[str]

    @abstractmethod
    def may_be_banned(self, rule: AbuseRule) -> bool:
        """Tell whether abuse ends a token of this kind without the operator."""

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

    It is issued by `device`, or by the operator if that is None. `quota` is how many tokens a device may have issued,
    ended ones included until they are swept; 0 is no limit. Raises `Malformed` for wrong terms, and `QuotaExceeded`.
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
    """End a token at once, for its user; repeating this changes nothing. Raise `NotFound` if it is not the user's."""
    if not tokens.end(tx, user, token, "revoked", now):
        raise NotFound("this user has no such token")


def ban(tx: Tx, user: UserRow, token: TokenId, now: Milliseconds) -> None:
    """End a token at once, for the operator; from then on it is refused like a wrong token. Raise `NotFound`."""
    if not tokens.end(tx, user, token, "banned", now):
        raise NotFound("this user has no such token")


def list_tokens(tx: Tx, user: UserRow) -> list[TokenRecord]:
    """Return a user's tokens; the secrets are not stored."""
    return tokens.tokens_of(tx, user)


class Tokens:
    """Checks the tokens of requests and counts their claims."""

    def __init__(self, rule: AbuseRule) -> None:
        self._rule = rule

    def check(self, tx: Tx, user_id: UserId, token: BearerToken, now: Milliseconds) -> TokenRow | MimiError:
        """Return the token if it may claim a KeyPackage of this user now, else the refusal. Writes nothing.

        A token that is over its rate has its own refusal: its holder has a valid token and may try again.
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
        """Count a claim; return the abuse if the token now meets the abuse rule.

        The claim itself stays valid: a token that the rule ends, ends after it.
        """
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
