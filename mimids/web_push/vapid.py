"""The signed token in the header Authorization, which tells a push service who sends a push (VAPID, RFC 8292)."""

from __future__ import annotations

import json
from typing import Final

import attrs
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey, derive_private_key
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mimids.wire.base64url import base64url

PRIVATE_OCTETS: Final = 32
TOKEN_SECONDS: Final = 12 * 3600  # RFC 8292 section 2: at most 24 hours; this leaves room for a wrong clock


@attrs.frozen
class VapidKey:
    """The provider's key pair for push services."""

    private_key: EllipticCurvePrivateKey = attrs.field(repr=False)

    @classmethod
    def of(cls, private: bytes) -> VapidKey:
        """Return the key pair with this private value of PRIVATE_OCTETS; raise `ValueError` if it is not valid."""
        return cls(derive_private_key(int.from_bytes(private, "big"), SECP256R1()))

    @property
    def public(self) -> bytes:
        """Return the public key as an uncompressed point, which devices subscribe with."""
        return self.private_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def authorization(self, origin: str, subject: str, now_seconds: int) -> str:
        """Return the header Authorization for a request to a push service (RFC 8292 sections 2 and 3)."""
        claims = {"aud": origin, "exp": now_seconds + TOKEN_SECONDS, "sub": subject}
        signed = f"{_part({'typ': 'JWT', 'alg': 'ES256'})}.{_part(claims)}"
        r, s = decode_dss_signature(self.private_key.sign(signed.encode(), ECDSA(SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")  # RFC 7518 section 3.4
        return f"vapid t={signed}.{base64url(signature)}, k={base64url(self.public)}"


def _part(value: dict[str, object]) -> str:
    return base64url(json.dumps(value, separators=(",", ":")).encode())
