"""Cipher suites: hash, key formats and signatures; `suite_table` lists them.

Verification never raises: any key and any signature give True or False. HPKE and AEAD encryption are not implemented,
because a server holds no secrets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import attrs
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519

from mimids.mls.suite_table import CLASSICAL, KEM_SIZES, POST_QUANTUM, SIGNATURE_KEY_SIZES, SuiteRow
from mimids.wire import varint
from mimids.wire.ids import CipherSuite, KeyPackageRef

_ML_DSA: dict[str, Any] = {}  # public and private key classes
try:
    from cryptography.hazmat.primitives.asymmetric import mldsa
except ImportError:  # pragma: no cover - an older release
    pass
else:
    _ML_DSA = {
        "ML-DSA-44": (mldsa.MLDSA44PublicKey, mldsa.MLDSA44PrivateKey),
        "ML-DSA-65": (mldsa.MLDSA65PublicKey, mldsa.MLDSA65PrivateKey),
        "ML-DSA-87": (mldsa.MLDSA87PublicKey, mldsa.MLDSA87PrivateKey),
    }
ML_DSA_KEYS: Final[tuple[type, ...]] = tuple(public for public, _ in _ML_DSA.values())

_KEYS_REMEMBERED: Final = 4096  # cached parsed signature keys, for the next message of the same member

_HASHES: Final = {32: hashlib.sha256, 48: hashlib.sha384, 64: hashlib.sha512}

_CURVES: Final[Mapping[str, tuple[ec.EllipticCurve, hashes.HashAlgorithm]]] = {
    "P-256": (ec.SECP256R1(), hashes.SHA256()),
    "P-384": (ec.SECP384R1(), hashes.SHA384()),
    "P-521": (ec.SECP521R1(), hashes.SHA512()),
}


@attrs.frozen
class Suite:
    """One cipher suite; sizes are in octets.

    A scheme is `Ed25519`, `Ed448`, the name of a NIST curve, or `ML-DSA-` with its strength. If two libraries use a
    code point for different KEMs, `kems` has both names, and a key may be of either KEM.
    """

    code: CipherSuite
    name: str
    hash_name: str
    hash_size: int  # KDF.Nh, and the size of MACs, tree hashes and transcript hashes
    scheme: str
    kems: tuple[str, ...]

    def hash(self, data: bytes) -> bytes:
        """Return Hash(data), `hash_size` octets."""
        return _HASHES[self.hash_size](data).digest()

    @property
    def hpke_key_size(self) -> int:
        """Return the size of an HPKEPublicKey of the first KEM."""
        return KEM_SIZES[self.kems[0]][0]

    @property
    def kem_output_size(self) -> int:
        """Return the size of an output of the first KEM."""
        return KEM_SIZES[self.kems[0]][1]

    @property
    def signature_key_size(self) -> int:
        """Return the size of a SignaturePublicKey; for a NIST curve, the size of an uncompressed point."""
        return SIGNATURE_KEY_SIZES[self.scheme]

    def hpke_key_fits(self, key: bytes) -> bool:
        """Check the size of an HPKEPublicKey and, for NIST curves, that it is a point (RFC 9180 section 7.1.4)."""
        return any(len(key) == KEM_SIZES[kem][0] and _is_point(kem, key) for kem in self.kems)

    def kem_output_fits(self, output: bytes) -> bool:
        """Check the size of a KEM output and, for NIST curves, that it is a point (RFC 9180 section 4.1)."""
        return any(len(output) == KEM_SIZES[kem][1] and _is_point(kem, output) for kem in self.kems)

    def signature_key_fits(self, key: bytes) -> bool:
        """Check the size of a SignaturePublicKey and that it is a key of the scheme (RFC 9420 section 5.1.1).

        Compressed points are accepted too. They stand for the same keys, and ts-mls (1.6.4) writes them, against
        section 5.1.1.
        """
        return len(key) <= self.signature_key_size and _public_key(self.scheme, key) is not None


def _verifiable(scheme: str) -> bool:
    """Tell whether the installed `cryptography` can verify a scheme; ML-DSA needs a recent release and OpenSSL."""
    if not scheme.startswith("ML-DSA"):
        return True
    try:
        return (
            scheme in _ML_DSA and _ML_DSA[scheme][0].from_public_bytes(bytes(SIGNATURE_KEY_SIZES[scheme])) is not None
        )
    except UnsupportedAlgorithm:  # pragma: no cover - depends on how OpenSSL was built
        return False


def _suite(row: SuiteRow, code: int = 0) -> Suite:
    bits = row.hash_octets * 8
    return Suite(CipherSuite(code), row.name, f"sha{bits}", row.hash_octets, row.scheme, (row.kem,))


def _by_default() -> dict[int, Suite]:
    found: dict[int, Suite] = {}
    for row in (*CLASSICAL, *NAMED.values()):
        for code in row.codes:
            other, here = found.get(code), _suite(row, code)
            if other is not None:  # hash and scheme are the same
                here = attrs.evolve(other, name=f"{other.name} or {row.name}", kems=(*other.kems, row.kem))
            found[code] = here
    return found


# Suites with a scheme that cannot be verified here count as unknown code points: their messages are not checked.
NAMED: Final = {row.name: row for row in POST_QUANTUM if _verifiable(row.scheme)}
SUITES: Final[dict[int, Suite]] = _by_default()


ML_DSA_SCHEMES: Final = frozenset(row.scheme for row in NAMED.values() if row.scheme in _ML_DSA)


def ml_dsa_public_key(scheme: str, seed: bytes) -> bytes:
    """Derive the public key of a scheme known here from a seed of 32 octets (FIPS 204 section 6.1)."""
    public: bytes = _ML_DSA[scheme][1].from_seed_bytes(seed).public_key().public_bytes_raw()
    return public


def use_code_points(names: Mapping[CipherSuite, str]) -> None:
    """Give code points to post-quantum suites by their names, in addition to the default code points.

    `OFF` removes a code point. The code points hold for the whole process, like those in IANA's registry, so call this
    before anything is read.
    """
    for code, name in names.items():
        SUITES.pop(code, None)
        if name in NAMED:
            SUITES[code] = _suite(NAMED[name], code)


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


def _is_point(kem: str, octets: bytes) -> bool:
    """Tell whether octets are a point of a KEM's curve; True for a KEM that uses no NIST curve."""
    return kem not in _CURVES or _parsed(kem, octets) is not None


@lru_cache(maxsize=_KEYS_REMEMBERED)
def _public_key(scheme: str, key: bytes) -> Any:
    return _parsed(scheme, key)


def _parsed(scheme: str, key: bytes) -> Any:
    """Return the public key; None if it is not valid."""
    try:
        if scheme == "Ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(key)
        if scheme == "Ed448":
            return ed448.Ed448PublicKey.from_public_bytes(key)
        if scheme in _ML_DSA:
            return _ML_DSA[scheme][0].from_public_bytes(key)
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[scheme][0], key)
    except ValueError:
        return None


def verify_with_label(suite: Suite, key: bytes, label: bytes, content: bytes, signature: bytes) -> bool:
    """VerifyWithLabel (RFC 9420 section 5.1.2): tell whether `key`, an encoded public key, made `signature`.

    Returns False also for a malformed key or signature. Takes about 0.15 ms for Ed25519.
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

    `private_key` is the seed (EdDSA, ML-DSA) or the scalar, big-endian (ECDSA). Raises `ValueError` if it is
    invalid. ECDSA and ML-DSA are randomized, so two signatures of the same content differ.
    """
    signed = sign_content(label, content)
    if suite.scheme == "Ed25519":
        return ed25519.Ed25519PrivateKey.from_private_bytes(private_key).sign(signed)
    if suite.scheme == "Ed448":
        return ed448.Ed448PrivateKey.from_private_bytes(private_key).sign(signed)
    if suite.scheme in _ML_DSA:
        signed_by: bytes = _ML_DSA[suite.scheme][1].from_seed_bytes(private_key).sign(signed)
        return signed_by
    curve, algorithm = _CURVES[suite.scheme]
    return ec.derive_private_key(int.from_bytes(private_key, "big"), curve).sign(signed, ec.ECDSA(algorithm))
