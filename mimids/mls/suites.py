"""Cipher suites 1 to 7 (RFC 9420 section 17.1): hash, key formats and signatures.

Verification never raises: any key and any signature give True or False. HPKE and AEAD encryption are not implemented,
because a server holds no secrets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import attrs
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519

from mimids.wire import varint
from mimids.wire.ids import CipherSuite, KeyPackageRef

_KEYS_REMEMBERED: Final = 4096  # cached parsed signature keys, for the next message of the same member

_HASHES: Final = {32: hashlib.sha256, 48: hashlib.sha384, 64: hashlib.sha512}

_PublicKey = ed25519.Ed25519PublicKey | ed448.Ed448PublicKey | ec.EllipticCurvePublicKey


@attrs.frozen
class Suite:
    """One cipher suite; sizes are in octets. A scheme is `Ed25519`, `Ed448` or the name of a NIST curve."""

    code: CipherSuite
    name: str
    hash_name: str
    hash_size: int  # KDF.Nh, and the size of MACs, tree hashes and transcript hashes
    scheme: str
    hpke_key_size: int  # of a public key and of a KEM output, which have the same format in all seven suites
    signature_key_size: int  # for a NIST curve: of an uncompressed point

    def hash(self, data: bytes) -> bytes:
        """Return Hash(data), `hash_size` octets."""
        return _HASHES[self.hash_size](data).digest()

    def hpke_key_fits(self, key: bytes) -> bool:
        """Check the size of an HPKEPublicKey and, for NIST curves, that it is a point (RFC 9180 section 7.1.4)."""
        if len(key) != self.hpke_key_size:
            return False
        # A suite with a NIST curve uses the same curve for its KEM and its signatures.
        return self.scheme not in _CURVES or _parsed(self.scheme, key) is not None

    def signature_key_fits(self, key: bytes) -> bool:
        """Check the size of a SignaturePublicKey and that it is a key of the scheme (RFC 9420 section 5.1.1).

        Compressed points are accepted too: ts-mls (1.6.4) writes them, against that section; they are the same keys.
        """
        return len(key) <= self.signature_key_size and _public_key(self.scheme, key) is not None


def _suite(code: int, name: str, hash_size: int, scheme: str, hpke: int, signature: int) -> Suite:
    return Suite(CipherSuite(code), name, f"sha{hash_size * 8}", hash_size, scheme, hpke, signature)


SUITES: Final[Mapping[int, Suite]] = {
    suite.code: suite
    for suite in (
        _suite(1, "MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519", 32, "Ed25519", 32, 32),
        _suite(2, "MLS_128_DHKEMP256_AES128GCM_SHA256_P256", 32, "P-256", 65, 65),
        _suite(3, "MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519", 32, "Ed25519", 32, 32),
        _suite(4, "MLS_256_DHKEMX448_AES256GCM_SHA512_Ed448", 64, "Ed448", 56, 57),
        _suite(5, "MLS_256_DHKEMP521_AES256GCM_SHA512_P521", 64, "P-521", 133, 133),
        _suite(6, "MLS_256_DHKEMX448_CHACHA20POLY1305_SHA512_Ed448", 64, "Ed448", 56, 57),
        _suite(7, "MLS_256_DHKEMP384_AES256GCM_SHA384_P384", 48, "P-384", 97, 97),
    )
}

_CURVES: Final[Mapping[str, tuple[ec.EllipticCurve, hashes.HashAlgorithm]]] = {
    "P-256": (ec.SECP256R1(), hashes.SHA256()),
    "P-384": (ec.SECP384R1(), hashes.SHA384()),
    "P-521": (ec.SECP521R1(), hashes.SHA512()),
}


def suite_of(code: int) -> Suite | None:
    """Return the suite with this code point, None if it is unknown."""
    return SUITES.get(code)


def ref_hash(suite: Suite, label: bytes, value: bytes) -> bytes:
    """Return RefHash(label, value) (RFC 9420 section 5.2); `label` is the complete label."""
    return suite.hash(b"".join((varint.mls(len(label)), label, varint.mls(len(value)), value)))


def key_package_ref(suite: Suite, encoded: bytes) -> KeyPackageRef:
    """Return MakeKeyPackageRef of an encoded KeyPackage (RFC 9420 section 5.2)."""
    return KeyPackageRef(ref_hash(suite, b"MLS 1.0 KeyPackage Reference", encoded))


def proposal_ref(suite: Suite, authenticated_content: bytes) -> bytes:
    """Return MakeProposalRef of the AuthenticatedContent that carries the proposal (RFC 9420 section 5.2)."""
    return ref_hash(suite, b"MLS 1.0 Proposal Reference", authenticated_content)


def sign_content(label: bytes, content: bytes) -> bytes:
    """Return SignContent (RFC 9420 section 5.1.2); `label` is without "MLS 1.0 "."""
    return b"".join((varint.mls(8 + len(label)), b"MLS 1.0 ", label, varint.mls(len(content)), content))


@lru_cache(maxsize=_KEYS_REMEMBERED)
def _public_key(scheme: str, key: bytes) -> _PublicKey | None:
    return _parsed(scheme, key)


def _parsed(scheme: str, key: bytes) -> _PublicKey | None:
    try:
        if scheme == "Ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(key)
        if scheme == "Ed448":
            return ed448.Ed448PublicKey.from_public_bytes(key)
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[scheme][0], key)
    except ValueError:
        return None


def verify_with_label(suite: Suite, key: bytes, label: bytes, content: bytes, signature: bytes) -> bool:
    """VerifyWithLabel (RFC 9420 section 5.1.2): tell whether `key`, an encoded public key, made `signature`.

    Also False for a malformed key or signature. Takes about 0.15 ms for Ed25519.
    """
    public = _public_key(suite.scheme, key) if len(key) <= suite.signature_key_size else None
    if public is None:
        return False
    try:
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, sign_content(label, content), ec.ECDSA(_CURVES[suite.scheme][1]))
        else:
            public.verify(signature, sign_content(label, content))
    except (InvalidSignature, ValueError):
        return False
    return True


def sign_with_label(suite: Suite, private_key: bytes, label: bytes, content: bytes) -> bytes:
    """SignWithLabel (RFC 9420 section 5.1.2), for clients and tests.

    `private_key` is the seed (EdDSA) or the scalar, big-endian (ECDSA); raises `ValueError` if it is
    invalid. ECDSA draws a random nonce, so two signatures of the same content differ.
    """
    signed = sign_content(label, content)
    if suite.scheme == "Ed25519":
        return ed25519.Ed25519PrivateKey.from_private_bytes(private_key).sign(signed)
    if suite.scheme == "Ed448":
        return ed448.Ed448PrivateKey.from_private_bytes(private_key).sign(signed)
    curve, algorithm = _CURVES[suite.scheme]
    return ec.derive_private_key(int.from_bytes(private_key, "big"), curve).sign(signed, ec.ECDSA(algorithm))
