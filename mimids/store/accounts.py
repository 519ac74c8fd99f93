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
    devices: int  # how many it has


@attrs.frozen
class DeviceRecord:
    """One device of a user; its token is known to the device only."""

    row: DeviceRow
    name: str
    created_at: Milliseconds


def insert_user(tx: Tx, user_id: UserId, now: Milliseconds) -> UserRow | None:
    """Add a user; None if there is one of that id."""
    found = tx.one(
        "INSERT INTO users (user_id, created_at) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id", (user_id, now)
    )
    return None if found is None else UserRow(found[0])


def find_user(tx: Tx, user_id: UserId) -> UserRow | None:
    """Return the row of a user."""
    found = tx.one("SELECT id FROM users WHERE user_id = ?", (user_id,))
    return None if found is None else UserRow(found[0])


def delete_user(tx: Tx, user: UserRow) -> None:
    """Delete a user with all devices, tokens and stock; references stay remembered until they expire."""
    tx.execute("DELETE FROM users WHERE id = ?", (user,))


def all_users(tx: Tx) -> list[User]:
    """Return all users, in the order they were added."""
    rows = tx.all(
        "SELECT users.id, user_id, users.created_at, count(devices.id) FROM users"
        " LEFT JOIN devices ON devices.user = users.id GROUP BY users.id ORDER BY users.id"
    )
    return [User(*row) for row in rows]


def insert_device(tx: Tx, user: UserRow, name: str, token_digest: bytes, now: Milliseconds) -> DeviceRow | None:
    """Add a device; None if the user has one of that name."""
    found = tx.one(
        "INSERT INTO devices (user, name, token_digest, created_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (user, name) DO NOTHING RETURNING id",
        (user, name, token_digest, now),
    )
    return None if found is None else DeviceRow(found[0])


def delete_device(tx: Tx, user: UserRow, name: str) -> DeviceRow | None:
    """Delete a device with its stock; None if there is no such device."""
    found = tx.one("DELETE FROM devices WHERE user = ? AND name = ? RETURNING id", (user, name))
    return None if found is None else DeviceRow(found[0])


def user_of_device(tx: Tx, device: DeviceRow) -> UserId | None:
    """Return whose device this is, None for one that was removed."""
    found = tx.one("SELECT user_id FROM users JOIN devices ON devices.user = users.id WHERE devices.id = ?", (device,))
    return None if found is None else UserId(found[0])


def device_exists(tx: Tx, device: DeviceRow) -> bool:
    """Tell whether a device was not removed."""
    return tx.one("SELECT 1 FROM devices WHERE id = ?", (device,)) is not None


def devices_of(tx: Tx, user: UserRow) -> list[DeviceRecord]:
    """Return a user's devices, in the order they were added."""
    rows = tx.all("SELECT id, name, created_at FROM devices WHERE user = ? ORDER BY id", (user,))
    return [DeviceRecord(*row) for row in rows]


def device_by_token(tx: Tx, token_digest: bytes) -> tuple[DeviceRow, str, UserId] | None:
    """Return row, name and user of the device that this token's SHA-256 belongs to."""
    found = tx.one(
        "SELECT devices.id, name, user_id FROM devices JOIN users ON users.id = devices.user WHERE token_digest = ?",
        (token_digest,),
    )
    return None if found is None else (DeviceRow(found[0]), found[1], UserId(found[2]))
