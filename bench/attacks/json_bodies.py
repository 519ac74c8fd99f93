"""The worst JSON bodies that we can construct."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bench.attacks.bodies import Bodies, Body, message
from mimids.ds.terms.report import POSSIBLE_KEYS
from mimids.wire.base64url import base64url
from mimids.wire.ids import ProviderId


def reports(hub: ProviderId) -> Bodies:
    def of(note: Callable[[], str], evidence: Callable[[], list[bytes]] = list) -> Body:
        def make(number: int) -> bytes:
            members = {
                "hub": hub,
                "accused": hub,
                "kind": "x",
                "note": note(),
                "evidence": [base64url(each) for each in evidence()],
            }
            return json.dumps(members, separators=(",", ":")).encode()

        return make

    return {
        "a note of hex digits": of(lambda: secrets.token_hex(1990)),
        "as many hex digits as are searched": of(
            lambda: "".join(secrets.choice("abcdef") for _ in range(POSSIBLE_KEYS + 31))
        ),
        "a note of numbers": of(lambda: " ".join(str(octet % 10) for octet in secrets.token_bytes(1990))),
        "a note of base64": of(lambda: " ".join(secrets.token_urlsafe(16) for _ in range(170))),
        "a note of large numbers": of(lambda: " ".join(str(secrets.randbits(64) | 1 << 63) for _ in range(180))),
        "64 messages": of(str, lambda: [message(b"g").encoded for _ in range(64)]),
        "1,000 messages": of(str, lambda: [message(b"g").encoded for _ in range(1000)]),
        "nested arrays": lambda number: b'{"hub":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        "100,000 members": _many_members,
    }


def subscriptions() -> Bodies:
    """Subscriptions to wake a device: each with another point, with a point that is on no curve, and junk."""

    def of(point: Callable[[], bytes]) -> Body:
        def make(number: int) -> bytes:
            written = [base64url(octets) for octets in (point(), secrets.token_bytes(16))]
            endpoint = f"https://push.example/{secrets.token_hex(8)}"
            return json.dumps({"endpoint": endpoint, "p256dh": written[0], "auth": written[1]}).encode()

        return make

    def fresh() -> bytes:
        public = ec.generate_private_key(ec.SECP256R1()).public_key()
        return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    return {
        "a new key": of(fresh),
        "no point": of(lambda: b"\4" + secrets.token_bytes(64)),
        "100,000 members": _many_members,
    }


def successors(hub: ProviderId) -> Bodies:
    body = json.dumps({"group_id": base64url(b"successor"), "hub": hub}).encode()
    return {"shortest": lambda number: body, "100,000 members": _many_members}


def _many_members(number: int) -> bytes:
    return b"{" + b",".join(b'"%d":0' % n for n in range(100_000)) + b"}"
