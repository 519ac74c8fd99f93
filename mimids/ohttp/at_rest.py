"""Private keys at rest: 32 octets as they are, or encrypted under the operator's key file.

    enum { plain(0), chacha20_poly1305(1), (255) } Protection;
    struct {
      Protection protection;
      select (StoredKey.protection) {
        case plain:             opaque key[32];
        case chacha20_poly1305: opaque nonce[12]; opaque ciphertext[48];
      };
    } StoredKey;

What is stored is bound to its place: `place` (the row's other columns) is associated data, so that a
ciphertext moved to another row does not open.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from mimids.wire.codec import UINT8, Codec, WireError, fixed
from mimids.wire.declare import codec, decode, encode, select, struct, wire
from mimids.wire.ids import Secret

KEY_SIZE: Final = 32
NONCE_SIZE: Final = 12


class KeyUnavailable(Exception):
    """A stored key cannot be read: no operator key, another one than it was stored under, or a damaged row."""


class OperatorKey(Secret):
    """The content of the operator's key file, which never enters the database."""

    @classmethod
    def from_file(cls, content: bytes) -> Self:
        """Return the key in a file of 32 octets, or of 64 hex digits; `ValueError` if it is neither."""
        if len(content) != KEY_SIZE:
            content = bytes.fromhex(content.decode("ascii"))
        if len(content) != KEY_SIZE:
            raise ValueError(f"an operator key file holds {KEY_SIZE} octets, or {2 * KEY_SIZE} hex digits")
        return cls(content)


class Protection(IntEnum):
    """How a stored key is protected."""

    PLAIN = 0
    CHACHA20_POLY1305 = 1


@struct
class Encrypted:
    """A key under the operator's."""

    nonce: bytes = wire(fixed(NONCE_SIZE))
    ciphertext: bytes = wire(fixed(KEY_SIZE + 16))


_CASES: Final[dict[Protection, Codec[Any]]] = {
    Protection.PLAIN: fixed(KEY_SIZE),
    Protection.CHACHA20_POLY1305: codec(Encrypted),
}


@struct
class StoredKey:
    """A private key as the store keeps it."""

    protection: Protection = wire(UINT8.of(Protection))
    key: bytes | Encrypted = select("protection", _CASES)


def protect(key: Secret, place: bytes, operator_key: OperatorKey | None, nonce: bytes) -> bytes:
    """Return what to store for a key of 32 octets: encrypted, if there is an operator key.

    `nonce` is 12 random octets, drawn anew each time.
    """
    if operator_key is None:
        return encode(StoredKey(Protection.PLAIN, key.reveal()))
    ciphertext = ChaCha20Poly1305(operator_key.reveal()).encrypt(nonce, key.reveal(), place)
    return encode(StoredKey(Protection.CHACHA20_POLY1305, Encrypted(nonce, ciphertext)))


def unprotect(stored: bytes, place: bytes, operator_key: OperatorKey | None) -> bytes:
    """Return the 32 octets of a stored key; raise `KeyUnavailable`.

    A key stored in the clear is read with an operator key too, so that one can be introduced.
    """
    try:
        key = decode(StoredKey, stored).key
    except WireError as error:
        raise KeyUnavailable("a stored key is damaged") from error
    if isinstance(key, bytes):
        return key
    if operator_key is None:
        raise KeyUnavailable("a stored key is encrypted, and there is no operator key file")
    try:
        return ChaCha20Poly1305(operator_key.reveal()).decrypt(key.nonce, key.ciphertext, place)
    except InvalidTag as error:
        raise KeyUnavailable("a stored key does not open with this operator key file") from error
