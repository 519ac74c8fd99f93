"""Private keys as they are stored: 32 octets in the clear, or encrypted under the operator's key file.

    enum { plain(0), chacha20_poly1305(1), (255) } Protection;
    struct {
      Protection protection;
      select (StoredKey.protection) {
        case plain:             opaque key[32];
        case chacha20_poly1305: opaque nonce[12]; opaque ciphertext[48];
      };
    } StoredKey;

The associated data `place` encodes the row's other columns, so a ciphertext that was moved to another row cannot be
decrypted.
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
    """A stored key cannot be read: the operator key is missing or is not the right one, or the row is damaged."""


class OperatorKey(Secret):
    """The key in the operator's key file, which is never stored in the database."""

    @classmethod
    def from_file(cls, content: bytes) -> Self:
        """Return the key from a file of 32 octets or 64 hex digits; raise `ValueError` for anything else."""
        if len(content) != KEY_SIZE:
            content = bytes.fromhex(content.decode("ascii"))
        if len(content) != KEY_SIZE:
            raise ValueError(f"an operator key file must hold {KEY_SIZE} octets, or {2 * KEY_SIZE} hex digits")
        return cls(content)


class Protection(IntEnum):
    """How a stored key is protected."""

    PLAIN = 0
    CHACHA20_POLY1305 = 1


@struct
class Encrypted:
    """A key encrypted under the operator key."""

    nonce: bytes = wire(fixed(NONCE_SIZE))
    ciphertext: bytes = wire(fixed(KEY_SIZE + 16))


_CASES: Final[dict[Protection, Codec[Any]]] = {
    Protection.PLAIN: fixed(KEY_SIZE),
    Protection.CHACHA20_POLY1305: codec(Encrypted),
}


@struct
class StoredKey:
    """A private key as it is stored."""

    protection: Protection = wire(UINT8.of(Protection))
    key: bytes | Encrypted = select("protection", _CASES)


def protect(key: Secret, place: bytes, operator_key: OperatorKey | None, nonce: bytes) -> bytes:
    """Return the stored form of a key of 32 octets: encrypted, if there is an operator key.

    `nonce` is 12 random octets, new for each call.
    """
    if operator_key is None:
        return encode(StoredKey(Protection.PLAIN, key.reveal()))
    ciphertext = ChaCha20Poly1305(operator_key.reveal()).encrypt(nonce, key.reveal(), place)
    return encode(StoredKey(Protection.CHACHA20_POLY1305, Encrypted(nonce, ciphertext)))


def unprotect(stored: bytes, place: bytes, operator_key: OperatorKey | None) -> bytes:
    """Return the 32 octets of a stored key; raise `KeyUnavailable` if it cannot be read.

    A key that is stored in the clear can be read even with an operator key, so that the operator can introduce a key
    file later.
    """
    try:
        key = decode(StoredKey, stored).key
    except WireError as error:
        raise KeyUnavailable("a stored private key is damaged") from error
    if isinstance(key, bytes):
        return key
    if operator_key is None:
        raise KeyUnavailable("a stored private key is encrypted, but no operator key file is configured")
    try:
        return ChaCha20Poly1305(operator_key.reveal()).decrypt(key.nonce, key.ciphertext, place)
    except InvalidTag as error:
        raise KeyUnavailable("a stored private key cannot be decrypted with this operator key file") from error
