"""The command `user show`: the facts about one user."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.accounts import NO_USER, USER
from mimids.ds.commands.bearer_tokens import EXAMPLE as TOKEN_EXAMPLE
from mimids.ds.commands.bearer_tokens import tokens_of
from mimids.ds.commands.declare import Command, Context, JsonObject
from mimids.ds.commands.devices import DEVICE_EXAMPLE, devices_of
from mimids.ds.commands.groups import group_name
from mimids.ds.devices import accounts
from mimids.store import accounts as stored
from mimids.store import traces
from mimids.store.account_details import storage_of
from mimids.store.engine.transaction import Tx
from mimids.wire.base64url import base64url


def _show_user(tx: Tx, context: Context, *, user: str) -> JsonObject:
    row, user_id = accounts.find_user(tx, context.config.provider, user)
    found, storage = stored.user_by_row(tx, row), storage_of(tx, row)
    groups = [
        {"group_id": base64url(group_id), "name": group_name(group_id), "hub": hub}
        for group_id, hub in traces.groups_of(tx, row)
    ]
    return {
        "user_id": user_id.decode(),
        "created_at": found.created_at,
        "suspended_at": found.suspended_at,
        "key_package_octets": storage.key_packages,
        "welcome_octets": storage.welcomes,
        "devices": devices_of(tx, context, row),
        "groups": groups,
        "tokens": tokens_of(tx, row),
    }


USER_DETAILS: Final = (
    Command(
        name="user show",
        summary="Show a user: devices, groups that the devices were seen in, stored octets, bearer tokens.",
        arguments=(USER,),
        work=_show_user,
        answer='{"user_id": "mimi://a.example/u/alice", "created_at": 1764000000000, "suspended_at": null,'
        f' "key_package_octets": 30000, "welcome_octets": 0, "devices": [{DEVICE_EXAMPLE}],'
        ' "groups": [{"group_id": "bWltaTovL2EuZXhhbXBsZS9nLzE", "name": "mimi://a.example/g/1", "hub": "a.example"}],'
        f' "tokens": [{TOKEN_EXAMPLE}]}}',
        example="mimids user show alice",
        writes=False,
        reads_running=True,
        hints=NO_USER,
    ),
)
