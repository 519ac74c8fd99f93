"""The token that names us to a push service."""

from __future__ import annotations

import json

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from mimids.web_push.vapid import TOKEN_SECONDS, VapidKey
from mimids.wire.base64url import from_base64url


def test_a_token_is_signed_by_the_key_beside_it_and_ends_within_a_day() -> None:
    key = VapidKey.of(bytes(31) + b"\7")
    scheme, _, parameters = key.authorization("https://push.example", "mailto:x@a.example", 1000).partition(" ")
    assert scheme == "vapid"
    named = dict(each.strip().split("=", 1) for each in parameters.split(","))
    point = from_base64url(named["k"])
    assert point == key.public
    header, claims, signature = named["t"].split(".")
    assert json.loads(from_base64url(header)) == {"typ": "JWT", "alg": "ES256"}
    assert json.loads(from_base64url(claims)) == {
        "aud": "https://push.example",
        "exp": 1000 + TOKEN_SECONDS,
        "sub": "mailto:x@a.example",
    }
    assert TOKEN_SECONDS <= 86_400
    octets = from_base64url(signature)
    assert len(octets) == 64
    der = encode_dss_signature(int.from_bytes(octets[:32], "big"), int.from_bytes(octets[32:], "big"))
    public = EllipticCurvePublicKey.from_encoded_point(SECP256R1(), point)
    public.verify(der, f"{header}.{claims}".encode(), ECDSA(SHA256()))
    with pytest.raises(InvalidSignature):
        public.verify(der, f"{header}.{claims}x".encode(), ECDSA(SHA256()))


def test_the_private_key_is_not_shown() -> None:
    assert "EllipticCurve" not in repr(VapidKey.of(bytes(31) + b"\7"))
