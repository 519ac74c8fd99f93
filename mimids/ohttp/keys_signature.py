"""Signatures of key configurations: writing and verifying the `Mimids-Keys-Signature` header.

A relay that serves key configurations could serve its own keys and then read every request (RFC 9458 section 6.1). So
each provider signs its key configurations with a long-lived Ed25519 key, whose public key is in the contact card.
docs/ohttp-keys.md has the format and an example.
"""

from __future__ import annotations

import base64
import re
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mimids.ohttp.config import KeyConfig, decode_keys
from mimids.wire.codec import OPAQUE_V, UINT64, WireError
from mimids.wire.declare import encode, struct, wire
from mimids.wire.ids import PROVIDER_ID, ProviderId, Secret

HEADER: Final = "Mimids-Keys-Signature"
APART_SECONDS: Final = 3600  # the least distance between the not_after of two key sets of one provider
LABEL: Final = b"mimids ohttp keys 1"

_FORM: Final = re.compile(r"not_after=([0-9]{1,15}), signature=:([A-Za-z0-9+/]{86}==):")


class KeysRefused(Exception):
    """These key configurations must not be used; the subclass says why."""


class KeysUnsigned(KeysRefused):
    """The header is missing, or has an unknown form."""


class KeysWronglySigned(KeysRefused):
    """The signature is not valid for this provider, body and `not_after`."""


class KeysExpired(KeysRefused):
    """The key configurations are authentic, but their `not_after` has passed."""


class KeysMalformed(KeysRefused):
    """The key configurations are authentic, but not valid `application/ohttp-keys`."""


class Identity(Secret):
    """The private key of a provider's `ohttp_identity`: any 32 random octets (an RFC 8032 secret key)."""

    __slots__ = ("key", "public")

    def __init__(self, octets: bytes) -> None:
        super().__init__(octets)
        self.key = Ed25519PrivateKey.from_private_bytes(octets)
        self.public: bytes = self.key.public_key().public_bytes_raw()


@struct
class KeysToBeSigned:
    """The structure that the signature covers."""

    label: bytes = wire(OPAQUE_V)
    provider: ProviderId = wire(PROVIDER_ID)
    keys: bytes = wire(OPAQUE_V)  # the body, as sent
    not_after: int = wire(UINT64)  # seconds since the epoch


def sign(provider: ProviderId, body: bytes, not_after: int, identity: Identity) -> str:
    """Return the value of the header for this `application/ohttp-keys` body; `not_after` is in seconds."""
    covered = encode(KeysToBeSigned(LABEL, provider, body, not_after))
    return _header(not_after, identity.key.sign(covered))


def verify(provider: ProviderId, body: bytes, header: str | None, identity: bytes, now: int) -> tuple[KeyConfig, ...]:
    """Return the key configurations in `body`, the preferred one first, if they are authentic and not expired.

    `identity` is the 32 octets of the provider's `ohttp_identity` from its contact card; `now` is in seconds. Raises
    `KeysRefused`. The signature is checked first, so every other error concerns data that the provider itself signed.
    """
    not_after, signature = _parse(header)
    covered = encode(KeysToBeSigned(LABEL, provider, body, not_after))
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, covered)
    except (InvalidSignature, ValueError) as error:
        raise KeysWronglySigned("the key configurations are not signed by this provider") from error
    if now > not_after:
        raise KeysExpired("the key configurations have expired")
    try:
        return decode_keys(body)
    except WireError as error:
        raise KeysMalformed(str(error)) from error


def not_after_of(header: str) -> int:
    """Return the `not_after` of a header, in seconds; raise `KeysUnsigned` if the header has an unknown form."""
    return _parse(header)[0]


def is_signed(header: str) -> bool:
    """Tell whether a header has the form of a signature; this does not verify it."""
    return _FORM.fullmatch(header) is not None


def _header(not_after: int, signature: bytes) -> str:
    return f"not_after={not_after}, signature=:{base64.b64encode(signature).decode()}:"


def _parse(header: str | None) -> tuple[int, bytes]:
    found = _FORM.fullmatch(header or "")
    if found is None:
        raise KeysUnsigned(f"the {HEADER} header is missing or has an unknown form")
    not_after = int(found[1])
    signature = base64.b64decode(found[2])
    if _header(not_after, signature) != header:  # a leading zero, or nonzero bits after the last octet
        raise KeysUnsigned(f"the {HEADER} header is missing or has an unknown form")
    return not_after, signature
