"""HPKE in base mode with exporter (RFC 9180), for the cipher suites that OHTTP uses here.

These are DHKEM(X25519, HKDF-SHA256) and HKDF-SHA256, with AES-128-GCM or ChaCha20-Poly1305. X25519 and the AEADs come
from `cryptography`; docs/decisions/0015-hpke-of-our-own.md says why the rest is written here. Randomness is an
argument: every key is made from octets that the caller drew.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from mimids.ohttp.hkdf import HASH_SIZE, expand, extract
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

BASE_MODE: Final = b"\0"
_VERSION: Final = b"HPKE-v1"
_KEM_SUITE: Final = b"KEM" + KEM_X25519.to_bytes(2)
_SUITES: Final = {
    aead: b"HPKE" + b"".join(each.to_bytes(2) for each in (KEM_X25519, KDF_SHA256, int(aead))) for aead in Aead
}


class HpkeError(Exception):
    """A public or encapsulated key is unusable, or a ciphertext does not decrypt."""


class PrivateKey(Secret):
    """An X25519 private key, which is any 32 random octets; `public` is its public key."""

    __slots__ = ("key", "public")

    def __init__(self, octets: bytes) -> None:
        super().__init__(octets)
        if len(octets) != KEY_SIZE:
            raise ValueError(f"a private key has {KEY_SIZE} octets")
        self.key = X25519PrivateKey.from_private_bytes(octets)
        self.public: bytes = self.key.public_key().public_bytes_raw()


class _Context:
    """What both sides compute from the same shared secret."""

    def __init__(self, shared_secret: bytes, info: bytes, aead: Aead) -> None:
        """KeySchedule (RFC 9180 section 5.1)."""
        self._suite = suite = _SUITES[aead]
        context = _key_schedule_context(suite, info)
        secret = _labeled_extract(suite, shared_secret, b"secret", b"")
        self._exporter_secret = _labeled_expand(suite, secret, b"exp", context, HASH_SIZE)
        self._aead = aead_of(aead, _labeled_expand(suite, secret, b"key", context, aead.key_size))
        self._base_nonce = int.from_bytes(_labeled_expand(suite, secret, b"base_nonce", context, NONCE_SIZE))
        self._sequence = 0  # of the next message

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """Return a secret of `length` octets that both sides can compute (RFC 9180 section 5.3)."""
        return _labeled_expand(self._suite, self._exporter_secret, b"sec", exporter_context, length)

    def _nonce(self) -> bytes:
        """ComputeNonce (RFC 9180 section 5.2); its limit of 2^96 messages is never reached."""
        return (self._base_nonce ^ self._sequence).to_bytes(NONCE_SIZE)


class HpkeSender(_Context):
    """The client's context: encrypts in sequence, and exports secrets."""

    def __init__(self, public: bytes, info: bytes, aead: Aead, ephemeral: PrivateKey) -> None:
        """SetupBaseS (RFC 9180 section 5.1.1). Use `ephemeral` only once. Raise `HpkeError` if `public` is unusable."""
        self.enc = ephemeral.public
        super().__init__(_shared_secret(ephemeral, public, self.enc + public), info, aead)

    def seal(self, plaintext: bytes, aad: bytes = b"") -> bytes:
        """Return the next ciphertext, which is 16 octets longer."""
        ciphertext = self._aead.encrypt(self._nonce(), plaintext, aad)
        self._sequence += 1
        return ciphertext


class Recipient(_Context):
    """The gateway's context: decrypts in sequence, and exports secrets."""

    def __init__(self, enc: bytes, private: PrivateKey, info: bytes, aead: Aead) -> None:
        """SetupBaseR (RFC 9180 section 5.1.1). Raises `HpkeError` if `enc` is unusable."""
        super().__init__(_shared_secret(private, enc, enc + private.public), info, aead)

    def open(self, ciphertext: bytes, aad: bytes = b"") -> bytes:
        """Return the next plaintext; raise `HpkeError` if the ciphertext does not decrypt."""
        try:
            plaintext = self._aead.decrypt(self._nonce(), ciphertext, aad)
        except InvalidTag as error:
            raise HpkeError("the ciphertext does not decrypt") from error
        self._sequence += 1
        return plaintext


def aead_of(aead: Aead, key: bytes) -> AESGCM | ChaCha20Poly1305:
    """Return the AEAD, keyed with this key."""
    return AESGCM(key) if aead is Aead.AES_128_GCM else ChaCha20Poly1305(key)


def _shared_secret(ours: PrivateKey, theirs: bytes, kem_context: bytes) -> bytes:
    """Return the shared secret of Encap and Decap (RFC 9180 section 4.1)."""
    try:
        dh = ours.key.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError as error:  # wrong size, or a point of small order (RFC 9180 section 7.1.4)
        raise HpkeError("unusable public key") from error
    eae_prk = _labeled_extract(_KEM_SUITE, b"", b"eae_prk", dh)
    return _labeled_expand(_KEM_SUITE, eae_prk, b"shared_secret", kem_context, HASH_SIZE)


@lru_cache(maxsize=16)  # `info` differs only by key and cipher suite
def _key_schedule_context(suite: bytes, info: bytes) -> bytes:
    """Return key_schedule_context for base mode, which has neither a psk nor its id (RFC 9180 section 5.1)."""
    hashes = _labeled_extract(suite, b"", b"psk_id_hash", b""), _labeled_extract(suite, b"", b"info_hash", info)
    return BASE_MODE + b"".join(hashes)


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return extract(salt, b"%b%b%b%b" % (_VERSION, suite, label, ikm))


def _labeled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return expand(prk, b"%b%b%b%b%b" % (length.to_bytes(2), _VERSION, suite, label, info), length)
