"""Commands on contact cards and on the keys of the OHTTP gateway."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.accounts import NO_USER, USER
from mimids.ds.commands.declare import Argument, ArgumentKind, Command, Context, Effect, JsonObject
from mimids.ds.devices import accounts
from mimids.ds.key_packages import contact_card, gateway_keys, tokens
from mimids.errors import Malformed, MimiError
from mimids.ohttp.keyring import Schedule
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.ids import BearerToken

_DAY_SECONDS: Final = 86_400


def _contact(
    tx: Tx,
    context: Context,
    *,
    user: str,
    bearer_token: str | None = None,
    scheme: str = "shared",
    label: str = "contact card",
    expires_at: int | None = None,
) -> JsonObject:
    row, user_id = accounts.find_user(tx, context.config.provider, user)
    if bearer_token is None:
        ends = None if expires_at is None else Milliseconds(expires_at)
        token = tokens.issue(tx, row, tokens.TokenTerms(scheme, label, ends), context.now).bearer_token
    else:
        token = _token(bearer_token)
        checks = tokens.Tokens(tokens.AbuseRule())
        judged = checks.check(checks.find(tx, user_id, token), context.now)
        if isinstance(judged, MimiError):
            raise Malformed("bearer_token: this user has no such token, or it is no longer valid")
    identity = gateway_keys.ensure_identity(tx, context.operator_key)
    return dict(contact_card.ContactCard(user_id, context.config.provider, token, identity.public).as_json())


def _list_keys(tx: Tx, context: Context) -> JsonObject:
    identity = gateway_keys.identity_public(tx)
    keyring = gateway_keys.load(tx, _schedule(context), context.operator_key)
    seconds = context.now // 1000
    current = keyring.current(seconds)
    return {
        "ohttp_identity": None if identity is None else base64url(identity),
        "rotation_due_at": keyring.without(keyring.stored_ahead(seconds)).rotation_due_at(seconds) * 1000,
        "keys": [
            {
                "key_id": row.key_id,
                "served": row is current,
                "created_at": row.created_at * 1000,
                "not_after": row.not_after * 1000,
                "retire_at": row.retire_at * 1000,
            }
            for row in keyring.rows
        ],
    }


def _rotate(tx: Tx, context: Context, *, retire_others: bool = False) -> JsonObject:
    key_id = gateway_keys.rotate(
        tx, _schedule(context), context.operator_key, context.now // 1000, retire_others=retire_others
    )
    return {"key_id": key_id}


def _schedule(context: Context) -> Schedule:
    ohttp = context.config.ohttp
    return Schedule(ohttp.rotate_days * _DAY_SECONDS, ohttp.grace_days * _DAY_SECONDS)


def _token(written: str) -> BearerToken:
    try:
        return BearerToken(from_base64url(written))
    except ValueError:
        raise Malformed("bearer_token: expected base64url, as `mimids token issue` prints it") from None


_KEY_EXAMPLE: Final = (
    '{"key_id": 3, "served": true, "created_at": 1764000000000, "not_after": 1767196200000, "retire_at": 1767196800000}'
)

GATEWAY: Final = (
    Command(
        name="contact",
        summary="Print the contact card that a discovery service hands out for a user.",
        arguments=(
            USER,
            Argument(
                "bearer_token",
                "a valid token of the user; without it, a new token is issued",
                "c3VubnkgZGF5cw",
                required=False,
                flag="--token",
                secret=True,
            ),
            Argument(
                "scheme",
                "scheme of the new token",
                "shared",
                required=False,
                flag="--scheme",
                choices=tuple(tokens.SCHEMES),
            ),
            Argument("label", "label of the new token", "contact card", required=False, flag="--label", secret=True),
            Argument(
                "expires_at",
                "when the new token ends",
                1_764_000_000_000,
                ArgumentKind.TIME,
                required=False,
                flag="--expires",
            ),
        ),
        work=_contact,
        answer='{"user_id": "mimi://a.example/u/alice", "provider": "a.example", "bearer_token": "c3VubnkgZGF5cw",'
        ' "ohttp_identity": "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"}',
        example="mimids contact alice --json",
        hints=NO_USER,
    ),
    Command(
        name="ohttp keys",
        summary="List the gateway's keys, and the identity that signs them.",
        work=_list_keys,
        answer='{"ohttp_identity": "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg", "rotation_due_at": 1766592000000,'
        f' "keys": [{_KEY_EXAMPLE}]}}',
        example="mimids ohttp keys",
        writes=False,
    ),
    Command(
        name="ohttp rotate",
        summary="Make the next gateway key now.",
        arguments=(
            Argument(
                "retire_others",
                "delete all earlier keys at once; requests sealed to them can no longer be opened",
                True,
                ArgumentKind.FLAG,
                required=False,
                flag="--retire-others",
            ),
        ),
        work=_rotate,
        answer='{"key_id": 4}',
        example="mimids ohttp rotate",
        effects=(Effect.OHTTP_KEYS,),
    ),
)
