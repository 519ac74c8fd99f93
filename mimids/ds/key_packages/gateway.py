"""The OHTTP gateway: sealed requests for KeyPackages, and nothing else (semantics: ohttp, RFC 9458).

A request's life: *opened* with a live key, *understood* as `POST /key-packages` with a Date within the window,
*decided* in one transaction (replay, token, claim, answer), *sealed*. What goes wrong before it is opened is raised and
leaves as it is; whatever comes after travels sealed (RFC 9458 section 5.2). `Gateway.answer` alone decides which.

A replay must not drain KeyPackages (RFC 9458 section 6.5), so an answer that handed something out is written, sealed,
in the claim's own transaction, and given again byte for byte until its request's Date has left the window; then the
Date refuses it. An encapsulated key belongs to the request it first came with. Copies in flight share one answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Final

import attrs
import trio

from mimids.ds.key_packages.claims import ClaimablePackages, ClaimedPackages, Outcome
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
LOOK_MILLISECONDS: Final = 1000
PROBLEM_JSON: Final = b"application/problem+json"


@attrs.frozen(kw_only=True)
class GatewayBounds:
    """What the gateway takes and remembers."""

    window_seconds: int = 300  # how far a Date may be off, to either side
    replay_rows: int = 100_000
    bundle_requests: int = 64
    rate: Rate  # for all requesters together: who asks is not known


@attrs.frozen
class _Asked:
    """A request that was understood."""

    requests: tuple[KeyPackageRequest, ...]
    bundle: bool
    date: Milliseconds

    def content(self, outcomes: tuple[Outcome, ...]) -> bytes | MimiError:
        """Return the body of the answer; a request on its own is refused by its status (wire: structures)."""
        if self.bundle:
            return encode(KeyPackageBundleResponse(tuple(outcome.result() for outcome in outcomes)))
        (outcome,) = outcomes
        if outcome.refusal is not None:
            return outcome.refusal
        if outcome.key_package is None:
            raise ValueError("an outcome is a KeyPackage or a refusal")
        return encode(KeyPackageResponse(outcome.key_package))


class _Reply:
    """Seals the answer to one request.

    The writer may run a transaction again, and a disk that failed leaves another answer to give, so an answer may have
    to be sealed that is not the first: each gets a nonce, and thereby a key, of its own (RFC 9458 section 4.4), and
    one leaves.
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
class _Flight:
    """A request that is being answered, for its copies to wait for."""

    landed: trio.Event = attrs.field(factory=trio.Event)
    answer: bytes | None = None


@attrs.frozen
class GatewayStatistics:
    """What the gateway is at; nothing tells one requester from another."""

    in_flight: int
    answered: int  # sealed, refusals too
    repeated: int  # of those: copies in flight, and answers given again


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
        """`keys` gives the live keys by identifier, `problem` the JSON of a problem document (RFC 9457)."""
        self._store = store
        self._clock = clock
        self._keys = keys
        self._stock = stock
        self._problem = problem
        self._bounds = bounds
        self._rates = Rates(bounds.rate)
        self._in_flight: dict[bytes, _Flight] = {}
        self._answered = self._repeated = 0
        self._room, self._looked_at = 0, Milliseconds(0)

    async def answer(self, message: bytes) -> bytes:
        """Return the `message/ohttp-res` for this `message/ohttp-req`, refusals included.

        What is raised happened before the request was opened and is an outer error: `RateLimited`, and what
        `open_request` raises.
        """
        self._rates.take(None, self._clock.now())
        while (flight := self._in_flight.get(message)) is not None:
            await flight.landed.wait()
            if flight.answer is not None:  # else whoever waited for it is gone, or it was not opened
                self._answered += 1
                self._repeated += 1
                return flight.answer
        flight = self._in_flight[message] = _Flight()
        try:
            keys = self._keys()
            reply = _Reply(lambda: open_request(message, keys), self._problem)
            try:
                flight.answer = await self._serve(reply)
            except (MimiError, WireError) as error:
                flight.answer = reply.refusal(error, self._clock.now())
            self._answered += 1
            return flight.answer
        finally:
            del self._in_flight[message]
            flight.landed.set()

    def statistics(self) -> GatewayStatistics:
        """Return the counts so far."""
        return GatewayStatistics(len(self._in_flight), self._answered, self._repeated)

    async def _serve(self, reply: _Reply) -> bytes:
        asked = self._understand(read_request(reply.opened))
        if not self._in_window(asked, self._clock.now()):
            raise OhttpDate
        decided = await self._store.write(lambda tx: self._decide(tx, reply, asked))
        if isinstance(decided, MimiError):
            raise decided
        if isinstance(decided, bytes):
            self._repeated += 1
            return decided
        claimed, sealed = decided
        self._stock.announce(claimed)
        if sealed is not None:
            return sealed
        content = asked.content(claimed.outcomes)
        if isinstance(content, MimiError):
            raise content
        return reply.ok(content, self._clock.now())

    def _understand(self, request: bhttp.Request) -> _Asked:
        """Return what is asked for. The authority is not looked at: nothing but this provider is reached anyway."""
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
            return _Asked(requests, True, date)
        return _Asked((decode(KeyPackageRequest, request.content),), False, date)

    def _in_window(self, asked: _Asked, now: Milliseconds) -> bool:
        return abs(now - asked.date) <= self._bounds.window_seconds * 1000

    def _has_room(self, tx: Tx, now: Milliseconds) -> bool:
        """Tell whether another answer can be kept; forget what is over, and count, where that is due.

        Once a second, or when it seems full. Between, only the writer's thread counts down; it counts twice what it
        runs twice, so that it may seem full too early, never too late.
        """
        if self._room <= 0 or abs(now - self._looked_at) >= LOOK_MILLISECONDS:
            ohttp.forget_answers(tx, now)
            self._room, self._looked_at = self._bounds.replay_rows - ohttp.room_taken(tx), now
        return self._room > 0

    def _decide(self, tx: Tx, reply: _Reply, asked: _Asked) -> tuple[ClaimedPackages, bytes | None] | bytes | MimiError:
        """Claim and keep the sealed answer, or return the kept one; an error is returned, not raised: others wait."""
        # By this transaction's own time: one that waited its turn might find its earlier answer forgotten already.
        now = self._clock.now()
        opened = reply.opened
        earlier = ohttp.answered(tx, opened.enc)
        if earlier is not None:
            return earlier.response if earlier.digest == opened.digest else OhttpReplayed()
        if not self._in_window(asked, now):
            return OhttpDate()
        if not self._has_room(tx, now):
            return Busy("the replay store is full", retry_after=self._bounds.window_seconds)
        claimed = self._stock.claim_in(tx, asked.requests, now)
        if not claimed.consumed:
            return claimed, None
        content = asked.content(claimed.outcomes)
        if isinstance(content, MimiError):
            raise TypeError("something was handed out, and the answer is a refusal")
        sealed = reply.ok(content, now)
        keep_until = Milliseconds(asked.date + self._bounds.window_seconds * 1000)
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
