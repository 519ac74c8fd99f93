"""The gateway's side of RFC 9458: decrypt an encapsulated request, and encrypt the response to it.

Errors of `open_request` are answered in the clear, since there are no keys for a response yet. Once `open_request` has
returned, every error is encrypted with the sealer that it returned (RFC 9458 sections 5.2 and 5.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import attrs

from mimids.errors import OhttpKey, OhttpUndecipherable
from mimids.ohttp import bhttp
from mimids.ohttp.encapsulation import (
    RESPONSE_LABEL,
    SYMMETRIC,
    TAG_SIZE,
    RequestHeader,
    ResponseCipher,
    info_of,
    read_header,
    response_nonce_size,
)
from mimids.ohttp.hpke import KEM_X25519, KEY_SIZE, Aead, HpkeError, PrivateKey, Recipient
from mimids.wire.codec import Reader, WireError

HEADER_SIZE: Final = 7


class Sealer:
    """Encrypts the response to one request, once; the caller draws `nonce_size` random octets for it."""

    def __init__(self, context: Recipient, enc: bytes, aead: Aead) -> None:
        self.nonce_size = response_nonce_size(aead)
        self._aead = aead
        self._enc = enc
        self._context: Recipient | None = context

    def seal(self, response: bytes, response_nonce: bytes) -> bytes:
        """Return the `message/ohttp-res` of a Binary HTTP response; a second call raises `RuntimeError`."""
        if self._context is None:
            raise RuntimeError("this request was answered already")
        if len(response_nonce) != self.nonce_size:
            raise ValueError(f"the response nonce must have {self.nonce_size} octets")
        secret = self._context.export(RESPONSE_LABEL, self.nonce_size)
        self._context = None
        return response_nonce + ResponseCipher(self._aead, secret, self._enc, response_nonce).seal(response)


@attrs.frozen
class OpenedRequest:
    """A decrypted request.

    `digest` (SHA-256 of the whole encapsulated request) identifies a replay. If two requests have the same `enc` and
    different `digest`s, a sender used one encapsulation for both.
    """

    key_id: int
    enc: bytes
    digest: bytes
    request: bytes
    sealer: Sealer


def open_request(message: bytes, keys: Mapping[int, PrivateKey]) -> OpenedRequest:
    """Decrypt a `message/ohttp-req` with the live key that it names (RFC 9458 section 4.3).

    Raises `WireError` if it is truncated, `OhttpKey` if `keys` does not contain its key id or the key is not offered
    with its cipher suite, and `OhttpUndecipherable` if it does not decrypt.
    """
    reader = Reader(message)
    try:
        header, info = _header_of(message[:HEADER_SIZE])
        reader.pos = HEADER_SIZE
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
        context = Recipient(enc, private, info, aead)
        request = context.open(message[reader.pos :])
    except HpkeError as error:
        raise OhttpUndecipherable from error
    return OpenedRequest(header.key_id, enc, hashlib.sha256(message).digest(), request, Sealer(context, enc, aead))


@lru_cache(maxsize=64)  # a header differs only by key and cipher suite
def _header_of(octets: bytes) -> tuple[RequestHeader, bytes]:
    """Return the header that these octets encode, and the `info` that belongs to it; raise `WireError`."""
    return read_header(Reader(octets)), info_of(octets)


def read_request(opened: OpenedRequest, limits: bhttp.MessageLimits = bhttp.DEFAULT_LIMITS) -> bhttp.Request:
    """Return the Binary HTTP request inside. If this raises `WireError`, the answer must be sealed."""
    request = bhttp.decode_request(opened.request, limits)
    _check_expect(request.fields)
    return request


@lru_cache(maxsize=64)  # requests repeat the same few field lines
def _check_expect(fields: bhttp.Fields) -> None:
    expect = bhttp.field_of(fields, b"expect")
    if expect is not None and expect.lower() == b"100-continue":
        raise WireError("100-continue cannot be served")  # MUST generate an error: RFC 9458 section 5.1
