"""The encryption of pushes: the example of RFC 8291, and two other implementations that open what is sent."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

from mimids.web_push.message import (
    BODY_OCTETS,
    PLAINTEXT,
    SALT_OCTETS,
    SCALAR_OCTETS,
    encrypt,
    private_value,
)
from mimids.web_push.subscription import make_subscription
from mimids.web_push.vapid import VapidKey
from mimids.wire.base64url import base64url, from_base64url
from tests.support.push_keys import Browser, browser

NODE = Path(__file__).parents[1] / "support" / "node"
# RFC 8291 section 5 and appendix A
OURS = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"
THEIRS = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
AUTH = "BTBZMqHH6r4Tts7J_aSIgg"
SALT = "DGv6ra1nlYgDCS1FRnbzlw"
BODY = (
    "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl"
    "7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
)


def sent(to: Browser) -> bytes:
    return encrypt(to.subscription, secrets.token_bytes(SALT_OCTETS), secrets.token_bytes(SCALAR_OCTETS))


def test_the_example_of_rfc_8291_has_the_same_octets() -> None:
    subscription = make_subscription("https://push.example.net/push", from_base64url(THEIRS), from_base64url(AUTH))
    random = (int.from_bytes(from_base64url(OURS), "big") - 1).to_bytes(SCALAR_OCTETS, "big")
    body = encrypt(subscription, from_base64url(SALT), random, b"When I grow up, I want to be a watermelon")
    assert base64url(body) == BODY


def test_the_python_package_http_ece_opens_what_is_sent() -> None:
    reader = browser()
    assert reader.open(sent(reader)) == PLAINTEXT


def test_every_push_has_the_same_size_and_other_octets() -> None:
    reader = browser()
    first, second = sent(reader), sent(reader)
    assert len(first) == len(second) == BODY_OCTETS
    assert first[:SALT_OCTETS] != second[:SALT_OCTETS]
    assert first[-20:] != second[-20:]


def test_private_values_are_within_the_order_of_the_curve() -> None:
    assert private_value(bytes(SCALAR_OCTETS)) == 1
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    for number, value in ((order - 2, order - 1), (order - 1, 1)):
        assert private_value(number.to_bytes(SCALAR_OCTETS, "big")) == value
    with pytest.raises(ValueError, match="40 random octets"):
        private_value(b"short")


def test_the_npm_packages_http_ece_and_web_push_open_what_is_sent_and_verify_its_token() -> None:
    """web-push makes a request of its own for the same subscription: both are opened with the same keys."""
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules" / "web-push").is_dir():
        pytest.skip("wants node, and its packages: npm ci in tests/support/node")
    reader, key = browser("https://push.example/path"), VapidKey.of(secrets.token_bytes(31).rjust(32, b"\1"))
    body = sent(reader)
    asked = {
        "body": base64url(body),
        "private_key": base64url(reader.private_key.private_numbers().private_value.to_bytes(32, "big")),
        "auth": base64url(reader.subscription.auth),
        "authorization": key.authorization("https://push.example", "https://a.example", 1_900_000_000),
        "subscription": {
            "endpoint": "https://push.example/path",
            "keys": {"p256dh": base64url(reader.subscription.p256dh), "auth": base64url(reader.subscription.auth)},
        },
    }
    ran = subprocess.run([node, "web_push.mjs"], cwd=NODE, input=json.dumps(asked), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert from_base64url(answer["plaintext"]) == PLAINTEXT
    assert answer["claims"] == {
        "aud": "https://push.example",
        "exp": 1_900_000_000 + 43_200,
        "sub": "https://a.example",
    }
    assert answer["theirs"] == "theirs"
    # What we send, except what every request has.
    ours = ["authorization", "content-encoding", "content-length", "content-type", "topic", "ttl", "urgency"]
    assert answer["headers"] == ours
