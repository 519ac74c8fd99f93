"""Subscriptions as browsers make them, with the private keys that open a push."""

from __future__ import annotations

import secrets

import attrs
import http_ece
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mimids.web_push.subscription import Subscription, make_subscription


@attrs.frozen
class Browser:
    """The side that opens pushes, with PyPI's http-ece."""

    subscription: Subscription
    private_key: EllipticCurvePrivateKey

    def open(self, body: bytes) -> bytes:
        opened: bytes = http_ece.decrypt(
            body, private_key=self.private_key, auth_secret=self.subscription.auth, version="aes128gcm"
        )
        return opened


def browser(url: str = "https://push.example/one") -> Browser:
    key = generate_private_key(SECP256R1())
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return Browser(make_subscription(url, point, secrets.token_bytes(16)), key)
