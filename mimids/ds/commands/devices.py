"""Commands on the devices of users."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.accounts import NO_USER, USER
from mimids.ds.commands.declare import Argument, Command, Context, Effect, Hints, JsonObject
from mimids.ds.commands.recorded import Named
from mimids.ds.devices import accounts
from mimids.errors import NameTaken, NotFound
from mimids.store.account_details import devices_with_details
from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, UserRow
from mimids.web_push.subscription import parse_endpoint


def _add_device(tx: Tx, context: Context, *, user: str, name: str) -> JsonObject:
    added = accounts.add_device(tx, context.config.provider, user, name, context.now)
    return {"device_id": added.device_id, "token": added.token}


def _list_devices(tx: Tx, context: Context, *, user: str) -> JsonObject:
    row, _ = accounts.find_user(tx, context.config.provider, user)
    return {"devices": devices_of(tx, context, row)}


def devices_of(tx: Tx, context: Context, user: UserRow) -> list[JsonObject]:
    """Return a user's devices; `streams` is None outside a running server."""
    return [
        {
            "device_id": each.name,
            "created_at": each.created_at,
            "last_seen_on": each.seen_on,
            "streams": None if context.running is None else context.running.streams(each.row),
            "key_packages": each.key_packages,
            "last_resorts": each.last_resorts,
            "welcomes": each.welcomes,
            "groups_pushed": each.groups,
            "woken_by": None if each.push_endpoint is None else parse_endpoint(each.push_endpoint).authority,
            "woken": each.is_woken,
        }
        for each in devices_with_details(tx, user, context.now)
    ]


def _remove_device(tx: Tx, context: Context, *, user: str, name: str) -> JsonObject:
    device = accounts.find_device(tx, context.config.provider, user, name)
    accounts.remove_device(tx, context.config.provider, user, device.name)
    return {"device_id": device.name}


def _rotate_token(tx: Tx, context: Context, *, user: str, name: str) -> JsonObject:
    rotated = accounts.rotate_token(tx, context.config.provider, user, name, context.now)
    return {"device_id": rotated.device_id, "token": rotated.token}


def _device(tx: Tx, context: Context, *, user: str, name: str) -> list[DeviceRow]:
    return [accounts.find_device(tx, context.config.provider, user, name).row]


_DEVICE: Final = Argument("name", "the device's name", "phone", named=Named.DEVICE)
_NO_DEVICE: Final[Hints] = {
    NotFound: "run `mimids user list` and `mimids device list USER` to see the users and devices"
}
DEVICE_EXAMPLE: Final = (
    '{"device_id": "phone", "created_at": 1764000000000, "last_seen_on": 1764028800000, "streams": 1,'
    ' "key_packages": 100, "last_resorts": 1, "welcomes": 0, "groups_pushed": 3,'
    ' "woken_by": "push.example", "woken": false}'
)


DEVICES: Final = (
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
        summary="List a user's devices: day last seen, open streams, KeyPackages in stock, number of groups that other"
        " hubs push to this provider for it, and which push service wakes it.",
        arguments=(USER,),
        work=_list_devices,
        answer=f'{{"devices": [{DEVICE_EXAMPLE}]}}',
        example="mimids device list alice",
        writes=False,
        reads_running=True,
        hints=NO_USER,
    ),
    Command(
        name="device remove",
        summary="Remove a device with its KeyPackages; its token is invalid from then on.",
        arguments=(USER, _DEVICE),
        work=_remove_device,
        answer='{"device_id": "phone"}',
        example="mimids device remove alice phone",
        effects=(Effect.ACCOUNTS, Effect.REMOVED),
        hints=_NO_DEVICE,
    ),
    Command(
        name="device rotate-token",
        summary="Give a device a new token, shown only once. The old token becomes invalid; its streams end.",
        arguments=(USER, _DEVICE),
        work=_rotate_token,
        answer='{"device_id": "phone", "token": "bW9vbg"}',
        example="mimids device rotate-token alice phone",
        effects=(Effect.ACCOUNTS,),
        ends=_device,
        hints=_NO_DEVICE,
    ),
)
