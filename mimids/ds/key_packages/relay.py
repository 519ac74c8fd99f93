"""The OHTTP relay: it passes our devices' sealed requests on to other providers' gateways (semantics: ohttp).

The device names the provider. That provider gets the sealed octets and nothing that identifies the device or tells two
devices apart: none of the device's headers, one connection pool for all, no client certificate. Only the arguments of
these functions hold a device and its target together: each count is for one or for the other, and nothing is stored
or logged.

The relay MUST NOT retry a request by itself (RFC 9458 section 6.5).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import attrs
import trio

from mimids.ds.key_packages.gateway_keys import KeysAnswer
from mimids.ds.limits.rates import Rate, Rates
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.ports import Clock, Peers, RelayedAnswer
from mimids.errors import Busy, PeerFailed, PeerUnavailable, ProviderNotAllowed, TooLarge
from mimids.ohttp.config import KEYS_LIMIT, KEYS_TYPE
from mimids.ohttp.encapsulation import REQUEST_TYPE, RESPONSE_TYPE
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.ids import ProviderId

GATEWAY_PATH: Final = "/.well-known/ohttp-gateway"  # RFC 9540
PROBLEM_JSON: Final = "application/problem+json"
PROVIDERS_CACHED: Final = 10_000
MAX_AGE_SECONDS: Final = 86_400  # keys are fetched again within a day, whatever max-age the gateway gives
KEY_PROBLEM_STATUSES: Final = frozenset({400, 422})


@attrs.frozen(kw_only=True)
class RelayBounds:
    """The limits of the relay."""

    octets: int = 1_048_576  # of a request, and of an answer
    seconds: float = 30  # for one exchange
    at_once: int = 256  # exchanges, for all devices together
    fetches: Rate  # for each device
    new_providers: Rate  # for each device: providers that no device here has fetched from


@attrs.frozen(kw_only=True)
class OwnGateway:
    """This provider's gateway, called without a network when a device fetches from a user of its own provider."""

    provider: ProviderId
    answer: Callable[[bytes], Awaitable[bytes]]
    keys: Callable[[], KeysAnswer]


@attrs.frozen
class _CachedKeys:
    keys: KeysAnswer
    fresh_until: Milliseconds


@attrs.frozen
class RelayStatistics:
    """The counts of the relay, for all devices and all targets together."""

    at_once: int
    cached_keys: int


class Relay:
    """Passes requests on to the gateways of providers for which `allowed` is true."""

    def __init__(
        self, peers: Peers, clock: Clock, own: OwnGateway, allowed: Callable[[ProviderId], bool], bounds: RelayBounds
    ) -> None:
        self._peers = peers
        self._clock = clock
        self._own = own
        self._allowed = allowed
        self._bounds = bounds
        self._fetches = Rates(bounds.fetches)
        self._new_providers = Rates(bounds.new_providers)
        self._contacted: LeastRecentlyUsed[ProviderId, None] = LeastRecentlyUsed(PROVIDERS_CACHED)
        self._keys: LeastRecentlyUsed[ProviderId, _CachedKeys] = LeastRecentlyUsed(PROVIDERS_CACHED)
        self._at_once = 0

    async def forward(self, device: DeviceRow, provider: ProviderId, message: bytes) -> RelayedAnswer:
        """Return the answer of that provider's gateway to a sealed request.

        Raises `ProviderNotAllowed`, `TooLarge`, `RateLimited`, `Busy`, `PeerUnavailable`, `PeerFailed` (the answer is
        not a gateway's, or too large), and what our own gateway raises.
        """
        self._admit(device, provider)
        if len(message) > self._bounds.octets:
            raise TooLarge("ohttp_bytes", len(message))
        if provider == self._own.provider:
            sealed = await self._own.answer(message)
            return RelayedAnswer(status=200, media_type=RESPONSE_TYPE, body=sealed)
        answer = await self._exchange(provider, "POST", message, REQUEST_TYPE)
        is_sealed = answer.status == 200 and answer.media_type == RESPONSE_TYPE
        if not is_sealed and not (400 <= answer.status <= 599 and answer.media_type == PROBLEM_JSON):
            raise PeerUnavailable if answer.status >= 500 else PeerFailed("its answer is not that of an OHTTP gateway")
        if answer.status in KEY_PROBLEM_STATUSES:
            self._keys.pop(provider)  # it may have rotated early: fetch its keys again next time
        return attrs.evolve(answer, retry_after="") if is_sealed else answer

    async def ohttp_keys(self, device: DeviceRow, provider: ProviderId) -> KeysAnswer:
        """Return a provider's key configurations and their signature, unchanged; `max_age` is the time that is left.

        The relay does not check the signature: the client does. Raises what `forward` raises.
        """
        self._admit(device, provider)
        if provider == self._own.provider:
            return self._own.keys()
        now = self._clock.now()
        cached = self._keys.get(provider)
        if cached is not None and now < cached.fresh_until:
            return attrs.evolve(cached.keys, max_age=(cached.fresh_until - now) // 1000)
        answer = await self._exchange(provider, "GET", b"", KEYS_TYPE)
        if answer.status != 200 or answer.media_type != KEYS_TYPE or len(answer.body) > KEYS_LIMIT:
            raise PeerFailed("its answer has no OHTTP key configurations")
        keys = KeysAnswer(answer.body, answer.keys_signature, min(answer.max_age_seconds, MAX_AGE_SECONDS))
        if keys.max_age:
            self._keys.put(provider, _CachedKeys(keys, Milliseconds(now + keys.max_age * 1000)))
        return keys

    @property
    def rates(self) -> tuple[Rates, ...]:
        """Return the rates of each device, to be saved across restarts."""
        return (self._fetches, self._new_providers)

    def statistics(self) -> RelayStatistics:
        """Return the current counts."""
        return RelayStatistics(self._at_once, len(self._keys))

    def _admit(self, device: DeviceRow, provider: ProviderId) -> None:
        now = self._clock.now()
        self._fetches.take(device, now)
        if provider == self._own.provider:
            return
        if not self._allowed(provider):
            raise ProviderNotAllowed
        if provider not in self._contacted:
            self._new_providers.take(device, now)
        self._contacted.put(provider, None)

    async def _exchange(self, provider: ProviderId, method: str, body: bytes, media_type: str) -> RelayedAnswer:
        with self._exchange_slot():
            try:
                with trio.fail_after(self._bounds.seconds):
                    answer = await self._peers.call_plainly(provider, method, GATEWAY_PATH, body, media_type=media_type)
            except trio.TooSlowError as error:
                raise PeerUnavailable from error
        if len(answer.body) > self._bounds.octets:
            raise PeerFailed("its answer is too large")
        return answer

    @contextmanager
    def _exchange_slot(self) -> Iterator[None]:
        if self._at_once >= self._bounds.at_once:
            raise Busy("too many requests are being relayed; try again")
        self._at_once += 1
        try:
            yield
        finally:
            self._at_once -= 1
