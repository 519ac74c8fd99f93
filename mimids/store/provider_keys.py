"""The provider's own MLS signature keys, and the signature keys that devices uploaded in KeyPackages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds

KEYS_OF_A_DEVICE: Final = 4096  # signature keys that are remembered, the newest


@attrs.frozen
class ProviderKeyRow:
    """A key pair as it is stored; `private` is the stored form of its seed (`ohttp/at_rest.py`)."""

    public: bytes
    scheme: str
    private: bytes = attrs.field(repr=False)
    made_at: Milliseconds
    retired_at: Milliseconds | None  # None: new groups list it


def all_keys(tx: Tx) -> list[ProviderKeyRow]:
    """Return all keys, by scheme; within a scheme the newest first."""
    rows = tx.all(
        "SELECT public, scheme, private, made_at, retired_at FROM provider_keys"
        " ORDER BY scheme, CASE WHEN retired_at IS NULL THEN 0 ELSE 1 END, made_at DESC"
    )
    return [ProviderKeyRow(*row) for row in rows]


def insert(tx: Tx, key: ProviderKeyRow) -> None:
    """Store a key."""
    tx.execute(
        "INSERT INTO provider_keys (public, scheme, private, made_at, retired_at) VALUES (?, ?, ?, ?, ?)",
        attrs.astuple(key),
    )


def replace_private(tx: Tx, public: bytes, private: bytes) -> None:
    """Replace the stored form of a private key."""
    tx.execute("UPDATE provider_keys SET private = ? WHERE public = ?", (private, public))


def retire(tx: Tx, scheme: str, now: Milliseconds) -> None:
    """Retire the listed key of a scheme: it still signs for its groups, but new groups list another key."""
    tx.execute("UPDATE provider_keys SET retired_at = ? WHERE scheme = ? AND retired_at IS NULL", (now, scheme))


def delete_retired(tx: Tx) -> int:
    """Delete all retired keys; return how many."""
    return tx.execute("DELETE FROM provider_keys WHERE retired_at IS NOT NULL")


# --- of devices -------------------------------------------------------------------------------------------------


def key_digest(signature_key: bytes) -> bytes:
    """Return the digest under which the signature key of a device is stored."""
    return hashlib.sha256(signature_key).digest()


def add_of_device(tx: Tx, device: DeviceRow, signature_keys: Iterable[bytes]) -> None:
    """Record signature keys that a device uploaded; if it has too many, delete its oldest ones."""
    tx.executemany(
        "INSERT INTO device_signature_keys (device, digest) VALUES (?, ?) ON CONFLICT (device, digest) DO NOTHING",
        [(device, key_digest(each)) for each in signature_keys],
    )
    stored = tx.one("SELECT count(*) FROM device_signature_keys WHERE device = ?", (device,))
    if stored is None or stored[0] <= KEYS_OF_A_DEVICE:
        return
    tx.execute(
        "DELETE FROM device_signature_keys WHERE device = ? AND id <="
        " (SELECT id FROM device_signature_keys WHERE device = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (device, device, KEYS_OF_A_DEVICE),
    )


def in_use(tx: Tx, digests: Sequence[bytes]) -> frozenset[bytes]:
    """Return the digests among these that an existing device uploaded."""
    found = (tx.one("SELECT digest FROM device_signature_keys WHERE digest = ? LIMIT 1", (each,)) for each in digests)
    return frozenset(row[0] for row in found if row is not None)


def stock_page(tx: Tx, after: int, *, limit: int) -> list[tuple[int, DeviceRow, bytes]]:
    """Return row, device and octets of up to `limit` KeyPackages in stock above row `after`, in ascending order."""
    rows = tx.all("SELECT id, device, body FROM key_packages WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
    return [(row[0], DeviceRow(row[1]), row[2]) for row in rows]
