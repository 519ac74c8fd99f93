"""Contact cards: a user, the user's provider, and what is needed to fetch KeyPackages (docs/contacts.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

import attrs

from mimids.ohttp.config import KeyConfig
from mimids.ohttp.keys_signature import KeysRefused, verify
from mimids.wire.base64url import from_base64url
from mimids.wire.ids import BearerToken, ProviderId, UserId, provider_id, spelling_fault


@attrs.frozen
class SignedKeys:
    """An `application/ohttp-keys` body with its `Mimids-Keys-Signature`."""

    body: bytes
    signature: str


@attrs.frozen
class Contact:
    """A contact card, as a discovery service hands it out."""

    user_id: UserId
    provider: ProviderId
    bearer_token: BearerToken
    ohttp_identity: bytes  # Ed25519, 32 octets: the key that signs the gateway's keys

    @classmethod
    def from_json(cls, card: str | bytes | Mapping[str, Any]) -> Self:
        """Read a card; raise `ValueError` if it is not valid."""
        try:
            members = card if isinstance(card, Mapping) else json.loads(card)
            user_id = UserId(str(members["user_id"]).encode())
            misspelt = spelling_fault(user_id)
            if misspelt is not None:
                raise ValueError(f"the contact card's user_id: {misspelt}")
            return cls(
                user_id,
                provider_id(str(members["provider"])),
                BearerToken(from_base64url(members["bearer_token"])),
                from_base64url(members["ohttp_identity"]),
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("this is not a contact card: a member is missing or has another type") from error

    def key_config(self, keys: SignedKeys, now_seconds: int) -> KeyConfig:
        """Return the first key configuration that we can use; raise `KeysRefused` if the keys are not authentic.

        Our own provider passes the keys on. Without this check, our provider could replace the keys with its own and
        read every request (RFC 9458 section 6.1).
        """
        for config in verify(self.provider, keys.body, keys.signature, self.ohttp_identity, now_seconds):
            if config.usable:
                return config
        raise KeysRefused("no key configuration has a KEM and suite that we support")
