"""The client's end of RFC 9458: encapsulate a request, open the one response to it."""

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
    """Opens the response to one request, once it has come."""

    def __init__(self, context: HpkeSender, aead: Aead) -> None:
        self._context: HpkeSender | None = context
        self._aead = aead

    def open(self, message: bytes) -> bytes:
        """Return the Binary HTTP response in a `message/ohttp-res`; `HpkeError` if it is not ours.

        A response that does not open leaves the opener usable: somebody between may have made it up.
        After one that did, a further call is a `RuntimeError`.
        """
        if self._context is None:
            raise RuntimeError("this request was answered before")
        size = response_nonce_size(self._aead)
        if len(message) < size:
            raise HpkeError("too short for a response")
        secret = self._context.export(RESPONSE_LABEL, size)
        response = ResponseCipher(self._aead, secret, self._context.enc, message[:size]).open(message[size:])
        self._context = None
        return response


@attrs.frozen
class Encapsulated:
    """A `message/ohttp-req` to send, and what opens the answer."""

    message: bytes
    opener: Opener


def encapsulate(config: KeyConfig, request: bytes, ephemeral: bytes, *, aead: Aead | None = None) -> Encapsulated:
    """Encapsulate a Binary HTTP request for the gateway of `config` (RFC 9458 section 4.3).

    `ephemeral` is 32 octets from a good source, never used twice: whoever repeats them links the
    requests and may expose both (RFC 9458 section 6.1). Without `aead`, the first of the
    configuration that is known here. `ValueError` if it has none, `HpkeError` if its key is unusable.
    """
    offered = [Aead(aead_id) for kdf_id, aead_id in config.algorithms if (kdf_id, aead_id) in SYMMETRIC]
    if not config.usable or (aead is not None and aead not in offered):
        raise ValueError("the key configuration has no suite that is known here")
    chosen = offered[0] if aead is None else aead
    header = RequestHeader(config.key_id, config.kem_id, KDF_SHA256, chosen)
    context = HpkeSender(config.public_key, header.info(), chosen, PrivateKey(ephemeral))
    return Encapsulated(encode(header) + context.enc + context.seal(request), Opener(context, chosen))
