"""HKDF with SHA-256 (RFC 5869), for OHTTP and Web Push.

An OHTTP request takes ten HMACs, of about a hundred octets each. OpenSSL's own HMAC looks its algorithms up for each
call, which takes longer than two hashes. So HMAC (RFC 2104) is put together from them here.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

HASH_SIZE: Final = 32  # Nh of SHA-256
_BLOCK_SIZE: Final = 64  # of SHA-256
_INNER: Final = bytes(octet ^ 0x36 for octet in range(256))  # the key's octets with ipad and with opad
_OUTER: Final = bytes(octet ^ 0x5C for octet in range(256))


def extract(salt: bytes, input_key: bytes) -> bytes:
    """Return a pseudorandom key of HASH_SIZE octets (RFC 5869 section 2.2)."""
    return _hmac(salt, input_key)


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """Return `length` octets of key material, at most 255 * HASH_SIZE (RFC 5869 section 2.3)."""
    if length <= HASH_SIZE:
        return _hmac(prk, info + b"\1")[:length]
    if length > 255 * HASH_SIZE:
        raise ValueError("HKDF yields at most 255 hashes")
    made, block = b"", b""
    for number in range(1, -(-length // HASH_SIZE) + 1):
        block = _hmac(prk, block + info + bytes([number]))
        made += block
    return made[:length]


def _hmac(key: bytes, message: bytes) -> bytes:
    if len(key) > _BLOCK_SIZE:
        key = sha256(key).digest()
    block = key.ljust(_BLOCK_SIZE, b"\0")
    inner, outer = sha256(block.translate(_INNER)), sha256(block.translate(_OUTER))
    inner.update(message)
    outer.update(inner.digest())
    return outer.digest()
