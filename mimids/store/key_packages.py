"""KeyPackages: the stock, the order in which devices are claimed from, and the device of a claimed reference.

The token and the hour of a claim are stored until its Welcome arrives. After that only the fact that the claim was
made, and its turn, are stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds, TokenId, UserRow, hour_of
from mimids.wire.ids import CipherSuite, KeyPackageRef, ProtocolVersion


@attrs.frozen
class NewKeyPackage:
    """A validated KeyPackage that is about to be stored."""

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
    """A KeyPackage that was uploaded before: the same KeyPackage, or a different one with the same init key."""

    id: int
    ref: KeyPackageRef


class Candidate(NamedTuple):
    """The KeyPackage with which a device could answer a claim: its oldest ordinary one, or else its last resort.

    It is a tuple to be cheap to make, because each claim makes one for each device of the user.
    """

    device: DeviceRow
    turn: int  # the turn of its last claim (round robin); 0: no claim yet
    left: int  # ordinary KeyPackages, counted up to `count_to`
    row: int | None
    last_resort: int | None  # 1 if `row` is a last resort
    body: bytes | None


@attrs.frozen
class StockRow:
    """A device's stock for one version and suite."""

    version: ProtocolVersion
    cipher_suite: CipherSuite
    left: int
    has_last_resort: bool
    last_resort_used: bool


# --- upload -----------------------------------------------------------------------------------------------------


def find_known(tx: Tx, ref: KeyPackageRef, init_key: bytes) -> Known | None:
    """Return the KeyPackage that was uploaded before with this reference or, failing that, with this init key."""
    found = tx.one(
        "SELECT id, ref FROM key_package_refs WHERE ref = ? OR init_key IN (?, ?) ORDER BY ref = ? DESC LIMIT 1",
        (ref, init_key, _anonymous(init_key), ref),
    )
    return None if found is None else Known(found[0], KeyPackageRef(found[1]))


def make_anonymous(tx: Tx, uploaded: Iterable[tuple[KeyPackageRef, bytes, int]]) -> None:
    """Keep only digests of KeyPackages of removed devices, given by reference, init key and row.

    The digests are enough to refuse a KeyPackage that is uploaded again. They lead to nothing else of the device.
    """
    tx.executemany(
        "UPDATE key_package_refs SET ref = ?, init_key = ?, device = 0, claimed_at = 0, turn = NULL, token = NULL"
        " WHERE id = ?",
        [(_anonymous(ref), _anonymous(init_key), row) for ref, init_key, row in uploaded],
    )


def _anonymous(octets: bytes) -> bytes:
    return hashlib.sha256(b"mimids removed" + octets).digest()


def insert(tx: Tx, package: NewKeyPackage) -> int:
    """Add a KeyPackage to the stock and record its reference; a new last resort replaces the earlier last resort."""
    if package.last_resort:
        tx.execute(
            "DELETE FROM key_packages WHERE device = ? AND version = ? AND cipher_suite = ? AND last_resort = 1",
            (package.device, package.version, package.cipher_suite),
        )
    row = tx.insert(
        "INSERT INTO key_package_refs (ref, init_key, device, version, cipher_suite, expires_at, reusable)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (
            package.ref,
            package.init_key,
            package.device,
            package.version,
            package.cipher_suite,
            package.expires_at,
            package.last_resort,
        ),
    )
    tx.execute(
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
    """Delete all KeyPackages of a device from the stock, last resorts too; return how many."""
    return tx.execute("DELETE FROM key_packages WHERE device = ?", (device,))


def drop_stock_but(tx: Tx, device: DeviceRow, keep: set[int]) -> int:
    """Delete all KeyPackages of a device from the stock except those in `keep`; return how many."""
    rows = [row for (row,) in tx.all("SELECT id FROM key_packages WHERE device = ?", (device,)) if row not in keep]
    tx.executemany("DELETE FROM key_packages WHERE id = ?", [(row,) for row in rows])
    return len(rows)


def retire_unclaimed(tx: Tx) -> int:
    """After a restore: empty the stock, and mark its KeyPackages as claimed; return how many there were.

    Each of these KeyPackages may have been handed out since the backup, and a Welcome for it may be on its way here.
    """
    tx.execute(
        "UPDATE key_package_refs SET claimed_at = 0 WHERE claimed_at IS NULL AND id IN (SELECT id FROM key_packages)"
    )
    return tx.execute("DELETE FROM key_packages")


def count_ordinary(
    tx: Tx, device: DeviceRow, version: ProtocolVersion, cipher_suite: CipherSuite, now: Milliseconds, *, at_most: int
) -> int:
    """Count the ordinary KeyPackages in a device's stock, up to `at_most`."""
    found = tx.one(
        "SELECT count(*) FROM (SELECT 1 FROM key_packages WHERE device = ? AND version = ? AND cipher_suite = ?"
        " AND last_resort = 0 AND expires_at > ? LIMIT ?) counted",
        (device, version, cipher_suite, now, at_most),
    )
    return int(found[0]) if found else 0


def stock_of(tx: Tx, device: DeviceRow, now: Milliseconds) -> list[StockRow]:
    """Return a device's stock for each version and suite for which it has KeyPackages or was ever claimed from."""
    rows = tx.all(
        "SELECT version, cipher_suite, sum(ordinary), max(last_resort), max(used) FROM ("
        " SELECT k.version, k.cipher_suite, 1 - last_resort AS ordinary, last_resort,"
        "  CASE WHEN last_resort = 1 AND claimed_at IS NOT NULL THEN 1 ELSE 0 END AS used"
        "  FROM key_packages k JOIN key_package_refs r ON r.id = k.id WHERE k.device = ?1 AND k.expires_at > ?2"
        ") stock GROUP BY version, cipher_suite",
        (device, now),
    )
    found = {(row[0], row[1]): StockRow(row[0], row[1], row[2], bool(row[3]), bool(row[4])) for row in rows}
    for version, suite in _claimed_from(tx, device):
        found.setdefault((version, suite), StockRow(version, suite, 0, has_last_resort=False, last_resort_used=False))
    return [found[each] for each in sorted(found)]


def _claimed_from(tx: Tx, device: DeviceRow) -> Iterator[tuple[ProtocolVersion, CipherSuite]]:
    """Yield each version and suite for which a device was claimed from; each takes one look-up in the index."""
    last = (-1, -1)
    while row := tx.one(
        "SELECT version, cipher_suite FROM key_package_refs WHERE device = ? AND turn > 0"
        " AND (version, cipher_suite) > (?, ?) ORDER BY version, cipher_suite LIMIT 1",
        (device, *last),
    ):
        last = row
        yield ProtocolVersion(row[0]), CipherSuite(row[1])


# --- claim ------------------------------------------------------------------------------------------------------


def candidates(
    tx: Tx, user: UserRow, version: ProtocolVersion, cipher_suite: CipherSuite, now: Milliseconds, *, count_to: int
) -> list[Candidate]:
    """Return each device of a user with the KeyPackage for a claim; its stock is counted up to `count_to`.

    KeyPackages expire at whole seconds, so only the second of `now` matters; two calls within it make the same read.
    """
    rows = tx.all(
        "SELECT d.id,"
        " coalesce((SELECT max(turn) FROM key_package_refs WHERE device = d.id AND version = ?2"
        "  AND cipher_suite = ?3 AND turn > 0), 0),"
        " (SELECT count(*) FROM (SELECT 1 FROM key_packages WHERE device = d.id AND version = ?2"
        "  AND cipher_suite = ?3 AND last_resort = 0 AND expires_at > ?4 LIMIT ?5) counted),"
        " k.id, k.last_resort, k.body"
        " FROM devices d LEFT JOIN key_packages k ON k.id = coalesce("
        "  (SELECT id FROM key_packages WHERE device = d.id AND version = ?2 AND cipher_suite = ?3"
        "   AND last_resort = 0 AND expires_at > ?4 ORDER BY id LIMIT 1),"
        "  (SELECT id FROM key_packages WHERE device = d.id AND version = ?2 AND cipher_suite = ?3"
        "   AND last_resort = 1 AND expires_at > ?4 ORDER BY id DESC LIMIT 1))"
        " WHERE d.owner = ?1",
        (user, version, cipher_suite, now - now % 1000, count_to),
    )
    return list(map(Candidate._make, rows))


def count_siblings(tx: Tx, device: DeviceRow) -> int:
    """Count the other devices of a device's user."""
    found = tx.one(
        "SELECT count(*) FROM devices d WHERE d.owner = (SELECT owner FROM devices WHERE id = ?1) AND d.id <> ?1",
        (device,),
    )
    return int(found[0]) if found else 0


def following(
    tx: Tx,
    device: DeviceRow,
    version: ProtocolVersion,
    cipher_suite: CipherSuite,
    now: Milliseconds,
    *,
    after: int,
    limit: int,
) -> list[tuple[int, int, bytes]]:
    """Return rows, last resort flags and bodies of the KeyPackages that a device hands out after that of row `after`.

    As in `candidates`, ordinary ones come first.
    """
    return tx.all(
        "SELECT id, last_resort, body FROM key_packages WHERE device = ?1 AND version = ?2 AND cipher_suite = ?3"
        " AND expires_at > ?4 AND (last_resort = 1 OR id > ?5) ORDER BY last_resort, id LIMIT ?6",
        (device, version, cipher_suite, now - now % 1000, after, limit),
    )


def take_out(tx: Tx, rows: Iterable[int]) -> None:
    """Delete ordinary KeyPackages from the stock."""
    tx.executemany("DELETE FROM key_packages WHERE id = ?", [(row,) for row in rows])


def note_claims(tx: Tx, claims: Iterable[tuple[int, TokenId | None, int]], now: Milliseconds) -> None:
    """Record that KeyPackages were handed out, each with its row, token and turn; the lowest turn is next.

    The token is that whose claim waits for a Welcome. If it is None, the hour is not stored either.
    """
    hour = hour_of(now)
    tx.executemany(
        "UPDATE key_package_refs SET claimed_at = ?, token = ?, turn = ? WHERE id = ?",
        [(Milliseconds(0) if token is None else hour, token, turn, row) for row, token, turn in claims],
    )


# --- Welcomes ---------------------------------------------------------------------------------------------------


def device_of_ref(tx: Tx, ref: KeyPackageRef) -> DeviceRow | None:
    """Return the device of a KeyPackage that was handed out, None if the reference is unknown or unclaimed."""
    found = tx.one(
        "SELECT r.device FROM key_package_refs r JOIN devices d ON d.id = r.device"
        " WHERE r.ref = ? AND r.claimed_at IS NOT NULL",
        (ref,),
    )
    return None if found is None else DeviceRow(found[0])


def is_last_resort(tx: Tx, ref: KeyPackageRef) -> bool:
    """Tell whether a reference belongs to a last resort KeyPackage, which may have been replaced meanwhile."""
    return tx.one("SELECT 1 FROM key_package_refs WHERE ref = ? AND reusable = 1", (ref,)) is not None


def note_welcome(tx: Tx, ref: KeyPackageRef) -> None:
    """Record that a Welcome arrived for the last claim of this reference, so that the abuse rule no longer counts it.

    From then on nothing connects the token with the KeyPackage.
    """
    found = tx.one("SELECT id, token, claimed_at FROM key_package_refs WHERE ref = ? AND token IS NOT NULL", (ref,))
    if found is None:
        return
    row, token, claimed_at = found
    tx.execute("UPDATE key_package_refs SET token = NULL, claimed_at = 0 WHERE id = ?", (row,))
    tx.execute(
        "UPDATE tokens SET unanswered_claims = unanswered_claims - 1,"
        " abuse_started_at = CASE WHEN unanswered_claims = 1 THEN 0 ELSE abuse_started_at END"
        " WHERE id = ? AND abuse_started_at <= ? AND unanswered_claims > 0",
        (token, claimed_at),
    )


# --- sweeping ---------------------------------------------------------------------------------------------------


def sweep(
    tx: Tx, now: Milliseconds, *, forget_before: Milliseconds, unlink_before: Milliseconds, limit: int
) -> tuple[int, int]:
    """Delete up to `limit` expired KeyPackages from the stock.

    Return how many, and the highest number of rows that one step changed. Also delete references that expired before
    `forget_before`; Welcomes for them can then not be routed to a device. For claims made before `unlink_before`,
    forget which token was used, and when.
    """
    dropped = tx.execute(
        "DELETE FROM key_packages WHERE id IN (SELECT id FROM key_packages WHERE expires_at <= ? LIMIT ?)", (now, limit)
    )
    forgotten = tx.execute(
        "DELETE FROM key_package_refs WHERE id IN (SELECT id FROM key_package_refs WHERE expires_at <= ? LIMIT ?)",
        (forget_before, limit),
    )
    unlinked = tx.execute(
        "UPDATE key_package_refs SET token = NULL, claimed_at = 0 WHERE id IN"
        " (SELECT id FROM key_package_refs WHERE token IS NOT NULL AND claimed_at < ? LIMIT ?)",
        (unlink_before, limit),
    )
    return dropped, max(dropped, forgotten, unlinked)
