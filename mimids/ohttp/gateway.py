"""The gateway's end of RFC 9458: open an encapsulated request, seal the one response to it.

What is raised here is an outer error, for nothing can be sealed yet; after `open_request` returned,
every error travels through its sealer (RFC 9458 sections 5.2 and 5.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import attrs

from mimids.errors import OhttpKey, OhttpUndecipherable
from mimids.ohttp import bhttp
from mimids.ohttp.encapsulation import (
    RESPONSE_LABEL,
    SYMMETRIC,
    TAG_SIZE,
    ResponseCipher,
    read_header,
    response_nonce_size,
)
from mimids.ohttp.hpke import KEM_X25519, KEY_SIZE, Aead, HpkeError, PrivateKey, Recipient
from mimids.wire.codec import Reader, WireError

HEADER_SIZE: Final = 7
OVERHEAD: Final = HEADER_SIZE + KEY_SIZE + TAG_SIZE  # octets by which a request grows


class Sealer:
    """Seals the response to one request, once; `nonce_size` octets must be drawn for it."""

    def __init__(self, context: Recipient, enc: bytes, aead: Aead) -> None:
        self.nonce_size = response_nonce_size(aead)
        self._aead = aead
        self._enc = enc
        self._context: Recipient | None = context

    def seal(self, response: bytes, response_nonce: bytes) -> bytes:
        """Return the `message/ohttp-res` of a Binary HTTP response; a second call is a `RuntimeError`."""
        if self._context is None:
            raise RuntimeError("this request was answered before")
        if len(response_nonce) != self.nonce_size:
            raise ValueError(f"a response nonce of {self.nonce_size} octets is needed")
        secret = self._context.export(RESPONSE_LABEL, self.nonce_size)
        self._context = None
        return response_nonce + ResponseCipher(self._aead, secret, self._enc, response_nonce).seal(response)


@attrs.frozen
class OpenedRequest:
    """A request that this gateway could open.

    `digest` (SHA-256 of the whole encapsulated request) finds a repeat; `enc` finds a sender who used
    one encapsulation for two requests.
    """

    key_id: int
    enc: bytes
    digest: bytes
    request: bytes
    sealer: Sealer


def open_request(message: bytes, keys: Mapping[int, PrivateKey]) -> OpenedRequest:
    """Open a `message/ohttp-req` with the live key that it names (RFC 9458 section 4.3).

    Raises `WireError` if it is cut off, `OhttpKey` if the key id is not among `keys` or its suite is
    not offered with that key, `OhttpUndecipherable` if it does not open.
    """
    reader = Reader(message)
    try:
        header = read_header(reader)
        private = keys.get(header.key_id)
        if private is None or header.kem_id != KEM_X25519:
            raise OhttpKey("key identifier unknown")
        if (header.kdf_id, header.aead_id) not in SYMMETRIC:
            raise OhttpKey("the key is not offered with this KDF and AEAD")
        enc = reader.take(KEY_SIZE)
        if reader.end - reader.pos < TAG_SIZE:
            raise WireError("truncated")
    except WireError as error:
        raise error.within("EncapsulatedRequest") from None
    aead = Aead(header.aead_id)
    try:
        context = Recipient(enc, private, header.info(), aead)
        request = context.open(message[reader.pos :])
    except HpkeError as error:
        raise OhttpUndecipherable from error
    return OpenedRequest(header.key_id, enc, hashlib.sha256(message).digest(), request, Sealer(context, enc, aead))


def read_request(opened: OpenedRequest, limits: bhttp.MessageLimits = bhttp.DEFAULT_LIMITS) -> bhttp.Request:
    """Return the Binary HTTP request inside; a `WireError` from here is answered sealed."""
    request = bhttp.decode_request(opened.request, limits)
    expect = request.field(b"expect")
    if expect is not None and expect.lower() == b"100-continue":
        raise WireError("100-continue cannot be served")  # MUST generate an error: RFC 9458 section 5.1
    return request
