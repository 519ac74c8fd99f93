"""Signers and KeyPackages of any cipher suite; the recordings have only suite 1."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import attrs
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mimids.mls.code_points import CredentialType, LeafNodeSource
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.leaf_node import Capabilities, Credential, HpkePublicKey, LeafNode, Lifetime, SignaturePublicKey
from mimids.mls.suites import SUITES, Suite, sign_with_label
from mimids.wire.ids import MLS10

NOW = 1_800_000_000  # seconds since the epoch; KeyPackages made here are valid from a day before it to a year after it
DAY = 86_400
YEAR = 366 * DAY

_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}


T = TypeVar("T")


def replace(value: T, **fields: Any) -> T:
    """Return a copy of a struct with some fields changed (`attrs.evolve`, for which mypy does not accept structs)."""
    return cast("T", attrs.evolve(cast("Any", value), **fields))


@attrs.frozen
class Signer:
    """A signature key pair of a suite."""

    suite: Suite
    private: bytes
    public: SignaturePublicKey

    @classmethod
    def of(cls, code: int, seed: int = 1) -> Signer:
        """Return the key pair for a seed (1 to 255)."""
        suite = SUITES[code]
        private = bytes([seed]) * {"Ed25519": 32, "Ed448": 57}.get(suite.scheme, 32)
        public: Any
        if suite.scheme in _CURVES:
            key = ec.derive_private_key(int.from_bytes(private, "big"), _CURVES[suite.scheme]).public_key()
            public = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        elif suite.scheme.startswith("ML-DSA"):
            public = ml_dsa_key(suite.scheme, private)
        elif suite.scheme == "Ed25519":
            public = ed25519.Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        else:
            public = ed448.Ed448PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        return cls(suite, private, SignaturePublicKey(public))

    @property
    def compressed(self) -> SignaturePublicKey:
        """The public key, a point of a NIST curve, in the compressed form that ts-mls uses."""
        half = len(self.public) // 2
        return SignaturePublicKey(bytes([2 + self.public[-1] % 2]) + self.public[1 : 1 + half])

    def sign(self, label: bytes, content: bytes) -> bytes:
        """SignWithLabel."""
        return sign_with_label(self.suite, self.private, label, content)


def ml_dsa_key(scheme: str, seed: bytes) -> bytes:
    """Return the public key for a seed of 32 octets."""
    made: Any = getattr(mldsa, f"{scheme.replace('-', '')}PrivateKey")
    public: bytes = made.from_seed_bytes(seed).public_key().public_bytes_raw()
    return public


def hpke_key(suite: Suite, seed: int) -> HpkePublicKey:
    """Return an HPKE public key for a seed: a point for NIST curves, else any octets of the right size."""
    if suite.kems[0] not in _CURVES:
        return HpkePublicKey(bytes([seed]) * suite.hpke_key_size)
    key = ec.derive_private_key(seed, _CURVES[suite.kems[0]]).public_key()
    return HpkePublicKey(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))


def leaf_node(signer: Signer, identity: bytes = b"mimi://b.example/u/bob/d/1", **changed: Any) -> LeafNode:
    """Return a leaf for a KeyPackage, signed after the `changed` fields were replaced."""
    suite = signer.suite
    unsigned = LeafNode(
        hpke_key(suite, 2),
        signer.public,
        Credential(CredentialType.BASIC, identity),
        Capabilities((MLS10,), (suite.code,), (), (), (CredentialType.BASIC,)),
        LeafNodeSource.KEY_PACKAGE,
        Lifetime(NOW - DAY, NOW + YEAR - 2 * DAY),
        (),
        b"",
    )
    unsigned = replace(unsigned, **changed)
    return replace(unsigned, signature=signer.sign(b"LeafNodeTBS", unsigned.tbs(b"", 0)))


def key_package(signer: Signer, leaf: LeafNode | None = None, **changed: Any) -> KeyPackageIn:
    """Return a KeyPackage, signed after the `changed` fields were replaced."""
    suite = signer.suite
    own_leaf = leaf_node(signer) if leaf is None else leaf
    unsigned = replace(
        KeyPackageIn(MLS10, suite.code, hpke_key(suite, 1), own_leaf, (), b""),
        **changed,
    )
    return replace(unsigned, signature=signer.sign(b"KeyPackageTBS", unsigned.tbs()))
