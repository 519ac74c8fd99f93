"""HKDF with SHA-256 (RFC 5869). Each HMAC is one call of OpenSSL; `cryptography` would make several objects for it."""

from __future__ import annotations

import hmac
from typing import Final

HASH_SIZE: Final = 32  # Nh of SHA-256


def extract(salt: bytes, input_key: bytes) -> bytes:
    """Return a pseudorandom key of HASH_SIZE octets (RFC 5869 section 2.2)."""
    return hmac.digest(salt, input_key, "sha256")


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """Return `length` octets of key material, at most 255 * HASH_SIZE (RFC 5869 section 2.3)."""
    if length <= HASH_SIZE:
        return hmac.digest(prk, info + b"\1", "sha256")[:length]
    if length > 255 * HASH_SIZE:
        raise ValueError("HKDF yields at most 255 hashes")
    made, block = b"", b""
    for number in range(1, -(-length // HASH_SIZE) + 1):
        block = hmac.digest(prk, block + info + bytes([number]), "sha256")
        made += block
    return made[:length]
