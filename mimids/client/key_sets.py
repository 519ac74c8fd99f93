"""The key sets of gateways that a device has seen (docs/ohttp-keys.md).

A gateway that gave every client another key could tell clients apart by the key that a request is sealed to (RFC 9458
section 7). So a device remembers the sets that it was given, and refuses a second set for the same time. A relay gives
the same set to all its devices, and a device can compare the sets of two relays. An application may keep the sets
across restarts.
"""

from __future__ import annotations

import json
from typing import Self

import attrs

from mimids.client.contacts import Contact, SignedKeys
from mimids.ohttp.config import KeyConfig
from mimids.ohttp.keys_signature import APART_SECONDS, KeysRefused, not_after_of
from mimids.wire.base64url import base64url, from_base64url


class KeysDiffer(KeysRefused):
    """The provider shows different key sets for the same time, perhaps to tell clients apart."""


@attrs.define
class KeySets:
    """The sets of each provider that have not expired, oldest first."""

    _sets: dict[str, list[SignedKeys]] = attrs.field(factory=dict)  # by provider and identity

    def config(self, contact: Contact, now_seconds: int) -> KeyConfig | None:
        """Return a configuration of the newest set that may still be used; None if there is none."""
        live = self._live(contact, now_seconds)
        return contact.key_config(live[-1], now_seconds) if live else None

    def add(self, contact: Contact, keys: SignedKeys, now_seconds: int) -> KeyConfig:
        """Remember a set and return a configuration of it.

        Raises `KeysRefused` if the set is not authentic, and `KeysDiffer` if the provider showed another set for this
        time.
        """
        config = contact.key_config(keys, now_seconds)
        live = self._live(contact, now_seconds)
        for other in live:
            if _conflict(keys, other):
                raise KeysDiffer("the provider has shown other key configurations for the same time")
        self._sets[_name(contact)] = [*(each for each in live if each.body != keys.body), keys]
        return config

    def agrees(self, contact: Contact, keys: SignedKeys, now_seconds: int) -> bool:
        """Tell whether a set that another relay gave is one of these sets; raise as `add` does.

        False does not mean a fault: relays fetch a new set at different times.
        """
        contact.key_config(keys, now_seconds)
        live = self._live(contact, now_seconds)
        if any(_conflict(keys, other) for other in live):
            raise KeysDiffer("the provider shows this relay other key configurations for the same time")
        return any(each.body == keys.body for each in live)

    def as_json(self) -> str:
        """Return all sets as text, for `from_json`; the text shows which providers the device asked."""
        return json.dumps(
            {name: [[base64url(each.body), each.signature] for each in sets] for name, sets in self._sets.items()}
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `as_json` returned; raise `ValueError` for anything else."""
        try:
            return cls(
                {
                    str(name): [SignedKeys(from_base64url(body), str(signature)) for body, signature in sets]
                    for name, sets in json.loads(text).items()
                }
            )
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError("these are not key sets") from error

    def _live(self, contact: Contact, now_seconds: int) -> list[SignedKeys]:
        live = [each for each in self._sets.get(_name(contact), ()) if not_after_of(each.signature) >= now_seconds]
        self._sets[_name(contact)] = live
        return live


def _name(contact: Contact) -> str:
    return f"{contact.provider} {base64url(contact.ohttp_identity)}"


def _conflict(keys: SignedKeys, other: SignedKeys) -> bool:
    apart = abs(not_after_of(keys.signature) - not_after_of(other.signature))
    return keys.body != other.body and apart < APART_SECONDS
