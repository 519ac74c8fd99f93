"""Commands on users, their devices and the bearer tokens for their KeyPackages."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.declare import Argument, ArgumentKind, Command, Context, Effect, Hints, JsonObject
from mimids.ds.devices import accounts
from mimids.ds.key_packages import tokens
from mimids.errors import NameTaken, NotFound
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds, TokenId
from mimids.wire.base64url import base64url

USER: Final = Argument("user", "the user's local name or full user id", "alice")
_DEVICE: Final = Argument("name", "the device's name", "phone")
NO_USER: Final[Hints] = {NotFound: "run `mimids user list` to see the users"}


def _add_user(tx: Tx, context: Context, *, name: str) -> JsonObject:
    return {"user_id": accounts.add_user(tx, context.config.provider, name, context.now).decode()}


def _list_users(tx: Tx, _: Context) -> JsonObject:
    return {
        "users": [
            {"user_id": user.user_id.decode(), "devices": user.devices, "created_at": user.created_at}
            for user in accounts.list_users(tx)
        ]
    }


def _remove_user(tx: Tx, context: Context, *, user: str) -> JsonObject:
    _, user_id = accounts.find_user(tx, context.config.provider, user)
    accounts.remove_user(tx, context.config.provider, user)
    return {"user_id": user_id.decode()}


def _add_device(tx: Tx, context: Context, *, user: str, name: str) -> JsonObject:
    added = accounts.add_device(tx, context.config.provider, user, name, context.now)
    return {"device_id": added.device_id, "token": added.token}


def _list_devices(tx: Tx, context: Context, *, user: str) -> JsonObject:
    found = accounts.list_devices(tx, context.config.provider, user)
    return {"devices": [{"device_id": device.name, "created_at": device.created_at} for device in found]}


def _remove_device(tx: Tx, context: Context, *, user: str, name: str) -> JsonObject:
    accounts.remove_device(tx, context.config.provider, user, name)
    return {"device_id": name}


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
    return {
        "tokens": [
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
            for token in tokens.list_tokens(tx, row)
        ]
    }


def _revoke_token(tx: Tx, context: Context, *, user: str, id: int) -> JsonObject:
    row, _ = accounts.find_user(tx, context.config.provider, user)
    tokens.revoke(tx, row, TokenId(id), context.now)
    return {"id": id}


ACCOUNTS: Final = (
    Command(
        name="user add",
        summary="Add a user.",
        arguments=(Argument("name", "the local name: the last part of mimi://PROVIDER/u/NAME", "alice"),),
        work=_add_user,
        answer='{"user_id": "mimi://a.example/u/alice"}',
        example="mimids user add alice",
        effects=(Effect.ACCOUNTS,),
        hints={NameTaken: "run `mimids user list` to see the users"},
    ),
    Command(
        name="user list",
        summary="List all users.",
        work=_list_users,
        answer='{"users": [{"user_id": "mimi://a.example/u/alice", "devices": 1, "created_at": 1764000000000}]}',
        example="mimids user list --json",
        writes=False,
    ),
    Command(
        name="user remove",
        summary="Remove a user with all devices, bearer tokens and KeyPackages.",
        arguments=(USER,),
        work=_remove_user,
        answer='{"user_id": "mimi://a.example/u/alice"}',
        example="mimids user remove alice",
        effects=(Effect.ACCOUNTS,),
        hints=NO_USER,
    ),
    Command(
        name="device add",
        summary="Add a device to a user; the device's token is shown only once.",
        arguments=(USER, _DEVICE),
        work=_add_device,
        answer='{"device_id": "phone", "token": "bW9vbg"}',
        example="mimids device add alice phone",
        effects=(Effect.ACCOUNTS,),
        hints={**NO_USER, NameTaken: "run `mimids device list USER` to see the names in use"},
    ),
    Command(
        name="device list",
        summary="List a user's devices.",
        arguments=(USER,),
        work=_list_devices,
        answer='{"devices": [{"device_id": "phone", "created_at": 1764000000000}]}',
        example="mimids device list alice",
        writes=False,
        hints=NO_USER,
    ),
    Command(
        name="device remove",
        summary="Remove a device with its KeyPackages; its token is invalid from then on.",
        arguments=(USER, _DEVICE),
        work=_remove_device,
        answer='{"device_id": "phone"}',
        example="mimids device remove alice phone",
        effects=(Effect.ACCOUNTS,),
        hints={NotFound: "run `mimids user list` and `mimids device list USER` to see the users and devices"},
    ),
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
            Argument("label", "a note to recognise the token by", "bob", required=False, flag="--label"),
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
        answer='{"tokens": [{"id": 1, "scheme": "unique", "label": "bob", "state": "live", "created_at": 1764000000000,'
        ' "expires_at": null, "uses_left": null, "rate_claims": null, "rate_seconds": null, "warned_at": null}]}',
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
