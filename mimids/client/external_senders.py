"""The signature keys of the device's provider, for the `external_senders` of a group that the device creates.

A group that lists the key lets the provider propose to remove members. The provider does this for the leaves of devices
that were removed from their accounts (docs/client.md). The creator of the group decides whether to list the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from mimids.mls.group_info import EXTERNAL_SENDERS, ExternalSender
from mimids.wire.base64url import from_base64url
from mimids.wire.declare import decode, encode


@attrs.frozen
class ProviderSignatureKey:
    """A key of a provider: `identity` is in its BasicCredential, `external_sender` is an encoded ExternalSender."""

    scheme: str
    cipher_suites: tuple[int, ...]
    signature_key: bytes
    identity: bytes
    external_sender: bytes

    @classmethod
    def read(cls, members: Mapping[str, Any]) -> ProviderSignatureKey:
        """Return a key from the JSON of `me` or of a directory; raise `ValueError` if its parts do not fit together."""
        octets = {name: from_base64url(members[name]) for name in ("signature_key", "credential", "external_sender")}
        sender = decode(ExternalSender, octets["external_sender"])
        if (sender.signature_key, sender.credential.content) != (octets["signature_key"], octets["credential"]):
            raise ValueError("external_sender does not contain this signature_key and credential")
        return cls(
            members["scheme"],
            tuple(members["cipher_suites"]),
            octets["signature_key"],
            octets["credential"],
            octets["external_sender"],
        )


def external_senders_data(keys: Iterable[ProviderSignatureKey], *, bare: bool = False) -> bytes:
    """Return the extension_data of `external_senders` (type 0x0005) with these keys (RFC 9420 section 12.1.8.1).

    With `bare`, the result is one ExternalSender without the vector around it. ts-mls (1.6.4) reads and writes only
    this form, and members with other libraries cannot be in such a group. Raises `ValueError` for more than one key
    then.
    """
    senders = tuple(decode(ExternalSender, key.external_sender) for key in keys)
    if not bare:
        return EXTERNAL_SENDERS.encode(senders)
    if len(senders) != 1:
        raise ValueError("the bare form has exactly one key: pass one key, or leave `bare` out")
    return encode(senders[0])
