"""Users and their devices."""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds, UserRow
from mimids.wire.ids import UserId


@attrs.frozen
class User:
    """One of our own users."""

    row: UserRow
    user_id: UserId
    created_at: Milliseconds
    devices: int  # number of devices


@attrs.frozen
class DeviceRecord:
    """One device of a user; only the device knows its token."""

    row: DeviceRow
    name: str
    created_at: Milliseconds


def insert_user(tx: Tx, user_id: UserId, now: Milliseconds) -> UserRow | None:
    """Add a user; return None if the user id exists already."""
    found = tx.one(
        "INSERT INTO users (user_id, created_at) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id", (user_id, now)
    )
    return None if found is None else UserRow(found[0])


def find_user(tx: Tx, user_id: UserId) -> UserRow | None:
    """Return the row of a user, None if there is no such user."""
    found = tx.one("SELECT id FROM users WHERE user_id = ?", (user_id,))
    return None if found is None else UserRow(found[0])


def delete_user(tx: Tx, user: UserRow) -> None:
    """Delete a user with all devices, tokens and KeyPackages; KeyPackage references stay until they expire."""
    tx.execute("DELETE FROM users WHERE id = ?", (user,))


def all_users(tx: Tx) -> list[User]:
    """Return all users, in the order they were added."""
    rows = tx.all(
        "SELECT users.id, user_id, users.created_at, count(devices.id) FROM users"
        " LEFT JOIN devices ON devices.owner = users.id GROUP BY users.id ORDER BY users.id"
    )
    return [User(*row) for row in rows]


def insert_device(tx: Tx, user: UserRow, name: str, token_digest: bytes, now: Milliseconds) -> DeviceRow | None:
    """Add a device; return None if the user has a device of that name already."""
    found = tx.one(
        "INSERT INTO devices (owner, name, token_digest, created_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (owner, name) DO NOTHING RETURNING id",
        (user, name, token_digest, now),
    )
    return None if found is None else DeviceRow(found[0])


def delete_device(tx: Tx, user: UserRow, name: str) -> DeviceRow | None:
    """Delete a device with its KeyPackages; return None if there is no such device."""
    found = tx.one("DELETE FROM devices WHERE owner = ? AND name = ? RETURNING id", (user, name))
    return None if found is None else DeviceRow(found[0])


def user_of_device(tx: Tx, device: DeviceRow) -> UserId | None:
    """Return the user of a device, None if the device was removed."""
    found = tx.one("SELECT user_id FROM users JOIN devices ON devices.owner = users.id WHERE devices.id = ?", (device,))
    return None if found is None else UserId(found[0])


def device_exists(tx: Tx, device: DeviceRow) -> bool:
    """Return whether a device exists and was not removed."""
    return tx.one("SELECT 1 FROM devices WHERE id = ?", (device,)) is not None


def devices_of(tx: Tx, user: UserRow) -> list[DeviceRecord]:
    """Return a user's devices, in the order they were added."""
    rows = tx.all("SELECT id, name, created_at FROM devices WHERE owner = ? ORDER BY id", (user,))
    return [DeviceRecord(*row) for row in rows]


def device_by_token(tx: Tx, token_digest: bytes) -> tuple[DeviceRow, str, UserId] | None:
    """Return row, name and user of the device whose token has this SHA-256, None if there is none."""
    found = tx.one(
        "SELECT devices.id, name, user_id FROM devices JOIN users ON users.id = devices.owner WHERE token_digest = ?",
        (token_digest,),
    )
    return None if found is None else (DeviceRow(found[0]), found[1], UserId(found[2]))
