"""The contact card that a discovery service hands out for a user (commands: commands; docs/contacts.md)."""

from __future__ import annotations

import attrs

from mimids.wire.base64url import base64url
from mimids.wire.ids import BearerToken, ProviderId, UserId


@attrs.frozen
class ContactCard:
    """The data that another user needs to add this user to a group; the bearer token gives the right to do this."""

    user_id: UserId
    provider: ProviderId
    bearer_token: BearerToken
    ohttp_identity: bytes  # Ed25519, 32 octets; signs the gateway's key configurations

    def as_json(self) -> dict[str, str]:
        """Return the JSON members; octets are base64url without padding.

        The card has the identity of the gateway but none of its keys: if each card had a different key, the gateway
        could tell apart those who hold the cards. A client fetches the keys through its provider, which gives all its
        devices the same keys.
        """
        return {
            "user_id": self.user_id.decode(),
            "provider": self.provider,
            "bearer_token": base64url(self.bearer_token.reveal()),
            "ohttp_identity": base64url(self.ohttp_identity),
        }
