"""The gateway's work on one request, without the store, compared with HPKE alone (bench: programs-and-bars).

The floor is SetupBaseR, Open and Export on the octets (RFC 9180). The work is to open the encapsulated request, parse
the Binary HTTP in it, and write, pad and seal a response with a KeyPackage of 600 octets. Rounds of both alternate.
The median of their ratios in CPU time is printed, so that a busy machine affects both. `bench.key_packages` includes
the store.

    python -m bench.ohttp [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from mimids.ohttp import bhttp
from mimids.ohttp.client import encapsulate
from mimids.ohttp.config import key_config
from mimids.ohttp.encapsulation import RESPONSE_LABEL, RequestHeader
from mimids.ohttp.gateway import open_request, read_request
from mimids.ohttp.hpke import KDF_SHA256, KEM_X25519, KEY_SIZE, Aead, PrivateKey, Recipient
from mimids.ohttp.padding import pad_request, pad_response

PER_ROUND = 200
PRIVATE = PrivateKey(b"p" * 32)
KEY_PACKAGE = bytes(600)
REQUEST = bhttp.Request(
    "POST",
    "https",
    "b.example",
    "/key-packages",
    ((b"content-type", b"application/mimi-ds"), (b"date", b"Tue, 24 Nov 2026 10:00:00 GMT")),
    bytes(80),
)


def hpke_alone(message: bytes, aead: Aead) -> None:
    """Do the HPKE operations that every gateway needs."""
    info = RequestHeader(1, KEM_X25519, KDF_SHA256, aead).info()
    context = Recipient(message[7 : 7 + KEY_SIZE], PRIVATE, info, aead)
    context.open(message[7 + KEY_SIZE :])
    context.export(RESPONSE_LABEL, max(12, aead.key_size))


def gateway(message: bytes) -> None:
    """Do what our gateway does with a request, except for the claim."""
    opened = open_request(message, {1: PRIVATE})
    read_request(opened)
    response = bhttp.Response(200, ((b"content-type", b"application/mimi-ds"),), KEY_PACKAGE)
    opened.sealer.seal(pad_response(bhttp.encode_response(response)), b"n" * opened.sealer.nonce_size)


def cpu_seconds(work: Callable[[], None]) -> float:
    """Return the CPU time of one call, measured over a round of calls."""
    start = time.process_time()
    for _ in range(PER_ROUND):
        work()
    return (time.process_time() - start) / PER_ROUND


def main(rounds: int) -> None:
    """Print one line for each AEAD."""
    for aead in Aead:
        plain = pad_request(bhttp.encode_request(REQUEST))
        message = encapsulate(key_config(1, PRIVATE), plain, b"e" * 32, aead=aead).message
        pairs = [
            (cpu_seconds(lambda: hpke_alone(message, aead)), cpu_seconds(lambda: gateway(message)))  # noqa: B023  # called at once
            for _ in range(rounds)
        ]
        floor = statistics.median(floor for floor, _ in pairs)
        ratio = statistics.median(work / floor for floor, work in pairs)
        print(f"ohttp gateway, {aead.name}: {ratio:.2f} x HPKE alone ({floor * 1e6:.0f} us); bar 2.5 with the store")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
