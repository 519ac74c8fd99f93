"""Our own users and their devices: functions that change them inside a transaction, and the check of device tokens."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

import attrs

from mimids.ds.lru import LeastRecentlyUsed
from mimids.errors import Malformed, NameTaken, NotFound
from mimids.mls.identity import provider_of
from mimids.store import accounts
from mimids.store.accounts import DeviceRecord, User
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Device, DeviceRow, Milliseconds, UserRow
from mimids.wire.ids import ProviderId, Secret, UserId, local_user_id

NAME_OCTETS: Final = 255
DEVICES_CACHED: Final = 10_000


@attrs.frozen
class NewDevice:
    """A new device and its token. Only the token's digest is stored, so this is the only time that it can be shown."""

    row: DeviceRow
    device_id: str
    token: str = attrs.field(repr=False)


def add_user(tx: Tx, provider: ProviderId, name: str, now: Milliseconds) -> UserId:
    """Add a user; raise `Malformed` if the local name cannot be part of a user id, `NameTaken` if it exists."""
    user_id = _checked_user_id(provider, name)
    if accounts.insert_user(tx, user_id, now) is None:
        raise NameTaken
    return user_id


def find_user(tx: Tx, provider: ProviderId, user: str) -> tuple[UserRow, UserId]:
    """Return the row and id of a user, given by local name or full user id; raise `NotFound`."""
    user_id = UserId(user.encode()) if user.startswith("mimi:") else local_user_id(provider, user)
    row = accounts.find_user(tx, user_id)
    if row is None:
        raise NotFound("there is no user with this name")
    return row, user_id


def remove_user(tx: Tx, provider: ProviderId, user: str) -> None:
    """Remove a user with all devices, bearer tokens and KeyPackages; raise `NotFound`."""
    row, _ = find_user(tx, provider, user)
    accounts.delete_user(tx, row)


def list_users(tx: Tx) -> list[User]:
    """Return all users."""
    return accounts.all_users(tx)


def add_device(tx: Tx, provider: ProviderId, user: str, name: str, now: Milliseconds) -> NewDevice:
    """Add a device to a user; raise `NotFound`, `Malformed` or `NameTaken`."""
    row, _ = find_user(tx, provider, user)
    _checked_user_id(provider, name)  # a device name has the same rules: it is in a credential's identity, /d/DEVICE
    token = secrets.token_urlsafe(32)
    device = accounts.insert_device(tx, row, name, _digest(Secret(token.encode())), now)
    if device is None:
        raise NameTaken
    return NewDevice(device, name, token)


def remove_device(tx: Tx, provider: ProviderId, user: str, name: str) -> DeviceRow:
    """Remove a device with its KeyPackages; its token is invalid from this commit on. Raise `NotFound`."""
    row, _ = find_user(tx, provider, user)
    device = accounts.delete_device(tx, row, name)
    if device is None:
        raise NotFound("this user has no device with this name")
    return device


def list_devices(tx: Tx, provider: ProviderId, user: str) -> list[DeviceRecord]:
    """Return a user's devices; raise `NotFound`."""
    row, _ = find_user(tx, provider, user)
    return accounts.devices_of(tx, row)


class DeviceTokens:
    """Finds the device that a token belongs to, and caches it until `forget`.

    After a commit that changes accounts, call `forget` before confirming the change, so that a removal holds at once.
    """

    def __init__(self, store: Store, provider: ProviderId) -> None:
        self._store = store
        self._provider = provider
        self._cache: LeastRecentlyUsed[bytes, Device] = LeastRecentlyUsed(DEVICES_CACHED)  # by digest of the token
        self._generation = 0

    async def authenticate(self, token: Secret) -> Device | None:
        """Return the device with this token (its ASCII text); None if there is none."""
        digest = _digest(token)
        cached = self._cache.get(digest)
        if cached is not None:
            return cached
        generation = self._generation
        found = await self._store.read(lambda tx: accounts.device_by_token(tx, digest))
        if found is None:
            return None
        row, name, user_id = found
        device = Device(self._provider, user_id, row, name)
        if generation == self._generation:  # else the snapshot may be older than a removal
            self._cache.put(digest, device)
        return device

    def forget(self) -> None:
        """Clear the cache."""
        self._cache.clear()
        self._generation += 1


def _digest(token: Secret) -> bytes:
    return hashlib.sha256(token.reveal()).digest()


def _checked_user_id(provider: ProviderId, name: str) -> UserId:
    user_id = local_user_id(provider, name)
    if len(name.encode()) > NAME_OCTETS or provider_of(user_id) != provider:
        raise Malformed(f"a name has only letters, digits and -._~!$&'()*+,;=:@, and at most {NAME_OCTETS} octets")
    return user_id
