"""The encrypted body of a push (RFC 8291, with the content coding aes128gcm of RFC 8188).

All pushes have the same plaintext. A push only says "connect": it names no group, no sender and no number, and its size
is always the same.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP256R1,
    EllipticCurvePublicKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mimids.ohttp.hkdf import expand, extract
from mimids.web_push.subscription import Subscription

PLAINTEXT: Final = b'{"mimids":"wake-up"}'
RECORD_SIZE: Final = 4096  # `rs` in the header; the body is one record
SALT_OCTETS: Final = 16
SCALAR_OCTETS: Final = 40  # random octets for a private key: a third more than its size makes all keys equally likely
TAG_OCTETS: Final = 16
HEADER_OCTETS: Final = SALT_OCTETS + 4 + 1 + 65
BODY_OCTETS: Final = HEADER_OCTETS + len(PLAINTEXT) + 1 + TAG_OCTETS

_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
_LAST_RECORD: Final = b"\x02"  # RFC 8188 section 2


def private_value(random: bytes) -> int:
    """Return a private value of P-256, from SCALAR_OCTETS random octets (FIPS 186-5 section A.2.1)."""
    if len(random) != SCALAR_OCTETS:
        raise ValueError(f"{SCALAR_OCTETS} random octets are needed")
    return int.from_bytes(random, "big") % (_ORDER - 1) + 1


def encrypt(subscription: Subscription, salt: bytes, random: bytes, plaintext: bytes = PLAINTEXT) -> bytes:
    """Return the body of a push; `salt` has 16 random octets, `random` has SCALAR_OCTETS, both new for each push."""
    ours = derive_private_key(private_value(random), SECP256R1())
    our_point = ours.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    theirs = EllipticCurvePublicKey.from_encoded_point(SECP256R1(), subscription.p256dh)
    shared = ours.exchange(ECDH(), theirs)
    # RFC 8291 section 3.4
    info = b"WebPush: info\0" + subscription.p256dh + our_point
    input_key = expand(extract(subscription.auth, shared), info, 32)
    prk = extract(salt, input_key)
    key, nonce = expand(prk, b"Content-Encoding: aes128gcm\0", 16), expand(prk, b"Content-Encoding: nonce\0", 12)
    header = salt + RECORD_SIZE.to_bytes(4, "big") + bytes([len(our_point)]) + our_point  # RFC 8188 section 2.1
    return header + AESGCM(key).encrypt(nonce, plaintext + _LAST_RECORD, None)
