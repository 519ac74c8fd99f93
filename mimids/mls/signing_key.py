"""Signature key pairs of this provider, each derived from a seed of 32 octets, and the signed Remove proposals.

A seed has the same size for every signature scheme, so all private keys are stored in the same form. An Ed25519 key is
the seed itself (RFC 8032 section 5.1.5); other keys are derived from the seed with HKDF-Expand (RFC 5869). For a NIST
curve, 64 bits more than the size of its order are derived, and reduced modulo the order (FIPS 186-5 section A.2.1).
"""

from __future__ import annotations

from typing import Final, Self

import attrs
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mimids.mls.code_points import ContentType, ProposalType, SenderType, WireFormat
from mimids.mls.framing import AuthenticatedContent, FramedContent, MLSMessage, PublicMessage, Sender
from mimids.mls.proposals import Proposal, Remove
from mimids.mls.public_group import PublicGroup
from mimids.mls.suites import ML_DSA_SCHEMES, SUITES, ml_dsa_public_key, sign_with_label
from mimids.wire.ids import MLS10, Secret

SEED_SIZE: Final = 32
_EXTRA_OCTETS: Final = 8  # derived beyond the size of a curve's order

# The curve of each scheme, and the order of its group (NIST SP 800-186 section 3.2.1).
_CURVES: Final[dict[str, tuple[ec.EllipticCurve, int]]] = {
    "P-256": (ec.SECP256R1(), 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551),
    "P-384": (
        ec.SECP384R1(),
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    ),
    "P-521": (
        ec.SECP521R1(),
        (1 << 521) - 0x5AE79787C40D069948033FEB708F65A2FC44A36477663B851449048E16EC79BF7,
    ),
}
_ED448_SIZE: Final = 57
_ML_DSA_SEED_SIZE: Final = 32
SCHEMES: Final = frozenset({"Ed25519", "Ed448", *_CURVES, *ML_DSA_SCHEMES})  # the schemes for which keys can be derived


def cipher_suites_of(scheme: str) -> tuple[int, ...]:
    """Return the code points of the cipher suites with a signature scheme, in ascending order."""
    return tuple(sorted(code for code, suite in SUITES.items() if suite.scheme == scheme))


@attrs.frozen
class SigningKey:
    """A key pair: `private` as `suites.sign_with_label` takes it, `public` as a SignaturePublicKey."""

    scheme: str
    private: Secret
    public: bytes

    @classmethod
    def of(cls, scheme: str, seed: bytes) -> Self:
        """Derive the key pair of a scheme in `SCHEMES` from a seed of `SEED_SIZE` octets."""
        if scheme == "Ed25519":
            pair = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
            return cls(scheme, Secret(seed), pair.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
        if scheme == "Ed448":
            private = _expand(scheme, seed, _ED448_SIZE)
            public = ed448.Ed448PrivateKey.from_private_bytes(private).public_key()
            return cls(scheme, Secret(private), public.public_bytes(Encoding.Raw, PublicFormat.Raw))
        if scheme in ML_DSA_SCHEMES:
            private = _expand(scheme, seed, _ML_DSA_SEED_SIZE)
            return cls(scheme, Secret(private), ml_dsa_public_key(scheme, private))
        curve, order = _CURVES[scheme]
        size = (order.bit_length() + 7) // 8
        scalar = int.from_bytes(_expand(scheme, seed, size + _EXTRA_OCTETS)) % (order - 1) + 1
        point = ec.derive_private_key(scalar, curve).public_key()
        octets = point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return cls(scheme, Secret(scalar.to_bytes(size)), octets)

    def remove(self, group: PublicGroup, sender: int, leaf: int) -> MLSMessage:
        """Return a proposal to remove a leaf, signed as the entry `sender` of external_senders.

        (RFC 9420 section 12.1.8.1; it MUST be a PublicMessage, section 12.1.8)
        """
        proposal = Proposal(ProposalType.REMOVE, Remove(leaf))
        outside = Sender(SenderType.EXTERNAL, sender)
        content = FramedContent(group.context.group_id, group.epoch, outside, b"", ContentType.PROPOSAL, proposal)
        unsigned = AuthenticatedContent(WireFormat.PUBLIC_MESSAGE, content, b"", None)
        signature = sign_with_label(group.suite, self.private.reveal(), b"FramedContentTBS", unsigned.tbs(b""))
        public = PublicMessage(content, signature, confirmation_tag=None, membership_tag=None)
        return MLSMessage(MLS10, WireFormat.PUBLIC_MESSAGE, public)


def _expand(scheme: str, seed: bytes, size: int) -> bytes:
    info = b"mimids signature key " + scheme.encode()
    return HKDFExpand(hashes.SHA512(), size, info).derive(seed)
