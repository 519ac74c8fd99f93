"""Our own users and their devices.

What changes them are functions of a transaction, which a command runs by itself or hands to a running server.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from typing import Final

import attrs

from mimids.errors import Malformed, NameTaken, NotFound
from mimids.mls.identity import provider_of
from mimids.store import accounts
from mimids.store.accounts import DeviceRecord, User
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Device, DeviceRow, Milliseconds, UserRow
from mimids.wire.ids import ProviderId, Secret, UserId, local_user_id

NAME_OCTETS: Final = 255
DEVICES_REMEMBERED: Final = 10_000


@attrs.frozen
class NewDevice:
    """A device that was just added, and its token: it is not stored, and this is the only time that it is shown."""

    row: DeviceRow
    device_id: str
    token: str = attrs.field(repr=False)


def add_user(tx: Tx, provider: ProviderId, name: str, now: Milliseconds) -> UserId:
    """Add a user of that local name; raise `Malformed` if it cannot be part of a user id, `NameTaken` if it is one."""
    user_id = _checked(provider, name)
    if accounts.insert_user(tx, user_id, now) is None:
        raise NameTaken
    return user_id


def find_user(tx: Tx, provider: ProviderId, user: str) -> tuple[UserRow, UserId]:
    """Return the row and id of a user, given by local name or full user id; raise `NotFound`."""
    user_id = UserId(user.encode()) if user.startswith("mimi:") else local_user_id(provider, user)
    row = accounts.find_user(tx, user_id)
    if row is None:
        raise NotFound("no such user")
    return row, user_id


def remove_user(tx: Tx, provider: ProviderId, user: str) -> None:
    """Remove a user with all devices, tokens and stock; raise `NotFound`."""
    row, _ = find_user(tx, provider, user)
    accounts.delete_user(tx, row)


def list_users(tx: Tx) -> list[User]:
    """Return all users."""
    return accounts.all_users(tx)


def add_device(tx: Tx, provider: ProviderId, user: str, name: str, now: Milliseconds) -> NewDevice:
    """Give a user a device; raise `NotFound`, `Malformed` or `NameTaken`."""
    row, _ = find_user(tx, provider, user)
    _checked(provider, name)  # a device's name ends a credential's identity: /d/DEVICE
    token = secrets.token_urlsafe(32)
    device = accounts.insert_device(tx, row, name, _digest(Secret(token.encode())), now)
    if device is None:
        raise NameTaken
    return NewDevice(device, name, token)


def remove_device(tx: Tx, provider: ProviderId, user: str, name: str) -> DeviceRow:
    """Remove a device with its stock; its token is worth nothing from this commit on. Raise `NotFound`."""
    row, _ = find_user(tx, provider, user)
    device = accounts.delete_device(tx, row, name)
    if device is None:
        raise NotFound("no such device")
    return device


def list_devices(tx: Tx, provider: ProviderId, user: str) -> list[DeviceRecord]:
    """Return a user's devices; raise `NotFound`."""
    row, _ = find_user(tx, provider, user)
    return accounts.devices_of(tx, row)


class Devices:
    """Finds the device that a token belongs to, and remembers it until `forget`.

    Whoever commits a change of accounts calls `forget` before it says so: then a removal holds at once.
    """

    def __init__(self, store: Store, provider: ProviderId) -> None:
        self._store = store
        self._provider = provider
        self._known: OrderedDict[bytes, Device] = OrderedDict()
        self._forgotten = 0

    async def authenticate(self, token: Secret) -> Device | None:
        """Return the device that shows this token (its text, in ASCII); None for a stranger."""
        digest = _digest(token)
        known = self._known.get(digest)
        if known is not None:
            return known
        began = self._forgotten
        found = await self._store.read(lambda tx: accounts.device_by_token(tx, digest))
        if found is None:
            return None
        row, name, user_id = found
        device = Device(self._provider, user_id, row, name)
        if began == self._forgotten:  # else the snapshot may be older than a removal
            self._known[digest] = device
            if len(self._known) > DEVICES_REMEMBERED:
                self._known.popitem(last=False)
        return device

    def forget(self) -> None:
        """Ask the store again for every token."""
        self._known.clear()
        self._forgotten += 1


def _digest(token: Secret) -> bytes:
    return hashlib.sha256(token.reveal()).digest()


def _checked(provider: ProviderId, name: str) -> UserId:
    user_id = local_user_id(provider, name)
    if len(name.encode()) > NAME_OCTETS or provider_of(user_id) != provider:
        raise Malformed("a name has letters, digits and -._~!$&'()*+,;=:@ only")
    return user_id
