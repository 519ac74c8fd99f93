"""Commands on the bearer tokens for users' KeyPackages."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.accounts import NO_USER, USER
from mimids.ds.commands.declare import Argument, ArgumentKind, Command, Context, JsonObject
from mimids.ds.devices import accounts
from mimids.ds.key_packages import tokens
from mimids.errors import NotFound
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds, TokenId, UserRow
from mimids.wire.base64url import base64url


def _issue_token(
    tx: Tx,
    context: Context,
    *,
    user: str,
    scheme: str,
    label: str = "",
    expires_at: int | None = None,
    uses: int | None = None,
    rate_claims: int | None = None,
    rate_seconds: int | None = None,
) -> JsonObject:
    row, _ = accounts.find_user(tx, context.config.provider, user)
    ends = None if expires_at is None else Milliseconds(expires_at)
    terms = tokens.TokenTerms(scheme, label, ends, uses, rate_claims, rate_seconds)
    issued = tokens.issue(tx, row, terms, context.now)
    return {"id": issued.id, "bearer_token": base64url(issued.bearer_token.reveal())}


def _list_tokens(tx: Tx, context: Context, *, user: str) -> JsonObject:
    row, _ = accounts.find_user(tx, context.config.provider, user)
    return {"tokens": tokens_of(tx, row)}


def tokens_of(tx: Tx, user: UserRow) -> list[JsonObject]:
    """Return a user's bearer tokens, without the secrets."""
    return [
        {
            "id": token.id,
            "scheme": token.scheme,
            "label": token.label,
            "state": token.state,
            "created_at": token.created_at,
            "expires_at": token.expires_at,
            "uses_left": token.uses_left,
            "rate_claims": token.rate_claims,
            "rate_seconds": token.rate_seconds,
            "warned_at": token.warned_at,
        }
        for token in tokens.list_tokens(tx, user)
    ]


def _revoke_token(tx: Tx, context: Context, *, user: str, id: int) -> JsonObject:
    row, _ = accounts.find_user(tx, context.config.provider, user)
    tokens.revoke(tx, row, TokenId(id), context.now)
    return {"id": id}


EXAMPLE: Final = (
    '{"id": 1, "scheme": "unique", "label": "bob", "state": "live", "created_at": 1764000000000, "expires_at": null,'
    ' "uses_left": null, "rate_claims": null, "rate_seconds": null, "warned_at": null}'
)
TOKENS: Final = (
    Command(
        name="token issue",
        summary="Issue a bearer token for a user's KeyPackages; the token is shown only once.",
        arguments=(
            USER,
            Argument(
                "scheme",
                "shared: one for everybody; unique: for one requester",
                "unique",
                flag="--scheme",
                choices=tuple(tokens.SCHEMES),
            ),
            Argument("label", "a note to recognise the token by", "bob", required=False, flag="--label", secret=True),
            Argument(
                "expires_at",
                "when the token ends",
                1_764_000_000_000,
                ArgumentKind.TIME,
                required=False,
                flag="--expires",
            ),
            Argument(
                "uses",
                "how many KeyPackages the token can claim",
                20,
                ArgumentKind.NUMBER,
                required=False,
                flag="--uses",
            ),
            Argument(
                "rate_claims",
                "how many KeyPackages the token can claim in one period",
                5,
                ArgumentKind.NUMBER,
                required=False,
                flag="--rate-claims",
            ),
            Argument(
                "rate_seconds",
                "the length of a period, in seconds",
                3600,
                ArgumentKind.NUMBER,
                required=False,
                flag="--rate-seconds",
            ),
        ),
        work=_issue_token,
        answer='{"id": 1, "bearer_token": "c3VubnkgZGF5cw"}',
        example="mimids token issue alice --scheme unique --label bob --expires 90d",
        hints=NO_USER,
    ),
    Command(
        name="token list",
        summary="List a user's bearer tokens, without the secrets.",
        arguments=(USER,),
        work=_list_tokens,
        answer=f'{{"tokens": [{EXAMPLE}]}}',
        example="mimids token list alice",
        writes=False,
        hints=NO_USER,
    ),
    Command(
        name="token revoke",
        summary="Revoke a bearer token at once.",
        arguments=(USER, Argument("id", "the token's number", 1, ArgumentKind.NUMBER)),
        work=_revoke_token,
        answer='{"id": 1}',
        example="mimids token revoke alice 1",
        hints={NotFound: "run `mimids user list` and `mimids token list USER` to see the users and tokens"},
    ),
)
