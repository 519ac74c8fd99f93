"""The OHTTP gateway: it answers sealed requests for KeyPackages and nothing else (semantics: ohttp, RFC 9458).

A request is *opened* with a live key, *parsed* as `POST /key-packages` with a Date within the window, *answered* in one
transaction (replay, token, claim, answer), and the answer is *sealed*. An error before the request is opened is raised
and sent unsealed; every later error is sealed (RFC 9458 section 5.2). `Gateway.answer` alone decides which.

A request counts against the rate of its address before it is opened. Only after it was opened does it count against the
rate of all requesters, which protects the stock. So a request that cannot be opened uses up no rate but that of its
sender's address.

A replay must not use up KeyPackages (RFC 9458 section 6.5). So an answer with a KeyPackage is stored in the transaction
of the claim (`replays`). The same request gets the same octets again until its Date has left the window; after that it
is refused because of its Date. An encapsulated key belongs to the first request that used it. Copies of a request that
is being answered wait for its answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Final

import attrs
import trio

from mimids.ds.key_packages.claims import ClaimablePackages, ClaimedPackages, ClaimOutcome
from mimids.ds.key_packages.replays import SHARE_LIMIT, ReplayBounds, ReplayStore
from mimids.ds.limits.rates import Rate, Rates
from mimids.ds.ports import Clock
from mimids.errors import (
    Busy,
    Malformed,
    MethodNotAllowed,
    MimiError,
    NotFound,
    OhttpDate,
    OhttpReplayed,
    RateLimited,
    TooMany,
    UnsupportedMediaType,
)
from mimids.ohttp import bhttp
from mimids.ohttp.date import read_date
from mimids.ohttp.gateway import OpenedRequest, open_request, read_request
from mimids.ohttp.hpke import PrivateKey
from mimids.ohttp.padding import pad_response
from mimids.store import ohttp
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import Answered
from mimids.values import Milliseconds
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.messages import (
    KeyPackageBundleRequest,
    KeyPackageBundleResponse,
    KeyPackageRequest,
    KeyPackageResponse,
)

PATH: Final = "/key-packages"
MIMI_DS: Final = b"application/mimi-ds"
PROBLEM_JSON: Final = b"application/problem+json"
NO_RATE: Final = Rate("none", 0, 0)


@attrs.frozen(kw_only=True)
class GatewayBounds:
    """The limits of the gateway."""

    window_seconds: int = 300  # how far a Date may be from our time, in either direction
    replay_rows: int = 100_000
    bundle_requests: int = 64
    rate: Rate  # for all requesters together: the requester is not known
    address_rate: Rate = NO_RATE  # for each IP address


@attrs.frozen
class _ParsedRequest:
    """A request for one KeyPackage, or for a bundle."""

    requests: tuple[KeyPackageRequest, ...]
    bundle: bool
    date: Milliseconds

    def content(self, outcomes: tuple[ClaimOutcome, ...]) -> bytes | MimiError:
        """Return the body of the answer; the refusal of a single request is the problem itself (wire: structures)."""
        if self.bundle:
            return encode(KeyPackageBundleResponse(tuple(outcome.result() for outcome in outcomes)))
        (outcome,) = outcomes
        if outcome.refusal is not None:
            return outcome.refusal
        if outcome.key_package is None:
            raise ValueError("the outcome has neither a KeyPackage nor a refusal")
        return encode(KeyPackageResponse(outcome.key_package))


class _AnswerSealer:
    """Seals the answer to one request.

    Several answers to one request may be sealed, but only one is sent: the writer may run the transaction again, and a
    disk failure leads to another answer. Each has its own nonce and so its own key (RFC 9458 section 4.4).
    """

    def __init__(self, open_: Callable[[], OpenedRequest], problem: Callable[[MimiError], bytes]) -> None:
        self._open = open_
        self._problem = problem
        self.opened = open_()
        self._used = False

    def ok(self, content: bytes, now: Milliseconds, nonce: bytes | None = None) -> bytes:
        """Return the sealed answer to a successful request; the `nonce` of an earlier answer gives the same octets."""
        return self._seal(200, ((b"content-type", MIMI_DS),), content, now, nonce)

    def nonce_of(self, sealed: bytes) -> bytes:
        """Return the nonce of an answer: its first octets (RFC 9458 section 4.4)."""
        return sealed[: self.opened.sealer.nonce_size]

    def refusal(self, error: Exception, now: Milliseconds) -> bytes:
        """Return the sealed problem document of an error."""
        refused = error if isinstance(error, MimiError) else Malformed(str(error))
        fields: list[bhttp.Field] = [(b"content-type", PROBLEM_JSON)]
        if (seconds := refused.members.get("retry_after")) is not None:
            fields.append((b"retry-after", str(seconds).encode()))
        return self._seal(refused.status.value, tuple(fields), self._problem(refused), now)

    def _seal(
        self, status: int, fields: bhttp.Fields, content: bytes, now: Milliseconds, nonce: bytes | None = None
    ) -> bytes:
        # The Date lets a client whose clock is wrong correct it (RFC 9458 section 6.5.2).
        common = ((b"date", _http_date(now // 1000)), (b"cache-control", b"no-store"))
        message = pad_response(bhttp.encode_response(bhttp.Response(status, (*fields, *common), content)))
        sealer = self._open().sealer if self._used else self.opened.sealer
        self._used = True
        return sealer.seal(message, nonce or secrets.token_bytes(sealer.nonce_size))


@attrs.define(eq=False)
class _Pending:
    """A request that is being answered; copies of it wait for `done`."""

    done: trio.Event = attrs.field(factory=trio.Event)
    answer: bytes | None = None


@attrs.frozen
class GatewayStatistics:
    """The counts of the gateway; nothing in them tells one requester from another."""

    in_flight: int
    answered: int  # with a sealed answer, refusals included
    repeated: int  # of those: answers to copies and replays


class Gateway:
    """Answers `message/ohttp-req` for the KeyPackages of this provider."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        keys: Callable[[], Mapping[int, PrivateKey]],
        stock: ClaimablePackages,
        problem: Callable[[MimiError], bytes],
        bounds: GatewayBounds,
        on_bound: Callable[[str], None] = lambda bound: None,
    ) -> None:
        """Make a gateway.

        `keys` returns the live keys by identifier, `problem` the JSON of a problem document (RFC 9457). `on_bound` is
        called with the name of a bound that a requester reached.
        """
        self._store = store
        self._clock = clock
        self._keys = keys
        self._stock = stock
        self._problem = problem
        self._bounds = bounds
        self._rates = Rates(bounds.rate)
        self._address_rates = Rates(bounds.address_rate)
        self._on_bound = on_bound
        self._replays = ReplayStore(ReplayBounds(bounds.replay_rows, 2 * bounds.window_seconds))
        self._pending: dict[bytes, _Pending] = {}
        self._answered = self._repeated = 0

    async def answer(self, message: bytes, address: str | None = None) -> bytes:
        """Return the `message/ohttp-res` for this `message/ohttp-req`, refusals included.

        `address` is the IP address that the message came from, or None if our own relay passes it on. Raises only
        errors that occur before the request is opened: `RateLimited` for the address, and what `open_request` raises.
        """
        if address is not None:
            with self._reporting("gateway-address-rate"):
                self._address_rates.take(network_of(address), self._clock.now())
        while (pending := self._pending.get(message)) is not None:
            await pending.done.wait()
            if pending.answer is not None:  # if None, the other request was cancelled or could not be opened
                self._answered += 1
                self._repeated += 1
                return pending.answer
        pending = self._pending[message] = _Pending()
        try:
            keys = self._keys()
            sealer = _AnswerSealer(lambda: open_request(message, keys), self._problem)
            try:
                pending.answer = await self._serve(sealer)
            except (MimiError, WireError) as error:
                pending.answer = sealer.refusal(error, self._clock.now())
            self._answered += 1
            return pending.answer
        finally:
            del self._pending[message]
            pending.done.set()

    def statistics(self) -> GatewayStatistics:
        """Return the counts so far."""
        return GatewayStatistics(len(self._pending), self._answered, self._repeated)

    async def _serve(self, sealer: _AnswerSealer) -> bytes:
        request = self._parse(read_request(sealer.opened))
        if not self._in_window(request, self._clock.now()):
            raise OhttpDate
        with self._reporting("gateway-rate"):
            self._rates.take(None, self._clock.now(), len(request.requests))
        answer = await self._store.write(lambda tx: self._claim(tx, sealer, request))
        if isinstance(answer, MimiError):
            raise answer
        if isinstance(answer, bytes):
            self._repeated += 1
            return answer
        claimed, sealed = answer
        self._stock.announce(claimed)
        if any(each.refusal and each.refusal.members.get("limit") == SHARE_LIMIT for each in claimed.outcomes):
            self._on_bound("replay-share")
        if sealed is not None:
            return sealed
        content = request.content(claimed.outcomes)
        if isinstance(content, MimiError):
            raise content
        return sealer.ok(content, self._clock.now())

    def _parse(self, request: bhttp.Request) -> _ParsedRequest:
        """Return what is requested. The authority is ignored: the gateway forwards to no other provider."""
        path, _, query = request.path.partition("?")
        if path != PATH:
            raise NotFound
        if request.method != "POST":
            raise MethodNotAllowed
        media_type = (request.field(b"content-type") or b"").partition(b";")[0].strip().lower()
        if media_type != MIMI_DS:
            raise UnsupportedMediaType
        date = _parse_date(request.field(b"date"))
        if any(part.partition("=")[0] == "bundle" for part in query.split("&")):
            requests = decode(KeyPackageBundleRequest, request.content).requests
            if len(requests) > self._bounds.bundle_requests:
                raise TooMany("bundle_max_requests", len(requests))
            return _ParsedRequest(requests, True, date)
        return _ParsedRequest((decode(KeyPackageRequest, request.content),), False, date)

    def _in_window(self, request: _ParsedRequest, now: Milliseconds) -> bool:
        return abs(now - request.date) <= self._bounds.window_seconds * 1000

    def _claim(
        self, tx: Tx, sealer: _AnswerSealer, request: _ParsedRequest
    ) -> tuple[ClaimedPackages, bytes | None] | bytes | MimiError:
        """Claim KeyPackages and store the sealed answer, or return the stored answer to a replay, or a refusal."""
        # Take the time now: while the request waited in the queue, a stored answer to it may have been deleted.
        now = self._clock.now()
        opened = sealer.opened
        earlier = ohttp.answered(tx, opened.enc)
        if earlier is not None:
            return self._again(tx, sealer, request, earlier) if earlier.digest == opened.digest else OhttpReplayed()
        if not self._in_window(request, now):
            return OhttpDate()
        if not self._replays.has_room(tx, now):
            return Busy("the replay store is full", retry_after=self._bounds.window_seconds)
        claimed = self._stock.claim_within(tx, request.requests, now, count=self._replays.count)
        if not claimed.consumed:
            return claimed, None
        content = request.content(claimed.outcomes)
        if isinstance(content, MimiError):
            raise TypeError("a KeyPackage was handed out, but the answer is a refusal")
        sealed = sealer.ok(content, now)
        keep_until = Milliseconds(request.date + self._bounds.window_seconds * 1000)
        answered = Answered(opened.digest, sealed)
        again = (sealer.nonce_of(sealed), now)
        self._replays.keep(tx, opened.enc, answered, claimed.outcomes, again, keep_until)
        return claimed, sealed

    def _again(self, tx: Tx, sealer: _AnswerSealer, request: _ParsedRequest, earlier: Answered) -> bytes | MimiError:
        """Return the octets of an earlier answer."""
        if isinstance(earlier.response, bytes):
            return earlier.response
        again = earlier.response
        content = request.content(self._replays.outcomes(tx, again))
        return content if isinstance(content, MimiError) else sealer.ok(content, again.sealed_at, again.nonce)

    @contextmanager
    def _reporting(self, bound: str) -> Iterator[None]:
        """Report the bound if the block raises `RateLimited`."""
        try:
            yield
        except RateLimited:
            self._on_bound(bound)
            raise


def network_of(address: str) -> str:
    """Return the network that counts as one requester: an IPv4 address, or the first 64 bits of an IPv6 address."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 4:
        return str(ip)
    return str(ip.ipv4_mapped or ip_network((ip, 64), strict=False))


@lru_cache(maxsize=64)
def _http_date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


@lru_cache(maxsize=64)
def _parse_date(value: bytes | None) -> Milliseconds:
    """Read an HTTP-date; raise `OhttpDate`."""
    seconds = read_date(value)
    if seconds is None:
        raise OhttpDate
    return Milliseconds(seconds * 1000)
