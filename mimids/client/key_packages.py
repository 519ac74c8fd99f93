"""Fetching KeyPackages of other users over OHTTP, and what a device knows of its own stock."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from mimids.client.connection import Connection, Problem
from mimids.client.contacts import Contact, SignedKeys
from mimids.client.ohttp import WrongDate, seal
from mimids.ohttp.config import KeyConfig
from mimids.ohttp.keys_signature import HEADER, KeysRefused
from mimids.wire.ids import MLS10, BearerToken, CipherSuite, ProviderId
from mimids.wire.messages import KeyPackageRequest, KeyPackageResult

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
    """The answer to an upload: how many were accepted, why the others (by index) were not, and the stock after it."""

    accepted: int
    refused: tuple[tuple[int, str], ...]
    stock: tuple[Stock, ...]


@attrs.frozen
class Token:
    """A bearer token for one's own KeyPackages; it is shown only once."""

    id: int
    bearer_token: BearerToken


class KeyPackageFetcher:
    """Fetches KeyPackages; caches the newest key configuration of each provider."""

    def __init__(self, connection: Connection, *, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock
        self._keys: dict[ProviderId, SignedKeys] = {}

    async def fetch(self, contacts: Sequence[Contact], suite: CipherSuite) -> tuple[KeyPackageResult, ...]:
        """Return one result for each contact, in order; send one sealed request to each provider.

        Raise `KeysRefused` if a provider's keys are not authentic: then that provider gets no request.
        """
        by_provider: defaultdict[ProviderId, list[int]] = defaultdict(list)
        for index, contact in enumerate(contacts):
            by_provider[contact.provider].append(index)
        results: dict[int, KeyPackageResult] = {}
        for indices in by_provider.values():
            found = await self._fetch_from_one([contacts[index] for index in indices], suite)
            if len(found) != len(indices):
                raise ValueError(f"the gateway sent {len(found)} results for {len(indices)} requests")
            results |= dict(zip(indices, found, strict=True))
        return tuple(results[index] for index in range(len(contacts)))

    async def _fetch_from_one(self, contacts: Sequence[Contact], suite: CipherSuite) -> tuple[KeyPackageResult, ...]:
        """Ask one provider; retry once if its key is gone, and once if our clock is wrong.

        The retries use the newest key (RFC 9458 section 5.3) and the gateway's time (RFC 9458 section 6.5.2).
        """
        contact = contacts[0]
        requests = [KeyPackageRequest(each.user_id, each.bearer_token, MLS10, suite) for each in contacts]
        now = int(self._clock())
        config = await self._key_config(contact, now)
        renewed = corrected = False
        while True:
            sealed = seal(config, contact.provider, requests, now_seconds=now, ephemeral=secrets.token_bytes(32))
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
        """Return a configuration to seal to: a cached one or the contact card's while valid, else the newest."""
        for keys in (self._keys.get(contact.provider), contact.keys):
            if keys is not None:
                try:
                    return contact.key_config(keys, now)
                except KeysRefused:
                    continue  # most likely expired
        return await self._newest_key_config(contact, now)

    async def _newest_key_config(self, contact: Contact, now: int) -> KeyConfig:
        reply = await self._connection.exchange("GET", f"providers/{contact.provider}/ohttp-keys")
        keys = SignedKeys(reply.body, reply.headers.get(HEADER, ""))
        config = contact.key_config(keys, now)
        self._keys[contact.provider] = keys
        return config
