"""Fetching KeyPackages of other users over OHTTP, and what a device knows of its own stock."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from mimids.client.connection import Connection, Problem
from mimids.client.contacts import Contact, SignedKeys
from mimids.client.key_sets import KeySets
from mimids.client.ohttp import WrongDate, seal
from mimids.ohttp.config import KeyConfig
from mimids.ohttp.date import DATE_SHIFTS, blurred
from mimids.ohttp.keys_signature import HEADER
from mimids.wire.ids import MLS10, BearerToken, CipherSuite, ProviderId
from mimids.wire.messages import KeyPackageRequest, KeyPackageResult

_BUNDLE_REQUESTS: Final = 64  # in one sealed request: what a gateway takes by default (bundle_max_requests)
_OHTTP_REQUEST: Final = "message/ohttp-req"
_GATEWAY_STATUSES: Final = frozenset({400, 422})  # refusals by the gateway itself, which the relay passes on unchanged


@attrs.frozen
class Stock:
    """How many KeyPackages the device has left for one version and cipher suite."""

    version: int
    cipher_suite: int
    left: int
    last_resort: bool


@attrs.frozen
class Uploaded:
    """The answer to an upload: how many KeyPackages were accepted, why others were refused, and the new stock."""

    accepted: int
    refused: tuple[tuple[int, str], ...]
    stock: tuple[Stock, ...]


@attrs.frozen
class Token:
    """A bearer token for one's own KeyPackages; it is shown only once."""

    id: int
    bearer_token: BearerToken


class KeyPackageFetcher:
    """Fetches KeyPackages; remembers the key sets of each provider."""

    def __init__(self, connection: Connection, *, clock: Callable[[], float], key_sets: KeySets) -> None:
        self._connection = connection
        self._clock = clock
        self._key_sets = key_sets

    async def fetch(self, contacts: Sequence[Contact], suite: CipherSuite) -> tuple[KeyPackageResult, ...]:
        """Return one result for each contact, in order; send each provider one sealed request for every 64 contacts.

        Contacts of the same user share a sealed request if possible: only within one sealed request does the gateway
        answer with KeyPackages of different devices. Raises `KeysRefused` if a provider's keys are not authentic, and
        its subclass `KeysDiffer` if the provider showed other keys for the same time. In both cases no request is sent
        to that provider.
        """
        by_provider: defaultdict[ProviderId, list[int]] = defaultdict(list)
        for index, contact in enumerate(contacts):
            by_provider[contact.provider].append(index)
        results: dict[int, KeyPackageResult] = {}
        for indices in by_provider.values():
            for bundle in _bundles(indices, contacts):
                found = await self._fetch_from_one([contacts[index] for index in bundle], suite)
                if len(found) != len(bundle):
                    raise ValueError(f"the gateway sent {len(found)} results for {len(bundle)} requests")
                results |= dict(zip(bundle, found, strict=True))
        return tuple(results[index] for index in range(len(contacts)))

    async def _fetch_from_one(self, contacts: Sequence[Contact], suite: CipherSuite) -> tuple[KeyPackageResult, ...]:
        """Ask one provider; retry once if it no longer has the key, and once if our clock is wrong.

        The retries use the newest key (RFC 9458 section 5.3) and the gateway's time (RFC 9458 section 6.5.2).
        """
        contact = contacts[0]
        requests = [KeyPackageRequest(each.user_id, each.bearer_token, MLS10, suite) for each in contacts]
        now = int(self._clock())
        config = await self._key_config(contact, now)
        renewed = corrected = False
        while True:
            date = blurred(now, secrets.randbelow(DATE_SHIFTS))
            sealed = seal(config, contact.provider, requests, date_seconds=date, ephemeral=secrets.token_bytes(32))
            reply = await self._connection.exchange(
                "POST",
                f"providers/{contact.provider}/ohttp",
                sealed.message,
                media_type=_OHTTP_REQUEST,
                expected=_GATEWAY_STATUSES,
            )
            if reply.status != 200:
                problem = Problem.from_json(reply.status, reply.body)
                if renewed or problem.code != "ohttp-key":
                    raise problem
                config, renewed = await self._newest_key_config(contact, now), True
                continue
            try:
                return sealed.open(reply.body)
            except WrongDate as wrong:
                if corrected or wrong.seconds is None:
                    raise
                now, corrected = wrong.seconds, True

    async def _key_config(self, contact: Contact, now: int) -> KeyConfig:
        """Return a configuration to seal to, from the newest remembered set if this set is still valid."""
        return self._key_sets.config(contact, now) or await self._newest_key_config(contact, now)

    async def _newest_key_config(self, contact: Contact, now: int) -> KeyConfig:
        return self._key_sets.add(contact, await self.key_set(contact.provider), now)

    async def key_set(self, provider: ProviderId) -> SignedKeys:
        """Return the key set of a provider as our relay gives it now; its signature is not checked."""
        reply = await self._connection.exchange("GET", f"providers/{provider}/ohttp-keys")
        return SignedKeys(reply.body, reply.headers.get(HEADER, ""))

    async def compare_keys(self, contact: Contact, other: KeyPackageFetcher) -> bool:
        """Tell whether another relay gives the same key set; see `Device.compare_keys`."""
        now = int(self._clock())
        await self._key_config(contact, now)
        return self._key_sets.agrees(contact, await other.key_set(contact.provider), now)


def _bundles(indices: Sequence[int], contacts: Sequence[Contact]) -> list[list[int]]:
    """Split requests into bundles; the requests for one user share a bundle if they fit into one."""
    of_user: defaultdict[bytes, list[int]] = defaultdict(list)
    for index in indices:
        of_user[contacts[index].user_id].append(index)
    bundles: list[list[int]] = [[]]
    for own in of_user.values():
        for part in (own[at : at + _BUNDLE_REQUESTS] for at in range(0, len(own), _BUNDLE_REQUESTS)):
            if len(bundles[-1]) + len(part) > _BUNDLE_REQUESTS:
                bundles.append([])
            bundles[-1] += part
    return bundles
