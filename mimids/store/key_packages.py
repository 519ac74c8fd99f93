"""The stock of KeyPackages, whose turn it is, and the way back from a claimed reference to its device."""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds, TokenId, UserRow
from mimids.wire.ids import CipherSuite, KeyPackageRef, ProtocolVersion


@attrs.frozen
class NewKeyPackage:
    """A KeyPackage that was found sound, about to be stored."""

    device: DeviceRow
    version: ProtocolVersion
    cipher_suite: CipherSuite
    ref: KeyPackageRef
    init_key: bytes
    last_resort: bool
    expires_at: Milliseconds  # the first moment at which it may not be handed out
    body: bytes


@attrs.frozen
class Known:
    """A KeyPackage that was uploaded before: the same, or another with its init key."""

    id: int
    ref: KeyPackageRef


@attrs.frozen
class Candidate:
    """What one device could answer a claim with: its oldest ordinary KeyPackage, or else its last resort."""

    device: DeviceRow
    turn: int  # 0: never asked
    left: int  # ordinary ones, as far as they were counted
    row: int | None
    last_resort: int | None  # 1 if that is what `row` is
    body: bytes | None


@attrs.frozen
class StockRow:
    """What a device has left for one version and suite."""

    version: ProtocolVersion
    cipher_suite: CipherSuite
    left: int
    has_last_resort: bool
    last_resort_used: bool


# --- upload -----------------------------------------------------------------------------------------------------


def find_known(tx: Tx, ref: KeyPackageRef, init_key: bytes) -> Known | None:
    """Return what was uploaded before under this reference or, else, with this init key."""
    found = tx.one(
        "SELECT id, ref FROM key_package_refs WHERE ref = ? OR init_key = ? ORDER BY ref = ? DESC LIMIT 1",
        (ref, init_key, ref),
    )
    return None if found is None else Known(found[0], KeyPackageRef(found[1]))


def insert(tx: Tx, package: NewKeyPackage) -> int:
    """Put a KeyPackage into stock and remember it; a new last resort takes the place of the one before."""
    if package.last_resort:
        tx.execute(
            "DELETE FROM key_packages WHERE device = ? AND version = ? AND cipher_suite = ? AND last_resort = 1",
            (package.device, package.version, package.cipher_suite),
        )
    row = tx.insert(
        "INSERT INTO key_package_refs (ref, init_key, device, version, cipher_suite, expires_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            package.ref,
            package.init_key,
            package.device,
            package.version,
            package.cipher_suite,
            package.expires_at,
        ),
    )
    tx.insert(
        "INSERT INTO key_packages (id, device, version, cipher_suite, last_resort, expires_at, body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            row,
            package.device,
            package.version,
            package.cipher_suite,
            package.last_resort,
            package.expires_at,
            package.body,
        ),
    )
    return row


def drop_stock(tx: Tx, device: DeviceRow) -> int:
    """Take all of a device's unclaimed KeyPackages out of stock, last resorts too; return how many."""
    return tx.execute("DELETE FROM key_packages WHERE device = ?", (device,))


def drop_stock_but(tx: Tx, device: DeviceRow, keep: set[int]) -> int:
    """Do the same, but leave these in stock; return how many were dropped."""
    rows = [row for (row,) in tx.all("SELECT id FROM key_packages WHERE device = ?", (device,)) if row not in keep]
    tx.executemany("DELETE FROM key_packages WHERE id = ?", [(row,) for row in rows])
    return len(rows)


def retire_unclaimed(tx: Tx, now: Milliseconds) -> int:
    """Take everything out of stock: after a restore, any of it may have been handed out since the backup.

    So any of it may have a Welcome on its way here.
    """
    tx.execute(
        "UPDATE key_package_refs SET claimed_at = ? WHERE claimed_at IS NULL AND id IN (SELECT id FROM key_packages)",
        (now,),
    )
    return tx.execute("DELETE FROM key_packages")


def count_ordinary(
    tx: Tx, device: DeviceRow, version: ProtocolVersion, cipher_suite: CipherSuite, now: Milliseconds, *, at_most: int
) -> int:
    """Count the ordinary KeyPackages that a device has left, up to `at_most`."""
    found = tx.one(
        "SELECT count(*) FROM (SELECT 1 FROM key_packages WHERE device = ? AND version = ? AND cipher_suite = ?"
        " AND last_resort = 0 AND expires_at > ? LIMIT ?)",
        (device, version, cipher_suite, now, at_most),
    )
    return int(found[0]) if found else 0


def stock_of(tx: Tx, device: DeviceRow, now: Milliseconds) -> list[StockRow]:
    """Return what a device has left, for each version and suite that it has stock for or was asked for."""
    rows = tx.all(
        "SELECT version, cipher_suite, sum(ordinary), max(last_resort), max(used) FROM ("
        " SELECT k.version, k.cipher_suite, last_resort = 0 AS ordinary, last_resort,"
        "  last_resort = 1 AND claimed_at IS NOT NULL AS used"
        "  FROM key_packages k JOIN key_package_refs r ON r.id = k.id WHERE k.device = ?1 AND k.expires_at > ?2"
        " UNION ALL SELECT version, cipher_suite, 0, 0, 0 FROM key_package_refs WHERE device = ?1 AND turn > 0"
        ") GROUP BY version, cipher_suite ORDER BY version, cipher_suite",
        (device, now),
    )
    return [StockRow(row[0], row[1], row[2], bool(row[3]), bool(row[4])) for row in rows]


# --- claim ------------------------------------------------------------------------------------------------------


def candidates(
    tx: Tx, user: UserRow, version: ProtocolVersion, cipher_suite: CipherSuite, now: Milliseconds, *, count_to: int
) -> list[Candidate]:
    """Return what each device of a user could answer with, if anything, its stock counted up to `count_to`."""
    rows = tx.all(
        "SELECT d.id,"
        " coalesce((SELECT max(turn) FROM key_package_refs WHERE device = d.id AND version = ?2"
        "  AND cipher_suite = ?3 AND turn > 0), 0),"
        " (SELECT count(*) FROM (SELECT 1 FROM key_packages WHERE device = d.id AND version = ?2"
        "  AND cipher_suite = ?3 AND last_resort = 0 AND expires_at > ?4 LIMIT ?5)),"
        " k.id, k.last_resort, k.body"
        " FROM devices d LEFT JOIN key_packages k ON k.id = coalesce("
        "  (SELECT id FROM key_packages WHERE device = d.id AND version = ?2 AND cipher_suite = ?3"
        "   AND last_resort = 0 AND expires_at > ?4 ORDER BY id LIMIT 1),"
        "  (SELECT id FROM key_packages WHERE device = d.id AND version = ?2 AND cipher_suite = ?3"
        "   AND last_resort = 1 AND expires_at > ?4 ORDER BY id DESC LIMIT 1))"
        " WHERE d.user = ?1",
        (user, version, cipher_suite, now, count_to),
    )
    return [Candidate(*row) for row in rows]


def take_out(tx: Tx, row: int) -> None:
    """Take an ordinary KeyPackage out of stock, for good."""
    tx.execute("DELETE FROM key_packages WHERE id = ?", (row,))


def note_claim(tx: Tx, row: int, token: TokenId, turn: int, now: Milliseconds) -> None:
    """Record that a KeyPackage was handed out, for which token, and at which of the user's turns."""
    tx.execute("UPDATE key_package_refs SET claimed_at = ?, token = ?, turn = ? WHERE id = ?", (now, token, turn, row))


# --- Welcomes ---------------------------------------------------------------------------------------------------


def device_of_ref(tx: Tx, ref: KeyPackageRef) -> DeviceRow | None:
    """Return the device whose KeyPackage was handed out under this reference, None for any other."""
    found = tx.one(
        "SELECT r.device FROM key_package_refs r JOIN devices d ON d.id = r.device"
        " WHERE r.ref = ? AND r.claimed_at IS NOT NULL",
        (ref,),
    )
    return None if found is None else DeviceRow(found[0])


def note_welcome(tx: Tx, ref: KeyPackageRef) -> None:
    """Record that the last claim of this reference ended in a Welcome: the abuse rule counts it no more."""
    found = tx.one("SELECT id, token, claimed_at FROM key_package_refs WHERE ref = ? AND token IS NOT NULL", (ref,))
    if found is None:
        return
    row, token, claimed_at = found
    tx.execute("UPDATE key_package_refs SET token = NULL WHERE id = ?", (row,))
    tx.execute(
        "UPDATE tokens SET abuse_open = abuse_open - 1 WHERE id = ? AND abuse_started_at <= ? AND abuse_open > 0",
        (token, claimed_at),
    )


# --- sweeping ---------------------------------------------------------------------------------------------------


def sweep(tx: Tx, now: Milliseconds, *, forget_before: Milliseconds, unlink_before: Milliseconds) -> int:
    """Drop expired stock, and return how much.

    References that expired before `forget_before` are forgotten with their way to the device; what was claimed before
    `unlink_before` no longer says for which token.
    """
    dropped = tx.execute(
        "DELETE FROM key_packages WHERE id IN (SELECT id FROM key_package_refs WHERE expires_at <= ?)", (now,)
    )
    tx.execute("DELETE FROM key_package_refs WHERE expires_at <= ?", (forget_before,))
    tx.execute("UPDATE key_package_refs SET token = NULL WHERE token IS NOT NULL AND claimed_at < ?", (unlink_before,))
    return dropped
