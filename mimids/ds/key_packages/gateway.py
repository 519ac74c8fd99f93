"""The OHTTP gateway: it answers sealed requests for KeyPackages and nothing else (semantics: ohttp, RFC 9458).

A request is *opened* with a live key, *parsed* as `POST /key-packages` with a Date within the window, *answered* in
one transaction (replay, token, claim, answer), and the answer is *sealed*. An error before the request is opened is
raised and sent as it is; every later error is sealed (RFC 9458 section 5.2). `Gateway.answer` alone decides which.

A replay must not use up KeyPackages (RFC 9458 section 6.5). So an answer with a KeyPackage is stored, sealed, in the
transaction of the claim. The same request gets the same octets again until its Date has left the window; after that
the Date refuses it. An encapsulated key belongs to the request that it first came with. Copies of a request that is
being answered wait for its answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Final

import attrs
import trio

from mimids.ds.key_packages.claims import ClaimablePackages, ClaimedPackages, ClaimOutcome
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
COUNT_INTERVAL_MILLISECONDS: Final = 1000  # between two counts of the stored answers
PROBLEM_JSON: Final = b"application/problem+json"


@attrs.frozen(kw_only=True)
class GatewayBounds:
    """The limits of the gateway."""

    window_seconds: int = 300  # how far a Date may be from our time, in either direction
    replay_rows: int = 100_000
    bundle_requests: int = 64
    rate: Rate  # for all requesters together: the requester is not known


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

    More than one answer may have to be sealed, of which one is sent: the writer may run the transaction again, and
    after a disk failure the answer is another one. Each has its own nonce and so its own key (RFC 9458 section 4.4).
    """

    def __init__(self, open_: Callable[[], OpenedRequest], problem: Callable[[MimiError], bytes]) -> None:
        self._open = open_
        self._problem = problem
        self.opened = open_()
        self._used = False

    def ok(self, content: bytes, now: Milliseconds) -> bytes:
        """Return the sealed answer to a request that succeeded."""
        return self._seal(200, ((b"content-type", MIMI_DS),), content, now)

    def refusal(self, error: Exception, now: Milliseconds) -> bytes:
        """Return the sealed problem document of an error."""
        refused = error if isinstance(error, MimiError) else Malformed(str(error))
        fields: list[bhttp.Field] = [(b"content-type", PROBLEM_JSON)]
        if (seconds := refused.members.get("retry_after")) is not None:
            fields.append((b"retry-after", str(seconds).encode()))
        return self._seal(refused.status.value, tuple(fields), self._problem(refused), now)

    def _seal(self, status: int, fields: bhttp.Fields, content: bytes, now: Milliseconds) -> bytes:
        # The Date lets a client whose clock is wrong correct it (RFC 9458 section 6.5.2).
        common = ((b"date", _http_date(now // 1000)), (b"cache-control", b"no-store"))
        message = pad_response(bhttp.encode_response(bhttp.Response(status, (*fields, *common), content)))
        sealer = self._open().sealer if self._used else self.opened.sealer
        self._used = True
        return sealer.seal(message, secrets.token_bytes(sealer.nonce_size))


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
    ) -> None:
        """`keys` returns the live keys by identifier, `problem` the JSON of a problem document (RFC 9457)."""
        self._store = store
        self._clock = clock
        self._keys = keys
        self._stock = stock
        self._problem = problem
        self._bounds = bounds
        self._rates = Rates(bounds.rate)
        self._pending: dict[bytes, _Pending] = {}
        self._answered = self._repeated = 0
        self._room, self._counted_at = 0, Milliseconds(0)

    async def answer(self, message: bytes) -> bytes:
        """Return the `message/ohttp-res` for this `message/ohttp-req`, refusals included.

        Raises errors from before the request is opened: `RateLimited`, and what `open_request` raises.
        """
        self._rates.take(None, self._clock.now())
        while (pending := self._pending.get(message)) is not None:
            await pending.done.wait()
            if pending.answer is not None:  # else it was cancelled, or could not be opened
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
        answer = await self._store.write(lambda tx: self._claim(tx, sealer, request))
        if isinstance(answer, MimiError):
            raise answer
        if isinstance(answer, bytes):
            self._repeated += 1
            return answer
        claimed, sealed = answer
        self._stock.announce(claimed)
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

    def _has_room(self, tx: Tx, now: Milliseconds) -> bool:
        """Tell whether another answer can be stored.

        Once a second, or when no room seems to be left, expired answers are deleted and the rest are counted. In
        between the room is only counted down, on the writer's thread. A transaction that runs twice counts twice, so
        that the store may seem full too early but never too late.
        """
        if self._room <= 0 or abs(now - self._counted_at) >= COUNT_INTERVAL_MILLISECONDS:
            ohttp.forget_answers(tx, now)
            self._room, self._counted_at = self._bounds.replay_rows - ohttp.room_taken(tx), now
        return self._room > 0

    def _claim(
        self, tx: Tx, sealer: _AnswerSealer, request: _ParsedRequest
    ) -> tuple[ClaimedPackages, bytes | None] | bytes | MimiError:
        """Claim KeyPackages and store the sealed answer, or return the stored answer to a replay, or a refusal."""
        # The time of this transaction: while it waited in the queue, its earlier answer may have been deleted.
        now = self._clock.now()
        opened = sealer.opened
        earlier = ohttp.answered(tx, opened.enc)
        if earlier is not None:
            return earlier.response if earlier.digest == opened.digest else OhttpReplayed()
        if not self._in_window(request, now):
            return OhttpDate()
        if not self._has_room(tx, now):
            return Busy("the replay store is full", retry_after=self._bounds.window_seconds)
        claimed = self._stock.claim_within(tx, request.requests, now)
        if not claimed.consumed:
            return claimed, None
        content = request.content(claimed.outcomes)
        if isinstance(content, MimiError):
            raise TypeError("a KeyPackage was handed out, but the answer is a refusal")
        sealed = sealer.ok(content, now)
        keep_until = Milliseconds(request.date + self._bounds.window_seconds * 1000)
        self._room -= 1
        ohttp.keep_answer(tx, opened.enc, Answered(opened.digest, sealed), keep_until)
        return claimed, sealed


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
