"""The client's side of RFC 9458: encapsulate a request, and decrypt the response to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from mimids.ohttp.encapsulation import (
    RESPONSE_LABEL,
    SYMMETRIC,
    RequestHeader,
    ResponseCipher,
    response_nonce_size,
)
from mimids.ohttp.hpke import KDF_SHA256, Aead, HpkeError, HpkeSender, PrivateKey
from mimids.wire.declare import encode

if TYPE_CHECKING:
    from mimids.ohttp.config import KeyConfig


class Opener:
    """Decrypts the response to one request."""

    def __init__(self, context: HpkeSender, aead: Aead) -> None:
        self._context: HpkeSender | None = context
        self._aead = aead

    def open(self, message: bytes) -> bytes:
        """Return the Binary HTTP response in a `message/ohttp-res`; raise `HpkeError` if it does not decrypt.

        If a response cannot be decrypted, somebody may have forged it on the way, so the opener can still be used for
        the right response. Once a response has decrypted, a further call raises `RuntimeError`.
        """
        if self._context is None:
            raise RuntimeError("the response to this request was decrypted already")
        size = response_nonce_size(self._aead)
        if len(message) < size:
            raise HpkeError("too short for an encapsulated response")
        secret = self._context.export(RESPONSE_LABEL, size)
        response = ResponseCipher(self._aead, secret, self._context.enc, message[:size]).open(message[size:])
        self._context = None
        return response


@attrs.frozen
class Encapsulated:
    """A `message/ohttp-req` to send, and the opener for its response."""

    message: bytes
    opener: Opener


def encapsulate(config: KeyConfig, request: bytes, ephemeral: bytes, *, aead: Aead | None = None) -> Encapsulated:
    """Encapsulate a Binary HTTP request for the gateway of `config` (RFC 9458 section 4.3).

    `ephemeral` is 32 octets of a secure random source, never used twice: repeating them links the requests and may
    expose both (RFC 9458 section 6.1). Without `aead`, the first AEAD of the configuration that is supported here is
    used. Raises `ValueError` if none is supported, and `HpkeError` if the key is unusable.
    """
    offered = [Aead(aead_id) for kdf_id, aead_id in config.algorithms if (kdf_id, aead_id) in SYMMETRIC]
    if not config.usable or (aead is not None and aead not in offered):
        raise ValueError("the key configuration has no supported cipher suite")
    chosen = offered[0] if aead is None else aead
    header = RequestHeader(config.key_id, config.kem_id, KDF_SHA256, chosen)
    context = HpkeSender(config.public_key, header.info(), chosen, PrivateKey(ephemeral))
    return Encapsulated(encode(header) + context.enc + context.seal(request), Opener(context, chosen))
