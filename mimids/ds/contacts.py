"""The contact card: what a discovery service hands out for a user (DESIGN section 5; docs/contacts.md)."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import attrs

from mimids.ds.ohttp_keys import KeysAnswer
from mimids.wire.ids import BearerToken, ProviderId, UserId


@attrs.frozen
class ContactCard:
    """All that somebody needs who wants to add this user to a group, and a right to do so."""

    user_id: UserId
    provider: ProviderId
    bearer_token: BearerToken
    ohttp_identity: bytes  # Ed25519, 32 octets; signs every later key configuration
    keys: KeysAnswer

    def as_json(self) -> dict[str, str]:
        """Return the card's members; octets are base64url without padding.

        `ohttp_keys` is the `application/ohttp-keys` body of the moment, and `ohttp_keys_signature` says until when it
        may be used: after that a client fetches it anew and checks it against `ohttp_identity`.
        """
        return {
            "user_id": self.user_id.decode(),
            "provider": self.provider,
            "bearer_token": base64url(self.bearer_token.reveal()),
            "ohttp_identity": base64url(self.ohttp_identity),
            "ohttp_keys": base64url(self.keys.body),
            "ohttp_keys_signature": self.keys.signature,
        }


def base64url(octets: bytes) -> str:
    """Return base64url without padding (RFC 4648 section 5)."""
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes:
    """Read base64url, with its padding or without, as encoders differ; raise `ValueError` at all else."""
    bare = text.removesuffix("=" * (-len(text.rstrip("=")) % 4))
    octets = urlsafe_b64decode(bare.encode("ascii") + b"=" * (-len(bare) % 4))
    if base64url(octets) != bare:
        raise ValueError("not base64url")
    return octets
