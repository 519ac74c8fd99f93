"""Deleting the rows that name devices and users that were removed (docs/privacy.md).

`store.accounts` deletes the rows of users and devices, and with them the rows that have a foreign key to them:
KeyPackages in stock, bearer tokens and positions. Other tables refer to a device by its number only. This module
deletes their rows, or removes the device from them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final

from mimids.store import key_packages
from mimids.store.engine.transaction import Tx
from mimids.store.reports import REFERENCE_OCTETS
from mimids.store.welcomes import drop_references
from mimids.values import DeviceRow
from mimids.wire.ids import UserId

REMOVED: Final = 0  # in reports.reporter_device and key_package_refs.device: a device of ours that was removed

# The rates whose names begin with `device_` or `user_`: in ASCII, '`' is the next character after '_'.
_OF_DEVICES: Final = "rate >= 'device_' AND rate < 'device`'"
_OF_USERS: Final = "rate >= 'user_' AND rate < 'user`'"

# {devices} stands for a condition on the number of a device.
_STATEMENTS: Final = (
    # Otherwise the group would count as one that no device of ours has joined yet, and would still be pushed to us.
    "UPDATE groups SET departed = 1 WHERE id IN (SELECT group_ref FROM participations WHERE device {devices})",
    "DELETE FROM participations WHERE device {devices}",
    "DELETE FROM requested_partitions WHERE device {devices}",
    "DELETE FROM restored_readers WHERE device {devices}",
    "UPDATE groups SET creator_device = NULL WHERE creator_device {devices}",
    "UPDATE partitions SET opener_device = NULL WHERE opener_device {devices}",
    # The Welcomes that the device sent are still delivered, and count against no sender.
    "UPDATE outgoing_welcomes SET sender = 0 WHERE sender > 0 AND sender {devices}"
    " AND state IN ('held', 'due', 'offered')",
    "DELETE FROM expected_welcomes WHERE device {devices}",
    "DELETE FROM ohttp_replay_packages WHERE id IN (SELECT id FROM key_package_refs WHERE device {devices})",
    "UPDATE tokens SET issuer_device = NULL WHERE issuer_device {devices}",
)


def forget_devices(tx: Tx, devices: Iterable[DeviceRow]) -> None:
    """Delete the rows of these devices that `store.accounts` does not delete."""
    for device in devices:
        _forget(tx, f"= {int(device)}")
        tx.execute(f"DELETE FROM rate_buckets WHERE key = ? AND {_OF_DEVICES}", (str(device),))


def forget_user(tx: Tx, user_id: UserId) -> None:
    """Delete the saved rates of a user; other rows are deleted with the devices and with the row of the user."""
    tx.execute(f"DELETE FROM rate_buckets WHERE key = ? AND {_OF_USERS}", (user_id.decode("utf-8", "replace"),))


def forget_missing(tx: Tx) -> None:
    """Delete the rows of devices that no longer exist; reads whole tables, for use after a restore."""
    _forget(tx, "NOT IN (SELECT id FROM devices)")
    forget_rates_of_missing(tx)


def forget_rates_of_missing(tx: Tx) -> None:
    """Delete the saved rates of devices and users that no longer exist."""
    of_devices = tx.all(f"SELECT rate, key FROM rate_buckets WHERE {_OF_DEVICES}")
    tx.executemany(
        "DELETE FROM rate_buckets WHERE rate = ? AND key = ? AND NOT EXISTS (SELECT 1 FROM devices WHERE id = ?)",
        [(rate, key, int(key)) for rate, key in of_devices],
    )
    of_users = tx.all(f"SELECT rate, key FROM rate_buckets WHERE {_OF_USERS}")
    tx.executemany(
        "DELETE FROM rate_buckets WHERE rate = ? AND key = ? AND NOT EXISTS (SELECT 1 FROM users WHERE user_id = ?)",
        [(rate, key, key.encode()) for rate, key in of_users],
    )


def _forget(tx: Tx, devices: str) -> None:
    uploaded = tx.all(f"SELECT ref, init_key, id FROM key_package_refs WHERE device <> {REMOVED} AND device {devices}")
    read = tx.all(f"SELECT DISTINCT welcome FROM inbox WHERE device {devices}")
    tx.execute(f"DELETE FROM inbox WHERE device {devices}")
    drop_references(tx, {ref for ref, _, _ in uploaded}, [welcome for (welcome,) in read])
    for statement in _STATEMENTS:
        tx.execute(statement.replace("{devices}", devices))
    key_packages.make_anonymous(tx, uploaded)
    # The digest covers the reporter's name, so somebody could use it to check a guess of the name. Only the first
    # octets are kept: they are the number by which the reporter knows the report and may have told the operator of it.
    reports = tx.all(f"SELECT id, digest FROM reports WHERE reporter_device <> {REMOVED} AND reporter_device {devices}")
    tx.executemany(
        f"UPDATE reports SET reporter_device = {REMOVED}, digest = ? WHERE id = ?",
        [
            (digest[:REFERENCE_OCTETS] + secrets.token_bytes(len(digest) - REFERENCE_OCTETS), row)
            for row, digest in reports
        ],
    )
