"""The OHTTP gateway: it answers sealed requests for KeyPackages and nothing else (semantics: ohttp, RFC 9458).

A request is *opened* with a live key, *parsed* as `POST /key-packages` with a Date within the window, *answered* in one
transaction (replay, token, claim, answer), and the answer is *sealed*. An error before the request is opened is raised
and sent unsealed; every later error is sealed (RFC 9458 section 5.2). Only `Gateway.answer` decides whether an error is
sealed.

A request counts against the rate of its address before it is opened. Only after it was opened does it count against the
rate of all requesters, which protects the stock. So a request that cannot be opened counts only against the rate of its
sender's address.

A replay must not use up KeyPackages (RFC 9458 section 6.5). So an answer with a KeyPackage is stored in the transaction
of the claim (`replays`). The same request gets the same octets again until its Date has left the window. After that,
the request is refused because of its Date. An encapsulated key may be used only by the first request that used it.
Copies of a request that is being answered wait for its answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Final

import attrs
import trio

from mimids.ds.key_packages.claims import ClaimablePackages, ClaimedPackages, Claims
from mimids.ds.key_packages.gateway_messages import AnswerSealer, ParsedRequest, parse
from mimids.ds.key_packages.replays import SHARE_LIMIT, AnswerToKeep, ReplayBounds, ReplayStore
from mimids.ds.key_packages.steps import Steps
from mimids.ds.limits.rates import ConfiguredRate, Rate, Rates
from mimids.ds.ports import Clock, Reserve, no_reserve
from mimids.errors import Busy, MimiError, OhttpDate, OhttpReplayed, RateLimited
from mimids.ohttp.gateway import open_request, read_request
from mimids.ohttp.hpke import PrivateKey
from mimids.store import ohttp
from mimids.store.engine.locks import user_lock
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx, WorkTogether
from mimids.store.ohttp import Answered
from mimids.values import Milliseconds
from mimids.wire.codec import WireError

PADDING: Final = 2  # a padded answer is at most so many times as long as the unpadded one
NO_RATE: Final = Rate("none", 0, 0)


@attrs.frozen(kw_only=True)
class GatewayBounds:
    """The limits of the gateway."""

    step_seconds: float = 0.05  # answers leave at multiples of this, by the server's clock; 0: at once
    window_seconds: int = 300  # how far a Date may be from our time, in either direction
    replay_rows: int = 100_000
    bundle_requests: int = 64
    package_octets: int = 65_536
    rate: Rate | ConfiguredRate  # for all requesters together: the requester is not known
    address_rate: Rate | ConfiguredRate = NO_RATE  # for each IP address


@attrs.define(eq=False)
class _Pending:
    """A request that is being answered; copies of it wait for `done`."""

    done: trio.Event = attrs.field(factory=trio.Event)
    answer: bytes | None = None


@attrs.frozen
class _Answer:
    """The sealed answer that a transaction made: what it claimed, or whether it repeats an earlier answer."""

    sealed: bytes
    claimed: ClaimedPackages | None = None
    is_repeat: bool = False


@attrs.frozen
class GatewayStatistics:
    """The counts of the gateway; they do not distinguish requesters."""

    in_flight: int
    answered: int  # requests with a sealed answer, including refusals
    repeated: int  # sealed answers to copies and replays


class Gateway:
    """Answers `message/ohttp-req` for the KeyPackages of this provider."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        keys: Callable[[], Mapping[int, PrivateKey]],
        look_for_keys: Callable[[], Awaitable[None]],
        stock: ClaimablePackages,
        problem: Callable[[MimiError], bytes],
        bounds: GatewayBounds,
        on_bound: Callable[[str], None] = lambda bound: None,
    ) -> None:
        """Make a gateway.

        `keys` returns the live keys by identifier, and `look_for_keys` is called if a request names another one.
        `problem` returns the JSON of a problem document (RFC 9457). `on_bound` is called with the name of a bound that
        a requester reached.
        """
        self._store = store
        self._clock = clock
        self._keys = keys
        self._look_for_keys = look_for_keys
        self._stock = stock
        self._problem = problem
        self._bounds = bounds
        self._rates = Rates(bounds.rate)
        self._address_rates = Rates(bounds.address_rate)
        self._on_bound = on_bound
        self._steps = Steps(bounds.step_seconds)
        self._replays = ReplayStore(ReplayBounds(bounds.replay_rows, 2 * bounds.window_seconds))
        self._pending: dict[bytes, _Pending] = {}
        self._answered = self._repeated = 0

    @property
    def shared_rates(self) -> tuple[Rates, ...]:
        """Return the rates that say nothing of who asks: of all requests together, and of stored answers."""
        return (self._rates, *self._replays.rates)

    def change_bounds(self, bounds: GatewayBounds) -> None:
        """Use another limit on the size of KeyPackages from now on; the rates read the configuration themselves."""
        self._bounds = bounds

    async def answer(self, message: bytes, address: str | None = None, *, reserve: Reserve = no_reserve) -> bytes:
        """Return the `message/ohttp-res` for this `message/ohttp-req`, refusals included.

        `address` is the IP address that the message came from, or None if our own relay passes it on. `reserve` is
        called before KeyPackages are claimed, because an answer that is not sent would lose them. Raises only
        errors that occur before the request is opened: `RateLimited` for the address, and what `open_request` raises.
        """
        if address is not None:
            self._take(self._address_rates, "gateway-address-rate", network_of(address))
        while (pending := self._pending.get(message)) is not None:
            await pending.done.wait()
            if pending.answer is not None:  # if None, the other request was cancelled or could not be opened
                self._answered += 1
                self._repeated += 1
                return pending.answer
        pending = self._pending[message] = _Pending()
        try:
            keys = self._keys()
            if message and message[0] not in keys:
                await self._look_for_keys()
                keys = self._keys()
            sealer = AnswerSealer(lambda: open_request(message, keys), self._problem)
            pending.answer = await self._serve(sealer, reserve)
            self._answered += 1
        finally:
            del self._pending[message]
            pending.done.set()
        return pending.answer

    def statistics(self) -> GatewayStatistics:
        """Return the counts so far."""
        return GatewayStatistics(len(self._pending), self._answered, self._repeated)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit the claims and send the answers of each step, until cancelled."""
        await self._steps.run(self._store, task_status=task_status)

    async def _serve(self, sealer: AnswerSealer, reserve: Reserve) -> bytes:
        """Return the sealed answer at the end of a step; a refusal too, so that its time does not show it."""
        try:
            request = self._admit(sealer)
            await reserve(PADDING * len(request.requests) * self._bounds.package_octets)
        except (MimiError, WireError) as error:
            refusal = sealer.refusal(error, self._clock.now())
            await self._steps.wait()
            return refusal
        locks = frozenset(user_lock(each.user_id) for each in request.requests)
        try:
            answer = await self._steps.commit(
                self._store,
                WorkTogether(self._claim_all, (sealer, request)),
                locks,
                ahead=lambda tx: self._look_ahead(tx, sealer, request),
            )
        except MimiError as error:  # of the store
            return sealer.refusal(error, self._clock.now())
        if answer.claimed is None:
            self._repeated += answer.is_repeat
            return answer.sealed
        self._stock.announce(answer.claimed)
        if any(each.refusal and each.refusal.members.get("limit") == SHARE_LIMIT for each in answer.claimed.outcomes):
            self._on_bound("replay-share")
        return answer.sealed

    def _admit(self, sealer: AnswerSealer) -> ParsedRequest:
        """Return the requests for KeyPackages, if the Date and the rate of all requesters allow them."""
        request = parse(read_request(sealer.opened), most_requests=self._bounds.bundle_requests)
        sealer.results = len(request.requests)
        if not self._in_window(request, self._clock.now()):
            raise OhttpDate
        self._take(self._rates, "gateway-rate", None, len(request.requests))
        return request

    def _in_window(self, request: ParsedRequest, now: Milliseconds) -> bool:
        return abs(now - request.date) <= self._bounds.window_seconds * 1000

    def _look_ahead(self, tx: Tx, sealer: AnswerSealer, request: ParsedRequest) -> None:
        """Read the rows that `_claim` will need."""
        ohttp.answered(tx, sealer.opened.enc)
        self._stock.look_ahead(tx, request.requests)

    def _claim_all(self, tx: Tx, asked: Sequence[tuple[AnswerSealer, ParsedRequest]]) -> list[_Answer]:
        """Claim KeyPackages for all requests that are answered in one transaction, and store their answers."""
        # Take the time now: while a request waited in the queue, a stored answer to it may have been deleted.
        now = self._clock.now()
        self._replays.make_room(tx, now, answers=len(asked))
        earlier = [ohttp.answered(tx, sealer.opened.enc) for sealer, _ in asked]
        claims, kept = self._stock.begin_claims(tx, now, requests=len(asked)), dict[bytes, AnswerToKeep]()
        answers = [
            self._claim(tx, sealer, request, found, now, claims, kept)
            for (sealer, request), found in zip(asked, earlier, strict=True)
        ]
        claims.write()
        self._replays.keep(tx, tuple(kept.values()))
        return answers

    def _claim(
        self,
        tx: Tx,
        sealer: AnswerSealer,
        request: ParsedRequest,
        earlier: Answered | None,
        now: Milliseconds,
        claims: Claims,
        kept: dict[bytes, AnswerToKeep],
    ) -> _Answer:
        """Claim KeyPackages, or return the stored answer to a replay, or a refusal.

        An answer that has to be stored is added to `kept`. If nothing is handed out, random octets are stored in its
        place, as many as the sealed answer has. Without this write, a refusal would not wait for the disk, and its
        speed would show that it is a refusal.
        """
        opened = sealer.opened
        if earlier is not None and earlier.digest == opened.digest:
            return self._again(tx, sealer, request, earlier)
        is_used = earlier is not None or opened.enc in kept
        if (refusal := self._refusal(request, now, is_used=is_used, kept=len(kept))) is not None:
            return _Answer(sealer.refusal(refusal, now))
        claimed = claims.claim(request.requests, self._replays.count)
        content = request.content(claimed.outcomes)
        sealed = sealer.refusal(content, now) if isinstance(content, MimiError) else sealer.ok(content, now)
        if not claimed.consumed:
            ohttp.put_noise(tx, secrets.token_bytes(len(sealed)))
            return _Answer(sealed, claimed)
        keep_until = Milliseconds(request.date + self._bounds.window_seconds * 1000)
        answered, nonce = Answered(opened.digest, sealed), sealer.nonce_of(sealed)
        kept[opened.enc] = AnswerToKeep(opened.enc, answered, claimed.outcomes, nonce, now, keep_until)
        return _Answer(sealed, claimed)

    def _refusal(self, request: ParsedRequest, now: Milliseconds, *, is_used: bool, kept: int) -> MimiError | None:
        """Return why a request must be refused.

        `is_used` tells whether its encapsulated key was used before, `kept` how many answers are still to be stored.
        """
        if is_used:
            return OhttpReplayed()
        if not self._in_window(request, now):
            return OhttpDate()
        if not self._replays.has_room(beside=kept):
            return Busy("the gateway is full of kept answers; try again later", retry_after=self._bounds.window_seconds)
        return None

    def _again(self, tx: Tx, sealer: AnswerSealer, request: ParsedRequest, earlier: Answered) -> _Answer:
        """Return the octets of an earlier answer, or another answer if one of its KeyPackages is no longer kept."""
        again, now = earlier.response, self._clock.now()
        if isinstance(again, bytes):
            return _Answer(again, is_repeat=True)
        outcomes = self._replays.outcomes(tx, again)
        content = request.content(outcomes)
        if isinstance(content, MimiError):
            return _Answer(sealer.refusal(content, now))
        if any(outcome.refusal is not None for outcome in outcomes):
            return _Answer(sealer.ok(content, now))  # other octets must not be sealed with the nonce of the first
        return _Answer(sealer.ok(content, again.sealed_at, again.nonce), is_repeat=True)

    def _take(self, rates: Rates, bound: str, key: str | None, count: int = 1) -> None:
        """Count against a rate; report the bound and raise `RateLimited` if it is used up."""
        try:
            rates.take(key, self._clock.now(), count)
        except RateLimited:
            self._on_bound(bound)
            raise


@lru_cache(maxsize=1024)  # a relay sends all its requests from few addresses
def network_of(address: str) -> str:
    """Return the network that counts as one requester: an IPv4 address, or the first 64 bits of an IPv6 address."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 4:
        return str(ip)
    return str(ip.ipv4_mapped or ip_network((ip, 64), strict=False))
