"""The OHTTP relay: it passes our devices' sealed requests on to other providers' gateways (semantics: ohttp).

The device names the provider. That provider gets the sealed octets and nothing that identifies the device or tells two
devices apart: the relay passes on no header of the device, uses one connection pool for all devices, and sends no
client certificate. Only the arguments of these functions contain both the device and the provider that it asks. Counts
are for a device or for a target, never for both. Nothing is stored or logged.

The relay MUST NOT retry a request by itself (RFC 9458 section 6.5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import attrs
import trio

from mimids.ds.key_packages.batches import wait_for_batch
from mimids.ds.key_packages.gateway_keys import KeysAnswer
from mimids.ds.limits.new_providers import NewProviders
from mimids.ds.limits.rates import ConfiguredRate, Rate, Rates
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.ports import Clock, Peers, RelayedAnswer, Reserve, no_reserve
from mimids.errors import Busy, PeerFailed, PeerUnavailable, ProviderNotAllowed, TooLarge
from mimids.ohttp.config import KEYS_LIMIT, KEYS_TYPE
from mimids.ohttp.encapsulation import REQUEST_TYPE, RESPONSE_TYPE
from mimids.ohttp.keys_signature import is_signed
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.ids import ProviderId

GATEWAY_PATH: Final = "/.well-known/ohttp-gateway"  # RFC 9540
PROBLEM_JSON: Final = "application/problem+json"
PROVIDERS_CACHED: Final = 10_000
KEYS_CACHED_OCTETS: Final = 8 << 20
ENTRY_OCTETS: Final = 512  # of an entry of the cache, besides its key configurations and their signature
RESERVED_OCTETS: Final = 32_768  # for an answer; most are much shorter
MAX_AGE_SECONDS: Final = 86_400  # keys are fetched again within a day, whatever max-age the gateway gives
KEPT_SECONDS: Final = 3600  # signed keys are not fetched again within an hour: see `Relay.ohttp_keys`
KEPT_AFTER_PROBLEM_SECONDS: Final = 600  # instead, after a gateway has said that it does not know a key
KEY_PROBLEM_STATUSES: Final = frozenset({400, 422})


@attrs.frozen(kw_only=True)
class RelayBounds:
    """The limits of the relay."""

    octets: int = 1_048_576  # the limit for a request, and for an answer
    seconds: float = 30  # for one exchange
    at_once: int = 256  # exchanges, for all devices together
    at_once_of_device: int = 16  # exchanges of one device, so that no device takes them all
    batch_seconds: float = 0  # the length of a batch of requests, and of a batch of answers; 0: no batches
    fetches: Rate | ConfiguredRate  # for each device


class GatewayAnswer(Protocol):
    """The type of the method `Gateway.answer`, for requests to our own gateway."""

    async def __call__(self, message: bytes, /, *, reserve: Reserve) -> bytes:
        """Return the sealed answer."""
        ...


@attrs.frozen(kw_only=True)
class OwnGateway:
    """This provider's gateway, called without a network when a device fetches from a user of its own provider."""

    provider: ProviderId
    answer: GatewayAnswer
    keys: Callable[[], KeysAnswer]


@attrs.frozen
class _CachedKeys:
    keys: KeysAnswer
    fetched_at: Milliseconds
    fresh_until: Milliseconds

    @property
    def octets(self) -> int:
        """Return roughly how many octets of memory this takes."""
        return len(self.keys.body) + len(self.keys.signature) + ENTRY_OCTETS


@attrs.frozen
class RelayStatistics:
    """The counts of the relay, for all devices and all targets together."""

    at_once: int
    cached_keys: int


class Relay:
    """Passes requests on to the gateways of providers for which `allowed` is true."""

    def __init__(
        self,
        peers: Peers,
        clock: Clock,
        own: OwnGateway,
        allowed: Callable[[ProviderId], bool],
        bounds: RelayBounds,
        new_providers: NewProviders,
    ) -> None:
        self._peers = peers
        self._clock = clock
        self._own = own
        self._allowed = allowed
        self._bounds = bounds
        self._fetches = Rates(bounds.fetches)
        self._new_providers = new_providers
        self._keys: LeastRecentlyUsed[ProviderId, _CachedKeys] = LeastRecentlyUsed(PROVIDERS_CACHED + 1)
        self._keys_octets = 0  # of all cached keys
        self._at_once: Counter[DeviceRow] = Counter()

    def change_bounds(self, bounds: RelayBounds) -> None:
        """Use other limits on size and time from now on; the rate reads the configuration itself."""
        self._bounds = bounds

    async def forward(
        self, device: DeviceRow, provider: ProviderId, message: bytes, *, reserve: Reserve = no_reserve
    ) -> RelayedAnswer:
        """Return the answer of that provider's gateway to a sealed request.

        `reserve` is called for RESERVED_OCTETS before the request is sent: an answer for which there is no room would
        lose the KeyPackages that the gateway has handed out. For a longer answer `reserve` is called again.

        Raises `ProviderNotAllowed`, `TooLarge`, `RateLimited`, `Busy`, `PeerUnavailable`, `PeerFailed` (the answer is
        not a gateway's, or too large), and what our own gateway raises.
        """
        self._admit(device, provider)
        if len(message) > self._bounds.octets:
            raise TooLarge("ohttp_bytes", len(message))
        await wait_for_batch(self._bounds.batch_seconds)
        try:
            return await self._forward(device, provider, message, reserve)
        finally:
            await wait_for_batch(self._bounds.batch_seconds)

    async def _forward(
        self, device: DeviceRow, provider: ProviderId, message: bytes, reserve: Reserve
    ) -> RelayedAnswer:
        if provider == self._own.provider:
            sealed = await self._own.answer(message, reserve=reserve)
            return RelayedAnswer(status=200, media_type=RESPONSE_TYPE, body=sealed)
        await reserve(RESERVED_OCTETS)
        answer = await self._exchange(device, provider, "POST", message, REQUEST_TYPE)
        if len(answer.body) > RESERVED_OCTETS:
            await reserve(len(answer.body) - RESERVED_OCTETS)
        is_sealed = answer.status == 200 and answer.media_type == RESPONSE_TYPE
        if not is_sealed and not (400 <= answer.status <= 599 and answer.media_type == PROBLEM_JSON):
            raise PeerUnavailable if answer.status >= 500 else PeerFailed("the answer is not that of an OHTTP gateway")
        if answer.status in KEY_PROBLEM_STATUSES:
            self._fetch_keys_soon(provider)  # the gateway may have rotated its keys early
        return attrs.evolve(answer, retry_after="") if is_sealed else answer

    async def ohttp_keys(self, device: DeviceRow, provider: ProviderId) -> KeysAnswer:
        """Return a provider's key configurations and their signature, unchanged; `max_age` is the time left.

        All devices get the same keys; signed keys are kept for KEPT_SECONDS at least. So the gateway cannot tell
        devices apart by the key that they use (RFC 9458 section 7). The relay does not check the signature. The client
        checks it, and uses no unsigned keys. Raises what `forward` raises.
        """
        self._admit(device, provider)
        if provider == self._own.provider:
            return self._own.keys()
        if (cached := self._cached_keys(provider)) is not None:
            return cached
        answer = await self._exchange(device, provider, "GET", b"", KEYS_TYPE)
        if answer.status != 200 or answer.media_type != KEYS_TYPE or len(answer.body) > KEYS_LIMIT:
            raise PeerFailed("the answer has no OHTTP key configurations")
        if (cached := self._cached_keys(provider)) is not None:  # another device has fetched them meanwhile
            return cached
        now, seconds = self._clock.now(), min(answer.max_age_seconds, MAX_AGE_SECONDS)
        if is_signed(answer.keys_signature):
            seconds = max(seconds, KEPT_SECONDS)
        keys = KeysAnswer(answer.body, answer.keys_signature, seconds)
        if seconds:
            self._cache_keys(provider, _CachedKeys(keys, now, Milliseconds(now + seconds * 1000)))
        return keys

    def _cached_keys(self, provider: ProviderId) -> KeysAnswer | None:
        cached, now = self._keys.get(provider), self._clock.now()
        if cached is None or not cached.fetched_at <= now < cached.fresh_until:
            return None
        return attrs.evolve(cached.keys, max_age=(cached.fresh_until - now) // 1000)

    def _fetch_keys_soon(self, provider: ProviderId) -> None:
        cached = self._keys.get(provider)
        if cached is not None:
            kept = KEPT_AFTER_PROBLEM_SECONDS if is_signed(cached.keys.signature) else 0
            fresh_until = min(cached.fresh_until, Milliseconds(cached.fetched_at + kept * 1000))
            self._keys.put(provider, attrs.evolve(cached, fresh_until=fresh_until))

    def _cache_keys(self, provider: ProviderId, cached: _CachedKeys) -> None:
        """Cache a provider's keys; evict the least recently used ones until the cache is within its bound of octets."""
        self._forget_keys(provider)
        self._keys.put(provider, cached)
        self._keys_octets += cached.octets
        while self._keys_octets > KEYS_CACHED_OCTETS or len(self._keys) > PROVIDERS_CACHED:
            self._keys_octets -= self._keys.pop_oldest()[1].octets

    def _forget_keys(self, provider: ProviderId) -> None:
        cached = self._keys.pop(provider)
        if cached is not None:
            self._keys_octets -= cached.octets

    def statistics(self) -> RelayStatistics:
        """Return the current counts."""
        return RelayStatistics(self._at_once.total(), len(self._keys))

    def _admit(self, device: DeviceRow, provider: ProviderId) -> None:
        now = self._clock.now()
        self._fetches.take(device, now)
        if provider == self._own.provider:
            return
        if not self._allowed(provider):
            raise ProviderNotAllowed
        self._new_providers.take(device, [provider])

    async def _exchange(
        self, device: DeviceRow, provider: ProviderId, method: str, body: bytes, media_type: str
    ) -> RelayedAnswer:
        with self._exchange_slot(device):
            try:
                with trio.fail_after(self._bounds.seconds):
                    answer = await self._peers.call_plainly(provider, method, GATEWAY_PATH, body, media_type=media_type)
            except trio.TooSlowError as error:
                raise PeerUnavailable from error
        if len(answer.body) > self._bounds.octets:
            raise PeerFailed("the answer is too large")
        return answer

    @contextmanager
    def _exchange_slot(self, device: DeviceRow) -> Iterator[None]:
        all_full = self._at_once.total() >= self._bounds.at_once
        if all_full or self._at_once[device] >= self._bounds.at_once_of_device:
            raise Busy("too many requests are being relayed; try again")
        self._at_once[device] += 1
        try:
            yield
        finally:
            self._at_once[device] -= 1
            if not self._at_once[device]:
                del self._at_once[device]
