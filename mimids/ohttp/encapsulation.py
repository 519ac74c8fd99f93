"""What both sides of RFC 9458 have in common: the header of a request, and the keys of its response."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag

from mimids.ohttp.hkdf import expand, extract
from mimids.ohttp.hpke import KDF_SHA256, NONCE_SIZE, Aead, HpkeError, aead_of
from mimids.wire.codec import UINT8, UINT16, Reader
from mimids.wire.declare import codec, encode, struct, wire

REQUEST_TYPE: Final = "message/ohttp-req"
RESPONSE_TYPE: Final = "message/ohttp-res"
REQUEST_LABEL: Final = b"message/bhttp request"
RESPONSE_LABEL: Final = b"message/bhttp response"
TAG_SIZE: Final = 16  # Nt of both AEADs
SYMMETRIC: Final = tuple((KDF_SHA256, int(aead)) for aead in Aead)  # the pairs that we offer and accept, in order


@struct
class RequestHeader:
    """The first 7 octets of an encapsulated request (RFC 9458 section 4.1)."""

    key_id: int = wire(UINT8)
    kem_id: int = wire(UINT16)
    kdf_id: int = wire(UINT16)
    aead_id: int = wire(UINT16)

    def info(self) -> bytes:
        """Return the `info` of the HPKE context (RFC 9458 section 4.3)."""
        return info_of(encode(self))


def info_of(header: bytes) -> bytes:
    """Return the `info` that belongs to an encoded header."""
    return REQUEST_LABEL + b"\0" + header


def read_header(reader: Reader) -> RequestHeader:
    """Read a header; the next field in the reader is then `enc`."""
    return codec(RequestHeader).read(reader)


def response_nonce_size(aead: Aead) -> int:
    """Return max(Nn, Nk), the size of the response nonce and of the exported secret in octets."""
    return max(NONCE_SIZE, aead.key_size)


class ResponseCipher:
    """Encrypts or decrypts one response (RFC 9458 section 4.4)."""

    def __init__(self, aead: Aead, secret: bytes, enc: bytes, response_nonce: bytes) -> None:
        prk = extract(enc + response_nonce, secret)
        self._aead = aead_of(aead, expand(prk, b"key", aead.key_size))
        self._nonce = expand(prk, b"nonce", NONCE_SIZE)

    def seal(self, plaintext: bytes) -> bytes:
        """Return the ciphertext, which is 16 octets longer."""
        return self._aead.encrypt(self._nonce, plaintext, b"")

    def open(self, ciphertext: bytes) -> bytes:
        """Return the plaintext; raise `HpkeError` if the ciphertext does not decrypt."""
        try:
            return self._aead.decrypt(self._nonce, ciphertext, b"")
        except InvalidTag as error:
            raise HpkeError("the ciphertext does not decrypt") from error
