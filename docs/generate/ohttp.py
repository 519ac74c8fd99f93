"""Prints the example of docs/ohttp.md, and docs/ohttp-example.json with the same octets in full.

A request for a KeyPackage, as our client makes it, and its answer, as our gateway makes it, with fixed keys. A test
computes the same with `examples/plain_octets.py`, which shares no code with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from typing import Final

import attrs
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from docs.generate.markers import fill
from docs.generate.octets import BOB, OTHER, SUITE, TOKEN, line
from mimids.cli.demo.recording import Recording
from mimids.ohttp import bhttp
from mimids.ohttp.client import encapsulate
from mimids.ohttp.config import encode_keys, key_config
from mimids.ohttp.encapsulation import RESPONSE_LABEL, RequestHeader
from mimids.ohttp.gateway import HEADER_SIZE, open_request
from mimids.ohttp.hpke import NONCE_SIZE, Aead, PrivateKey, Recipient
from mimids.ohttp.padding import pad_request, pad_response
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10
from mimids.wire.messages import EncodedKeyPackage, KeyPackageRequest, KeyPackageResponse

GATEWAY_KEY: Final = PrivateKey(bytes(range(0x20, 0x40)))
EPHEMERAL_KEY: Final = PrivateKey(bytes(range(0x40, 0x60)))
RESPONSE_NONCE: Final = bytes(range(0x60, 0x70))
KEY_ID: Final = 1
ASKED_AT: Final = b"Tue, 24 Nov 2026 10:00:00 GMT"
ANSWERED_AT: Final = b"Tue, 24 Nov 2026 10:01:12 GMT"
AEAD: Final = Aead.AES_128_GCM
_CONTENT_TYPE: Final = (b"content-type", b"application/mimi-ds")
SHOWN: Final = 32  # octets of each end of a long value


@attrs.frozen
class Step:
    """Values of one step of the example, by name, with what the document says about them."""

    title: str
    values: dict[str, bytes]


@cache
def steps() -> tuple[Step, ...]:
    """Return the whole exchange."""
    config = key_config(KEY_ID, GATEWAY_KEY)
    keys = {"gateway private key": GATEWAY_KEY.reveal(), "ohttp-keys": encode_keys((config,))}
    content = encode(KeyPackageRequest(BOB, TOKEN, MLS10, SUITE))
    fields: bhttp.Fields = (_CONTENT_TYPE, (b"date", ASKED_AT))
    request = bhttp.encode_request(bhttp.Request("POST", "https", OTHER, "/key-packages", fields, content))
    sealed = encapsulate(config, pad_request(request), EPHEMERAL_KEY.reveal(), aead=AEAD).message
    package = encode(KeyPackageResponse(EncodedKeyPackage(Recording().key_packages["bob"])))
    fields = (_CONTENT_TYPE, (b"date", ANSWERED_AT), (b"cache-control", b"no-store"))
    response = bhttp.encode_response(bhttp.Response(200, fields, package))
    return (
        Step("The gateway's key, and the body of its `application/ohttp-keys`", keys),
        Step("The KeyPackageRequest", {"KeyPackageRequest": content}),
        Step("The Binary HTTP request, before it is padded to 1,024 octets", {"request": request}),
        Step("The encapsulated request", _encapsulated(sealed)),
        Step("The Binary HTTP response, before it is padded to 2,048 octets", {"response": response}),
        Step("The sealed answer", _answer(sealed, response)),
    )


def _encapsulated(sealed: bytes) -> dict[str, bytes]:
    header = decode(RequestHeader, sealed[:HEADER_SIZE])
    return {
        "ephemeral private key": EPHEMERAL_KEY.reveal(),
        "header": encode(header),
        "info": header.info(),
        "enc": EPHEMERAL_KEY.public,
        "message/ohttp-req": sealed,
    }


def _answer(sealed: bytes, response: bytes) -> dict[str, bytes]:
    opened = open_request(sealed, {KEY_ID: GATEWAY_KEY})
    context = Recipient(opened.enc, GATEWAY_KEY, decode(RequestHeader, sealed[:HEADER_SIZE]).info(), AEAD)
    secret = context.export(RESPONSE_LABEL, len(RESPONSE_NONCE))

    def derive(label: bytes, size: int) -> bytes:
        return HKDF(SHA256(), size, salt=opened.enc + RESPONSE_NONCE, info=label).derive(secret)

    return {
        "response_nonce": RESPONSE_NONCE,
        "secret": secret,
        "key": derive(b"key", AEAD.key_size),
        "nonce": derive(b"nonce", NONCE_SIZE),
        "message/ohttp-res": opened.sealer.seal(pad_response(response), RESPONSE_NONCE),
    }


def as_json() -> str:
    """Return all values of the example in hex."""
    return json.dumps({name: value.hex() for step in steps() for name, value in step.values.items()}, indent=2) + "\n"


def example() -> str:
    """Return the example in Markdown; of values above 512 octets it has both ends and the SHA-256."""
    parts = []
    for step in steps():
        lines = [each for name, value in step.values.items() for each in _lines(name, value)]
        parts.append(f"{step.title}:\n\n```text\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


def written(text: str) -> str:
    """Return the document with its printed parts replaced; see `markers.fill`."""
    return fill(text, {"ohttp-example": example})


def _lines(name: str, value: bytes) -> Iterator[str]:
    if name == "request":
        yield from _parts(value, ("method", "scheme", "authority", "path"))
    elif name == "response":
        yield from _parts(value, ())
    elif len(value) > 16 * SHOWN:
        yield line(name, value[:SHOWN], f"the first {SHOWN} of {len(value):,} octets")
        yield line("", value[-SHOWN:], "the last ones")
        yield line("  SHA-256 of all", hashlib.sha256(value).digest())
    else:
        yield line(name, value)


def _parts(message: bytes, control: tuple[str, ...]) -> Iterator[str]:
    """Yield the parts of a Binary HTTP message of known length; `control` names its control data."""
    yield line("framing indicator", message[:1], "of known length")
    at = 1
    if not control:
        yield line("status", message[1:3], str(int.from_bytes(message[1:3], "big") & 0x3FFF))
        at = 3

    def part(name: str, *, whole: bool = True) -> str:
        nonlocal at
        size, begin = _length(message, at)
        end = begin + size if whole else begin
        octets, at = message[at:end], end
        text = message[begin:end].decode("ascii", "replace")
        return line(name, octets, f"{size} octets" if not whole or not text.isprintable() else f'"{text}"')

    for name in control:
        yield part(name)
    size, begin = _length(message, at)
    yield part("header fields", whole=False)
    while at < begin + size:
        yield part("  name")
        yield part("  value")
    yield part("content")
    if at < len(message):
        yield part("trailers", whole=False)


def _length(message: bytes, at: int) -> tuple[int, int]:
    size = 1 << (message[at] >> 6)
    number = int.from_bytes(message[at : at + size], "big")
    return number & ((1 << (8 * size - 2)) - 1), at + size
