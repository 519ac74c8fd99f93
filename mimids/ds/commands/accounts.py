"""Commands on users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mimids.ds.commands.declare import NAMES, Argument, ArgumentKind, Command, Context, Effect, Hints, JsonObject
from mimids.ds.commands.recorded import Named
from mimids.ds.devices import accounts
from mimids.errors import Malformed, NameTaken, NotFound
from mimids.store import accounts as stored
from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow

USER: Final = Argument("user", "the user's local name or full user id", "alice", named=Named.USER)
NO_USER: Final[Hints] = {NotFound: "run `mimids user list` to see the users"}


def _add_user(
    tx: Tx, context: Context, *, name: str | None = None, users: Sequence[str] = (), reuse: bool = False
) -> JsonObject:
    names = [*([] if name is None else [name]), *users]
    if len(names) == 1:
        added = [accounts.add_user(tx, context.config.provider, names[0], context.now, reuse=reuse).decode()]
    else:
        added = [_add_one_of(tx, context, each, reuse) for each in names]
    return {"user_id": added[0]} if len(names) == 1 and name is not None else {"user_ids": added}


def _add_one_of(tx: Tx, context: Context, name: str, reuse: bool) -> str:
    try:
        return accounts.add_user(tx, context.config.provider, name, context.now, reuse=reuse).decode()
    except (NameTaken, Malformed) as error:
        raise type(error)(f"{name}: {error}") from error


def _list_users(tx: Tx, _: Context) -> JsonObject:
    return {
        "users": [
            {
                "user_id": user.user_id.decode(),
                "devices": user.devices,
                "created_at": user.created_at,
                "suspended_at": user.suspended_at,
            }
            for user in accounts.list_users(tx)
        ]
    }


def _remove_user(tx: Tx, context: Context, *, user: str) -> JsonObject:
    _, user_id = accounts.find_user(tx, context.config.provider, user)
    accounts.remove_user(tx, context.config.provider, user)
    return {"user_id": user_id.decode()}


def _suspend_user(tx: Tx, context: Context, *, user: str) -> JsonObject:
    return {"user_id": accounts.suspend_user(tx, context.config.provider, user, context.now).decode()}


def _resume_user(tx: Tx, context: Context, *, user: str) -> JsonObject:
    return {"user_id": accounts.resume_user(tx, context.config.provider, user).decode()}


def _devices_of(tx: Tx, context: Context, *, user: str) -> list[DeviceRow]:
    row, _ = accounts.find_user(tx, context.config.provider, user)
    return [each.row for each in stored.devices_of(tx, row)]


ACCOUNTS: Final = (
    Command(
        name="user add",
        summary="Add one or more users. If one of them cannot be added, none is added.",
        arguments=(
            Argument(
                "name",
                "the local name: the last part of mimi://PROVIDER/u/NAME",
                "alice",
                unless="users",
                named=Named.USER,
            ),
            Argument(
                "users",
                f"further local names, at most {NAMES}",
                "bob",
                ArgumentKind.NAMES,
                required=False,
                flag="--and",
                named=Named.USER,
            ),
            Argument(
                "reuse",
                "allow the names of removed users; others may take the new user for the removed one",
                True,
                ArgumentKind.FLAG,
                required=False,
                flag="--reuse",
            ),
        ),
        work=_add_user,
        answer='{"user_id": "mimi://a.example/u/alice"}',
        example="mimids user add alice",
        effects=(Effect.ACCOUNTS,),
        hints={NameTaken: "run `mimids user list` to see the users; for the name of a removed user, give `--reuse`"},
    ),
    Command(
        name="user list",
        summary="List all users.",
        work=_list_users,
        answer='{"users": [{"user_id": "mimi://a.example/u/alice", "devices": 1, "created_at": 1764000000000,'
        ' "suspended_at": null}]}',
        example="mimids user list --json",
        writes=False,
    ),
    Command(
        name="user remove",
        summary="Remove a user with all devices, bearer tokens and KeyPackages. Nobody gets the user id again.",
        arguments=(USER,),
        asks="Remove {user} with all devices, bearer tokens and KeyPackages?",
        work=_remove_user,
        answer='{"user_id": "mimi://a.example/u/alice"}',
        example="mimids user remove alice --yes",
        effects=(Effect.ACCOUNTS, Effect.REMOVED),
        hints=NO_USER,
    ),
    Command(
        name="user suspend",
        summary="Refuse a user's devices and bearer tokens from now on until `user resume`; nothing is deleted.",
        arguments=(USER,),
        work=_suspend_user,
        answer='{"user_id": "mimi://a.example/u/alice"}',
        example="mimids user suspend alice",
        effects=(Effect.ACCOUNTS,),
        ends=_devices_of,
        hints=NO_USER,
    ),
    Command(
        name="user resume",
        summary="Accept a suspended user's devices and bearer tokens again.",
        arguments=(USER,),
        work=_resume_user,
        answer='{"user_id": "mimi://a.example/u/alice"}',
        example="mimids user resume alice",
        effects=(Effect.ACCOUNTS,),
        hints=NO_USER,
    ),
)
