"""The OHTTP relay: our own devices' sealed requests, passed on to other providers' gateways (semantics: ohttp).

A device says which provider; that provider gets the sealed bytes and nothing that names or tells apart the device:
no header of its, one connection pool for all, no certificate. Device and target meet in this function's arguments and
nowhere else: what is counted is counted for one or the other, and nothing is written or logged.

Nothing is repeated: a relay MUST NOT retry by itself (RFC 9458 section 6.5).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import attrs
import trio

from mimids.ds.key_packages.gateway_keys import KeysAnswer
from mimids.ds.limits.rates import Rate, Rates
from mimids.ds.ports import Clock, Peers, RelayedAnswer
from mimids.errors import Busy, PeerFailed, PeerUnavailable, ProviderNotAllowed, TooLarge
from mimids.ohttp.config import KEYS_LIMIT, KEYS_TYPE
from mimids.ohttp.encapsulation import REQUEST_TYPE, RESPONSE_TYPE
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.ids import ProviderId

T = TypeVar("T")

GATEWAY_PATH: Final = "/.well-known/ohttp-gateway"  # RFC 9540
PROBLEM_JSON: Final = "application/problem+json"
PROVIDERS_REMEMBERED: Final = 10_000
MAX_AGE_SECONDS: Final = 86_400  # whatever a gateway says, its keys are fetched again within a day
KEY_PROBLEM_STATUSES: Final = frozenset({400, 422})


@attrs.frozen(kw_only=True)
class RelayBounds:
    """What the relay takes; sizes in octets."""

    octets: int = 1_048_576
    seconds: float = 30
    at_once: int = 256  # exchanges, for all devices together
    fetches: Rate  # for each device, and so the next one
    new_providers: Rate  # that nobody here dealt with before


@attrs.frozen(kw_only=True)
class Local:
    """Our own gateway: reached without a network, for users who fetch from each other here."""

    provider: ProviderId
    answer: Callable[[bytes], Awaitable[bytes]]
    keys: Callable[[], KeysAnswer]


@attrs.frozen
class _Cached:
    keys: KeysAnswer
    fresh_until: Milliseconds


@attrs.frozen
class RelayStatistics:
    """What the relay is at, for all devices and all targets together."""

    at_once: int
    cached_keys: int


class Relay:
    """Passes requests on; `allowed` says whether a provider is dealt with at all."""

    def __init__(
        self, peers: Peers, clock: Clock, local: Local, allowed: Callable[[ProviderId], bool], bounds: RelayBounds
    ) -> None:
        self._peers = peers
        self._clock = clock
        self._local = local
        self._allowed = allowed
        self._bounds = bounds
        self._fetches = Rates(bounds.fetches)
        self._new_providers = Rates(bounds.new_providers)
        self._contacted: OrderedDict[ProviderId, None] = OrderedDict()
        self._keys: OrderedDict[ProviderId, _Cached] = OrderedDict()
        self._at_once = 0

    async def forward(self, device: DeviceRow, provider: ProviderId, message: bytes) -> RelayedAnswer:
        """Return the answer of that provider's gateway to a sealed request.

        Raises `ProviderNotAllowed`, `TooLarge`, `RateLimited`, `Busy`, `PeerUnavailable`, `PeerFailed` (an answer that
        is none of a gateway, or too large), and for our own gateway what that raises.
        """
        self._admit(device, provider)
        if len(message) > self._bounds.octets:
            raise TooLarge("ohttp_bytes", len(message))
        if provider == self._local.provider:
            sealed = await self._local.answer(message)
            return RelayedAnswer(status=200, media_type=RESPONSE_TYPE, body=sealed)
        answer = await self._exchange(provider, "POST", message, REQUEST_TYPE)
        is_sealed = answer.status == 200 and answer.media_type == RESPONSE_TYPE
        if not is_sealed and not (400 <= answer.status <= 599 and answer.media_type == PROBLEM_JSON):
            raise PeerUnavailable if answer.status >= 500 else PeerFailed("not the answer of a gateway")
        if answer.status in KEY_PROBLEM_STATUSES:
            self._keys.pop(provider, None)  # it may have rotated early: whoever asks now gets its newest
        return attrs.evolve(answer, retry_after="") if is_sealed else answer

    async def ohttp_keys(self, device: DeviceRow, provider: ProviderId) -> KeysAnswer:
        """Return a provider's key configurations with their signature, as it gave them; `max_age` is what is left.

        Whether they are authentic is for the client to check: that is what the signature is there for. Raises as
        `forward` does.
        """
        self._admit(device, provider)
        if provider == self._local.provider:
            return self._local.keys()
        now = self._clock.now()
        cached = self._keys.get(provider)
        if cached is not None and now < cached.fresh_until:
            return attrs.evolve(cached.keys, max_age=(cached.fresh_until - now) // 1000)
        answer = await self._exchange(provider, "GET", b"", KEYS_TYPE)
        if answer.status != 200 or answer.media_type != KEYS_TYPE or len(answer.body) > KEYS_LIMIT:
            raise PeerFailed("no key configurations")
        keys = KeysAnswer(answer.body, answer.keys_signature, min(answer.max_age_seconds, MAX_AGE_SECONDS))
        if keys.max_age:
            _remember(self._keys, provider, _Cached(keys, Milliseconds(now + keys.max_age * 1000)))
        return keys

    @property
    def rates(self) -> tuple[Rates, ...]:
        """Return what is counted for each device, to be kept."""
        return (self._fetches, self._new_providers)

    def statistics(self) -> RelayStatistics:
        """Return the counts of now."""
        return RelayStatistics(self._at_once, len(self._keys))

    def _admit(self, device: DeviceRow, provider: ProviderId) -> None:
        now = self._clock.now()
        self._fetches.take(device, now)
        if provider == self._local.provider:
            return
        if not self._allowed(provider):
            raise ProviderNotAllowed
        if provider not in self._contacted:
            self._new_providers.take(device, now)
        _remember(self._contacted, provider, None)

    async def _exchange(self, provider: ProviderId, method: str, body: bytes, media_type: str) -> RelayedAnswer:
        with self._room():
            try:
                with trio.fail_after(self._bounds.seconds):
                    answer = await self._peers.call_plainly(provider, method, GATEWAY_PATH, body, media_type=media_type)
            except trio.TooSlowError as error:
                raise PeerUnavailable from error
        if len(answer.body) > self._bounds.octets:
            raise PeerFailed("its answer is too large")
        return answer

    @contextmanager
    def _room(self) -> Iterator[None]:
        if self._at_once >= self._bounds.at_once:
            raise Busy("too many requests are being relayed")
        self._at_once += 1
        try:
            yield
        finally:
            self._at_once -= 1


def _remember(table: OrderedDict[ProviderId, T], provider: ProviderId, value: T) -> None:
    table[provider] = value
    table.move_to_end(provider)
    if len(table) > PROVIDERS_REMEMBERED:
        table.popitem(last=False)
