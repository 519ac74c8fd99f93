"""Our own users and their devices: functions that change them inside a transaction, and the check of device tokens."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

import attrs

from mimids.ds.lru import LeastRecentlyUsed
from mimids.errors import Malformed, NameTaken, NotFound, Unauthenticated
from mimids.store import accounts, departures, participations, push_subscriptions, removed
from mimids.store.accounts import DeviceRecord, User
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Device, DeviceRow, Milliseconds, UserRow
from mimids.wire.ids import ProviderId, Secret, UserId, folded, local_user_id, name_fault, spelling_fault

NAME_OCTETS: Final = 255
DEVICES_CACHED: Final = 10_000
SUSPENDED: Final = "the operator has suspended this user; the device token is valid again when that ends"


@attrs.frozen
class NewDevice:
    """A new device and its token. Only the token's digest is stored, so this is the only time that it can be shown."""

    row: DeviceRow
    device_id: str
    token: str = attrs.field(repr=False)


def add_user(tx: Tx, provider: ProviderId, name: str, now: Milliseconds, *, reuse: bool = False) -> UserId:
    """Add a user; raise `Malformed` if the local name cannot be part of a user id, `NameTaken` if the name is in use.

    Names are compared without case. The name of a removed user also counts as in use, unless `reuse` is true: others
    may still use the name for the removed user.
    """
    user_id = _checked_user_id(provider, name)
    digest = _name_digest(user_id)
    use = accounts.use_of_name(tx, digest)
    if not use.complete:
        accounts.add_name_digests(tx, _name_digest)
        use = accounts.use_of_name(tx, digest)
    if use.user_id == user_id:
        raise NameTaken
    if use.user_id is not None:
        raise NameTaken(f"there is a user {use.user_id.decode()}, and names are compared without case")
    if use.reserved:
        if not reuse:
            raise NameTaken("a user of this name was removed, and others may still use the name for that user")
        accounts.release_name(tx, digest)
    accounts.insert_user(tx, user_id, digest, now)
    return user_id


def find_user(tx: Tx, provider: ProviderId, user: str) -> tuple[UserRow, UserId]:
    """Return the row and id of a user, given by local name or full user id; raise `NotFound`, or `Malformed`.

    The name is compared without case. If several users match, an exact match is returned. Earlier versions stored no
    digests of names. After an update, users that an earlier version added are found only by the exact name, until the
    next user is added.
    """
    if user.lower().startswith("mimi:"):
        misspelt = spelling_fault(user.encode())
        if misspelt is not None:
            raise Malformed(misspelt)
        user_id = UserId(user.encode())
    else:
        user_id = local_user_id(provider, user)
    row = accounts.find_user(tx, user_id)
    if row is None:
        user_id = accounts.user_alike(tx, _name_digest(user_id)) or user_id
        row = accounts.find_user(tx, user_id)
    if row is None:
        raise NotFound("there is no user with this name")
    return row, user_id


def remove_user(tx: Tx, provider: ProviderId, user: str) -> None:
    """Remove a user with all devices, bearer tokens, KeyPackages and rows that refer to them; raise `NotFound`.

    The digest of the name stays reserved, so that no new user gets this user id. The user's devices leave their groups,
    so that other hubs stop pushing groups that no device here reads.
    """
    row, user_id = find_user(tx, provider, user)
    departures.note_removed_user(tx, row)
    removed.forget_devices(tx, [device.row for device in accounts.devices_of(tx, row)])
    removed.forget_user(tx, user_id)
    accounts.reserve_name(tx, _name_digest(user_id))
    accounts.delete_user(tx, row)


def suspend_user(tx: Tx, provider: ProviderId, user: str, now: Milliseconds) -> UserId:
    """Refuse a user's devices and bearer tokens until `resume_user`, without deleting rows. Raise `NotFound`.

    The devices leave their groups at other hubs, like a removed user's devices. They join again when the user is
    resumed and they make a request. After the commit, their sessions must be ended (`Sessions.end`). Raises `Malformed`
    if the user is suspended already.
    """
    row, user_id = find_user(tx, provider, user)
    if not accounts.set_suspended(tx, row, now):
        raise Malformed("this user is suspended already")
    for device in accounts.devices_of(tx, row):
        participations.end_of_device(tx, device.row, now)
    return user_id


def resume_user(tx: Tx, provider: ProviderId, user: str) -> UserId:
    """Accept a suspended user's devices and tokens again; raise `NotFound`, or `Malformed` if the user is active."""
    row, user_id = find_user(tx, provider, user)
    if not accounts.set_suspended(tx, row, None):
        raise Malformed("this user is not suspended")
    return user_id


def list_users(tx: Tx) -> list[User]:
    """Return all users."""
    return accounts.all_users(tx)


def add_device(tx: Tx, provider: ProviderId, user: str, name: str, now: Milliseconds) -> NewDevice:
    """Add a device to a user; raise `NotFound`, `Malformed` or `NameTaken`."""
    row, _ = find_user(tx, provider, user)
    _checked_user_id(provider, name)  # a device name has the same rules: it is in a credential's identity, /d/DEVICE
    token = secrets.token_urlsafe(32)
    alike = [each.name for each in accounts.devices_of(tx, row) if folded(each.name) == folded(name)]
    if alike and name not in alike:
        raise NameTaken(f"the user has a device {alike[0]}, and names are compared without case")
    device = accounts.insert_device(tx, row, name, _digest(Secret(token.encode())), now)
    if device is None:
        raise NameTaken
    return NewDevice(device, name, token)


def rotate_token(tx: Tx, provider: ProviderId, user: str, name: str, now: Milliseconds) -> NewDevice:
    """Give a device a new token, and make the old one invalid at once. Raise `NotFound`.

    The device leaves its groups at other hubs until it presents their keys again. It is no longer woken until it
    subscribes again. Somebody who has the old token may have presented those keys, and may have made that subscription.
    After the commit, its sessions must be ended (`Sessions.end`).
    """
    device = find_device(tx, provider, user, name)
    token = secrets.token_urlsafe(32)
    accounts.set_token(tx, device.row, _digest(Secret(token.encode())))
    push_subscriptions.delete(tx, device.row)
    participations.end_of_device(tx, device.row, now)
    return NewDevice(device.row, device.name, token)


def find_device(tx: Tx, provider: ProviderId, user: str, name: str) -> DeviceRecord:
    """Return a user's device; the case of the name matters only if two names differ only in case. Raise `NotFound`."""
    row, _ = find_user(tx, provider, user)
    devices = accounts.devices_of(tx, row)
    exact = [each for each in devices if each.name == name]
    found = exact or [each for each in devices if folded(each.name) == folded(name)]
    if not found:
        raise NotFound("this user has no device with this name")
    return found[0]


def remove_device(tx: Tx, provider: ProviderId, user: str, name: str) -> DeviceRow:
    """Remove a device, its KeyPackages and all rows that name it; raise `NotFound`.

    The device's token is invalid from then on.

    The device leaves its groups, so that other hubs stop pushing groups that no device here reads.
    """
    row, _ = find_user(tx, provider, user)
    device = find_device(tx, provider, user, name)
    departures.note_removed_device(tx, device.row)
    accounts.delete_device(tx, row, device.name)
    removed.forget_devices(tx, [device.row])
    return device.row


class DeviceTokens:
    """Finds the device that a token belongs to, and caches the device until `forget`.

    After a commit that changes accounts, call `forget` before confirming the change, so that a removal takes effect at
    once.
    """

    def __init__(
        self, store: Store, provider: ProviderId, seen: Callable[[DeviceRow], Awaitable[None]] | None = None
    ) -> None:
        """Make the cache; `seen` is called with each device that is authenticated, and awaited."""
        self._store = store
        self._seen = seen
        self._provider = provider
        self._cache: LeastRecentlyUsed[bytes, Device] = LeastRecentlyUsed(DEVICES_CACHED)  # by digest of the token
        self._generation = 0
        store.when_changed(self.forget, "devices", "users")

    async def authenticate(self, token: Secret) -> Device | None:
        """Return the device with this token (the ASCII text of the token); None if no device has it.

        Raises `Unauthenticated` if its user is suspended.
        """
        digest = _digest(token)
        cached = self._cache.get(digest)
        if cached is not None:
            return await self._note(cached)
        generation = self._generation
        found = await self._store.read(lambda tx: accounts.device_by_token(tx, digest))
        if found is None:
            return None
        row, name, user_id, suspended = found
        if suspended:
            raise Unauthenticated(SUSPENDED)
        device = Device(self._provider, user_id, row, name, digest)
        if generation == self._generation:  # if they differ, the snapshot may be older than a removal
            self._cache.put(digest, device)
        return await self._note(device)

    async def _note(self, device: Device) -> Device:
        if self._seen is not None:
            await self._seen(device.row)
        return device

    def forget(self) -> None:
        """Clear the cache."""
        self._cache.clear()
        self._generation += 1


def _name_digest(user_id: UserId) -> bytes:
    return hashlib.sha256(folded(user_id.decode()).encode()).digest()


def _digest(token: Secret) -> bytes:
    return hashlib.sha256(token.reveal()).digest()


def _checked_user_id(provider: ProviderId, name: str) -> UserId:
    fault = f"a name has at most {NAME_OCTETS} octets" if len(name.encode()) > NAME_OCTETS else name_fault(name)
    if fault is not None:
        raise Malformed(fault)
    return local_user_id(provider, name)
