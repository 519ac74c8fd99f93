"""Users and their devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds, UserRow
from mimids.wire.ids import UserId, folded


@attrs.frozen
class User:
    """One of our own users."""

    row: UserRow
    user_id: UserId
    created_at: Milliseconds
    devices: int  # number of devices
    suspended_at: Milliseconds | None  # None: not suspended


@attrs.frozen
class DeviceRecord:
    """One device of a user; only the device knows its token."""

    row: DeviceRow
    name: str
    created_at: Milliseconds
    seen_on: Milliseconds | None  # the start of the day (UTC) on which it was last seen


@attrs.frozen
class Standing:
    """Whether a device may act: the digest of its token now, and whether its user is suspended."""

    token_digest: bytes
    suspended: bool

    def admits(self, token_digest: bytes) -> bool:
        """Tell whether a device that presented the token with this digest may act; an empty digest means no token."""
        return not self.suspended and token_digest in (self.token_digest, b"")


@attrs.frozen
class NameUse:
    """The user who has a name; `complete` is false while some users' names have no digest (`add_name_digests`)."""

    user_id: UserId | None
    reserved: bool  # a removed user had it
    complete: bool


_USERS = (
    "SELECT users.id, user_id, users.created_at, count(devices.id), suspended_at FROM users"
    " LEFT JOIN devices ON devices.owner = users.id"
)


def insert_user(tx: Tx, user_id: UserId, name_digest: bytes, now: Milliseconds) -> UserRow:
    """Add a user whose id and name are not in use; `name_digest` is the SHA-256 of the id without case."""
    return UserRow(
        tx.insert(
            "INSERT INTO users (user_id, name_digest, created_at) VALUES (?, ?, ?) RETURNING id",
            (user_id, name_digest, now),
        )
    )


def user_alike(tx: Tx, name_digest: bytes) -> UserId | None:
    """Return the user with a name, ignoring case, or None.

    If an older version added two such users, return the first.
    """
    found = tx.one("SELECT user_id FROM users WHERE name_digest = ? ORDER BY id LIMIT 1", (name_digest,))
    return None if found is None else UserId(found[0])


def use_of_name(tx: Tx, name_digest: bytes) -> NameUse:
    """Return the user who has or had a name, ignoring case."""
    found = tx.one(
        "SELECT (SELECT user_id FROM users WHERE name_digest = ?1 ORDER BY id LIMIT 1),"
        " EXISTS (SELECT 1 FROM reserved_names WHERE digest = ?1),"
        " NOT EXISTS (SELECT 1 FROM users WHERE name_digest IS NULL)",
        (name_digest,),
    )
    user_id, reserved, complete = found or (None, 0, 1)
    return NameUse(user_id, bool(reserved), bool(complete))


def add_name_digests(tx: Tx, digest: Callable[[UserId], bytes]) -> None:
    """Compute the digests of names that older versions did not store."""
    rows = tx.all("SELECT user_id, id FROM users WHERE name_digest IS NULL")
    tx.executemany("UPDATE users SET name_digest = ? WHERE id = ?", [(digest(row[0]), row[1]) for row in rows])


def reserve_name(tx: Tx, digest: bytes) -> None:
    """Reserve a removed user's name, so that no new user gets it."""
    tx.execute("INSERT INTO reserved_names (digest) VALUES (?) ON CONFLICT DO NOTHING", (digest,))


def release_name(tx: Tx, digest: bytes) -> None:
    """Allow a new user to get a removed user's name."""
    tx.execute("DELETE FROM reserved_names WHERE digest = ?", (digest,))


def set_suspended(tx: Tx, user: UserRow, suspended_at: Milliseconds | None) -> bool:
    """Suspend a user from this time on, or resume the user if the time is None. Return False if nothing changes."""
    present = "IS NOT NULL" if suspended_at is None else "IS NULL"
    return (
        tx.execute(f"UPDATE users SET suspended_at = ? WHERE id = ? AND suspended_at {present}", (suspended_at, user))
        > 0
    )


def find_user(tx: Tx, user_id: UserId) -> UserRow | None:
    """Return the row of a user, None if there is no such user."""
    found = tx.one("SELECT id FROM users WHERE user_id = ?", (user_id,))
    return None if found is None else UserRow(found[0])


def delete_user(tx: Tx, user: UserRow) -> None:
    """Delete a user with all devices, tokens and KeyPackages; `store.removed` deletes other rows of the devices."""
    tx.execute("DELETE FROM users WHERE id = ?", (user,))


def all_users(tx: Tx) -> list[User]:
    """Return all users, in the order they were added."""
    return [User(*row) for row in tx.all(f"{_USERS} GROUP BY users.id ORDER BY users.id")]


def user_by_row(tx: Tx, user: UserRow) -> User:
    """Return the user of a row that must exist; raise `LookupError` otherwise."""
    found = tx.one(f"{_USERS} WHERE users.id = ? GROUP BY users.id", (user,))
    if found is None:
        raise LookupError("no such user")
    return User(*found)


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


def user_of_row(tx: Tx, user: UserRow) -> UserId | None:
    """Return the id of a user, None if the user was removed."""
    found = tx.one("SELECT user_id FROM users WHERE id = ?", (user,))
    return None if found is None else UserId(found[0])


def name_of_device(tx: Tx, device: DeviceRow) -> str | None:
    """Return the name of a device, None if the device was removed."""
    found = tx.one("SELECT name FROM devices WHERE id = ?", (device,))
    return None if found is None else str(found[0])


def standing_of(tx: Tx, device: DeviceRow) -> Standing | None:
    """Return whether a device may act, None if it was removed."""
    found = tx.one(
        "SELECT token_digest, suspended_at IS NOT NULL FROM devices JOIN users ON users.id = owner"
        " WHERE devices.id = ?",
        (device,),
    )
    return None if found is None else Standing(found[0], bool(found[1]))


def set_token(tx: Tx, device: DeviceRow, token_digest: bytes) -> None:
    """Replace the token of a device by a token with this SHA-256."""
    tx.execute("UPDATE devices SET token_digest = ? WHERE id = ?", (token_digest, device))


def note_seen(tx: Tx, devices: Iterable[DeviceRow], day: Milliseconds) -> None:
    """Record that devices were seen on a day, unless they were seen later."""
    tx.executemany(
        "UPDATE devices SET seen_on = ?1 WHERE id = ?2 AND coalesce(seen_on, 0) < ?1", [(day, each) for each in devices]
    )


def devices_of(tx: Tx, user: UserRow) -> list[DeviceRecord]:
    """Return a user's devices, in the order they were added."""
    rows = tx.all("SELECT id, name, created_at, seen_on FROM devices WHERE owner = ? ORDER BY id", (user,))
    return [DeviceRecord(*row) for row in rows]


def has_device(tx: Tx, user_id: UserId, name: str) -> bool:
    """Tell whether a user has a device of this name, ignoring case."""
    rows = tx.all("SELECT name FROM devices JOIN users ON users.id = devices.owner WHERE user_id = ?", (user_id,))
    return folded(name) in {folded(row[0]) for row in rows}


def device_by_token(tx: Tx, token_digest: bytes) -> tuple[DeviceRow, str, UserId, bool] | None:
    """Return row, name and user of the device whose token has this SHA-256, and whether the user is suspended.

    Returns None if no device has this token.
    """
    found = tx.one(
        "SELECT devices.id, name, user_id, suspended_at IS NOT NULL FROM devices"
        " JOIN users ON users.id = devices.owner WHERE token_digest = ?",
        (token_digest,),
    )
    return None if found is None else (DeviceRow(found[0]), found[1], UserId(found[2]), bool(found[3]))
