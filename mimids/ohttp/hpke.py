"""HPKE in base mode with exporter (RFC 9180), for the cipher suites that OHTTP uses here.

These are DHKEM(X25519, HKDF-SHA256) and HKDF-SHA256, with AES-128-GCM or ChaCha20-Poly1305. The computation is done by
pyhpke, which only this module imports (docs/decisions/0010-hpke-by-pyhpke.md says why). Randomness is an argument:
every key is made from octets that the caller drew.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from pyhpke import AEADId, CipherSuite, ContextInterface, KDFId, KEMId, KEMKeyInterface, KEMKeyPair, PyHPKEError

from mimids.wire.ids import Secret

KEM_X25519: Final = 0x0020  # DHKEM(X25519, HKDF-SHA256), RFC 9180 section 7.1
KDF_SHA256: Final = 0x0001  # HKDF-SHA256, section 7.2
KEY_SIZE: Final = 32  # Nsk, Npk and Nenc of this KEM


class Aead(IntEnum):
    """The AEADs that requests may use (RFC 9180 section 7.3)."""

    AES_128_GCM = 0x0001
    CHACHA20_POLY1305 = 0x0003

    @property
    def key_size(self) -> int:
        """Nk, in octets."""
        return 16 if self is Aead.AES_128_GCM else 32


NONCE_SIZE: Final = 12  # Nn of both

_SUITES: Final = {
    aead: CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId(aead)) for aead in Aead
}
_KEM: Final = _SUITES[Aead.AES_128_GCM].kem


class HpkeError(Exception):
    """A public or encapsulated key is unusable, or a ciphertext does not decrypt."""


class PrivateKey(Secret):
    """An X25519 private key, which is any 32 random octets; `public` is its public key."""

    __slots__ = ("key", "public")

    def __init__(self, octets: bytes) -> None:
        super().__init__(octets)
        if len(octets) != KEY_SIZE:
            raise ValueError(f"a private key has {KEY_SIZE} octets")
        self.key: KEMKeyInterface = _KEM.deserialize_private_key(octets)
        self.public: bytes = self.key.raw.public_key().public_bytes_raw()


class HpkeSender:
    """The client's context: encrypts in sequence, and exports secrets."""

    def __init__(self, public: bytes, info: bytes, aead: Aead, ephemeral: PrivateKey) -> None:
        """SetupBaseS (RFC 9180 section 5.1.1). Use `ephemeral` only once. Raise `HpkeError` if `public` is unusable."""
        try:
            pair = KEMKeyPair(ephemeral.key, _KEM.deserialize_public_key(ephemeral.public))
            receiver = _KEM.deserialize_public_key(public)
            self.enc, self._context = _SUITES[aead].create_sender_context(receiver, info, eks=pair)
        except ValueError as error:  # wrong size, or a point of small order (RFC 9180 section 7.1.4)
            raise HpkeError("unusable public key") from error

    def seal(self, plaintext: bytes, aad: bytes = b"") -> bytes:
        """Return the next ciphertext, which is 16 octets longer."""
        return self._context.seal(plaintext, aad)

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """Return a secret of `length` octets that both sides can compute (RFC 9180 section 5.3)."""
        return self._context.export(exporter_context, length)


class Recipient:
    """The gateway's context: decrypts in sequence, and exports secrets."""

    def __init__(self, enc: bytes, private: PrivateKey, info: bytes, aead: Aead) -> None:
        """SetupBaseR (RFC 9180 section 5.1.1). Raises `HpkeError` if `enc` is unusable."""
        try:
            self._context: ContextInterface = _SUITES[aead].create_recipient_context(enc, private.key, info)
        except ValueError as error:
            raise HpkeError("unusable encapsulated key") from error

    def open(self, ciphertext: bytes, aad: bytes = b"") -> bytes:
        """Return the next plaintext; raise `HpkeError` if the ciphertext does not decrypt."""
        try:
            return self._context.open(ciphertext, aad)
        except PyHPKEError as error:
            raise HpkeError("does not open") from error

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """Return a secret of `length` octets that both sides can compute (RFC 9180 section 5.3)."""
        return self._context.export(exporter_context, length)
