"""The contact card that a discovery service hands out for a user (commands: commands; docs/contacts.md)."""

from __future__ import annotations

import attrs

from mimids.ds.key_packages.gateway_keys import KeysAnswer
from mimids.wire.base64url import base64url
from mimids.wire.ids import BearerToken, ProviderId, UserId


@attrs.frozen
class ContactCard:
    """What another user needs to add this user to a group, with a bearer token as the right to do so."""

    user_id: UserId
    provider: ProviderId
    bearer_token: BearerToken
    ohttp_identity: bytes  # Ed25519, 32 octets; signs every later key configuration
    keys: KeysAnswer

    def as_json(self) -> dict[str, str]:
        """Return the JSON members; octets are base64url without padding.

        `ohttp_keys` is the current `application/ohttp-keys` body; `ohttp_keys_signature` says until when it may be
        used. After that a client fetches the keys again and checks their signature against `ohttp_identity`.
        """
        return {
            "user_id": self.user_id.decode(),
            "provider": self.provider,
            "bearer_token": base64url(self.bearer_token.reveal()),
            "ohttp_identity": base64url(self.ohttp_identity),
            "ohttp_keys": base64url(self.keys.body),
            "ohttp_keys_signature": self.keys.signature,
        }
