"""A gateway behind a relay, in place of a device's connection to its provider."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any, cast

import attrs

from mimids.client import Contact, Device, SignedKeys
from mimids.client.connection import Connection, Reply
from mimids.ohttp import bhttp
from mimids.ohttp.config import encode_keys, key_config
from mimids.ohttp.date import read_date, write_date
from mimids.ohttp.gateway import open_request, read_request
from mimids.ohttp.hpke import PrivateKey
from mimids.ohttp.keys_signature import (
    HEADER,
    Identity,
    sign,
)
from mimids.wire.declare import decode, encode
from mimids.wire.ids import BearerToken, CipherSuite, ProviderId, UserId
from mimids.wire.messages import (
    EncodedKeyPackage,
    KeyPackageBundleRequest,
    KeyPackageBundleResponse,
    KeyPackageRequest,
    KeyPackageResult,
    KeyPackageStatus,
)
from tests.vectors import load_lines

B = ProviderId("b.example")
SUITE = CipherSuite(1)
NOW = 1_900_000_000
PACKAGE = EncodedKeyPackage(bytes.fromhex(load_lines("conversations/public.jsonl")[1]["bytes"])[4:])
IDENTITY = Identity(bytes(range(32)))
GONE = {"type": "https://iana.org/assignments/http-problem-types#ohttp-key", "status": 400, "title": "key"}

Answer = Callable[[KeyPackageRequest], KeyPackageResult]


def refuse(_: KeyPackageRequest) -> KeyPackageResult:
    return KeyPackageResult(KeyPackageStatus.REFUSED, None)


def hand_out(_: KeyPackageRequest) -> KeyPackageResult:
    return KeyPackageResult(KeyPackageStatus.OK, PACKAGE)


@attrs.define(slots=False)
class Gateway:
    """b.example behind a relay, in place of a device's connection."""

    answer: Answer = hand_out
    now: int = NOW
    private: PrivateKey = attrs.field(factory=lambda: PrivateKey(bytes(32)))
    signer: Identity = IDENTITY
    not_after: int = NOW + 3600
    tells_time: bool = True
    asked: list[KeyPackageRequest] = attrs.field(factory=list)
    paths: list[str] = attrs.field(factory=list)

    def keys(self) -> SignedKeys:
        body = encode_keys((key_config(1, self.private),))
        return SignedKeys(body, sign(B, body, self.not_after, self.signer))

    async def exchange(self, method: str, path: str, body: bytes | None = None, **more: Any) -> Reply:
        self.paths.append(path)
        if path == f"providers/{B}/ohttp-keys":
            keys = self.keys()
            return Reply(200, {HEADER: keys.signature}, keys.body)
        assert (method, path) == ("POST", f"providers/{B}/ohttp")
        assert body is not None
        try:
            opened = open_request(body, {1: self.private})
        except Exception:
            assert 400 in more["expected"]
            return Reply(400, {}, json.dumps(GONE).encode())
        inner = read_request(opened)
        assert (inner.method, inner.path) == ("POST", "/key-packages?bundle")
        date = read_date(inner.field(b"date"))
        assert date is None or date % 60 == 0, "a Date to the second would tell clients apart"
        if date is None or abs(date - self.now) > 300:
            fields = ((b"date", write_date(self.now)),) if self.tells_time else ()
            problem = {"type": "https://iana.org/assignments/http-problem-types#date"}
            response = bhttp.Response(400, fields, json.dumps(problem).encode())
        else:
            requests = decode(KeyPackageBundleRequest, inner.content).requests
            self.asked += requests
            results = tuple(map(self.answer, requests))
            response = bhttp.Response(200, (), encode(KeyPackageBundleResponse(results)))
        sealed = opened.sealer.seal(bhttp.encode_response(response), secrets.token_bytes(opened.sealer.nonce_size))
        return Reply(200, {}, sealed)


def contact(gateway: Gateway, user: str = "bob") -> Contact:
    return Contact(UserId(f"mimi://b.example/u/{user}".encode()), B, BearerToken(b"t"), gateway.signer.public)


def device(gateway: Gateway, *, clock: int = NOW) -> Device:
    return Device(cast("Connection", gateway), clock=lambda: clock)
