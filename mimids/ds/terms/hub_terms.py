"""The terms of a hub as a JSON value (semantics: terms-and-reports)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import attrs

from mimids.ds.limits.rates import Rate
from mimids.mls.identity import provider_of
from mimids.store.arrangements import Restriction
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.ids import GroupId, ProviderId, UserId, group_id, spelling_fault

RATES: Final = ("device_sends_per_second", "device_sends_burst", "device_joins_per_hour", "device_joins_burst")
USER_ID_OCTETS: Final = 1024
MOST_RESTRICTIONS: Final = 10_000  # bans and mutes in the terms for one provider
SIZES: Final = ("message_bytes", "group_info_bytes", "welcome_bytes")


@attrs.frozen
class HubTerms:
    """The members of a hub's terms that this server knows: `{"revision", "hub", "bans", "mutes", "rates", "sizes"}`."""

    revision: int
    hub: ProviderId
    bans: tuple[UserId, ...]
    mutes: tuple[tuple[UserId, GroupId], ...]  # an empty group id: in all groups
    rates: Mapping[str, float]
    sizes: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON members; a group id is base64url, or null for all groups."""
        return {
            "revision": self.revision,
            "hub": self.hub,
            "bans": [user.decode("utf-8", "replace") for user in self.bans],
            "mutes": [
                {"user_id": user.decode("utf-8", "replace"), "group_id": base64url(group) if group else None}
                for user, group in self.mutes
            ],
            "rates": dict(self.rates),
            "sizes": dict(self.sizes),
        }

    @classmethod
    def decode(cls, encoded: bytes | str, hub: ProviderId, *, stored: bool = False) -> HubTerms:
        """Decode JSON and do what `read` does; deeply nested JSON raises `RecursionError`."""
        return cls.read(json.loads(encoded), hub, stored=stored)

    @classmethod
    def read(cls, members: object, hub: ProviderId, *, stored: bool = False) -> HubTerms:
        """Read the JSON members that `hub` sent, and ignore members with unknown names.

        Raises `ValueError` if a known member has a wrong value, or a required one is missing.

        With `stored`, bans and mutes whose id is not a user id are left out: earlier versions stored such terms.
        """
        try:
            if not isinstance(members, dict) or members["hub"] != hub:
                raise ValueError("these are not the terms of this hub")
            bans, mutes = _list(members["bans"]), _list(members["mutes"])
            if len(bans) + len(mutes) > MOST_RESTRICTIONS and not stored:
                raise ValueError(f"the terms have more than {MOST_RESTRICTIONS} bans and mutes")
            rates, sizes = members.get("rates") or {}, members.get("sizes") or {}
            return cls(
                _whole_number(members["revision"]),
                hub,
                tuple(_user_id(each) for each in bans if not stored or _is_user_id(each)),
                tuple(
                    (_user_id(each["user_id"]), group_id(from_base64url(each["group_id"] or "")))
                    for each in mutes
                    if not stored or _is_user_id(each["user_id"])
                ),
                {name: _number(rates[name]) for name in RATES if _number(rates.get(name, 0))},
                {name: _whole_number(sizes[name]) for name in SIZES if _whole_number(sizes.get(name, 0))},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("a member of the terms is missing or has the wrong type") from error

    def terms_for(self, provider: ProviderId) -> set[Restriction]:
        """Return the bans and mutes of one provider's users."""
        banned = {Restriction(user, None) for user in self.bans if provider_of(user) == provider}
        return banned | {Restriction(user, group) for user, group in self.mutes if provider_of(user) == provider}

    def rate(self, name: str, seconds: int) -> Rate | None:
        """Return the rate `name`, such as "device_sends", per 1 or 3600 seconds; None if the hub sets none."""
        unit = {1: "per_second", 3600: "per_hour"}[seconds]
        each, burst = self.rates.get(f"{name}_{unit}"), self.rates.get(f"{name}_burst")
        return None if not each or not burst else Rate(f"hub_{name}_{unit}", each / seconds, int(burst))


def _whole_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError("the terms have a revision or size that is not a whole number from 0 to 2^63 - 1")
    return value


def _is_user_id(text: str) -> bool:
    octets = text.encode()
    return len(octets) <= USER_ID_OCTETS and provider_of(octets) is not None


def _user_id(text: str) -> UserId:
    if not _is_user_id(text):
        raise ValueError(f"the id of a ban or mute: {spelling_fault(text.encode()) or 'too long'}")
    return UserId(text.encode())


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ValueError("the terms have a rate that is not a number from 0 to 10^12")
    return float(value)
