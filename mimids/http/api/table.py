"""Answers requests from the table of endpoints; the same code serves all of them.

The steps are: find the endpoint, admit the caller, receive and decode the body, call the handler, encode the answer.
Each step may raise an error. Only this module turns errors into problem documents. It knows no server and no
framework: `asgi.py` connects it to the server.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

import attrs

from mimids.ds.services import Services
from mimids.errors import Busy, Internal, Malformed, MethodNotAllowed
from mimids.http.api import problems
from mimids.http.api.admission import ANSWER_OCTETS
from mimids.http.api.bodies import WebSocketStream
from mimids.http.api.cors import NO_PAGES, Cors
from mimids.http.api.endpoints import Answer, AnyEndpoint, Call
from mimids.http.api.paced_stream import PacedStream
from mimids.http.api.parameters import wait_seconds
from mimids.http.api.request_bodies import BodyReader, check_media_type
from mimids.http.api.routes import Route, Routes, SizeLimits, allowed_methods
from mimids.http.header_names import REQUEST_ID
from mimids.http.server.holding import Holding
from mimids.http.server.messages import HttpReply, HttpRequest, StreamClosed
from mimids.owners import WORKING_FOR, Owner
from mimids.telemetry import Telemetry, new_request_id
from mimids.tracebacks import release_frames
from mimids.values import Caller, Device, Follower
from mimids.wire.ids import ProviderId

QUERY_BYTES: Final = 4096
QUERY_FIELDS: Final = 32
ADMITTED_SECONDS: Final = 0.5  # after a longer wait for the body, the device may have been removed

Headers = Sequence[tuple[bytes, bytes]]
Admit = Callable[[type[Caller], Mapping[str, str], frozenset[ProviderId] | None], Awaitable[Caller]]
Stamp = Callable[[Caller], Headers]
Demand = Callable[[Caller, AnyEndpoint], None]
Pace = Callable[[Caller], Awaitable[None]]
Owe = Callable[[Caller, int], None]


@attrs.define
class _Entry:
    """What the log line of one request will say."""

    route: str = "none"
    unlinkable: bool = False
    peer: ProviderId | None = None
    received: int = 0
    code: str = "ok"
    began: float = attrs.field(factory=time.perf_counter)
    _id: str = ""

    @property
    def id(self) -> str:
        """The identifier of the request, which is made when it is first needed: unlinkable requests have none."""
        self._id = self._id or new_request_id()
        return self._id


def _no_headers(_: Caller) -> Headers:
    return ()


def _no_demand(_: Caller, __: AnyEndpoint) -> None:
    return


async def _no_pace(_: Caller) -> None:
    return


def _owe_nothing(_: Caller, __: int) -> None:
    return


class Table:
    """The endpoints of one listener.

    `limits` has the octets that endpoints name in `limit`. `admit` gets the type of the caller, and returns
    the caller or raises an error. `stamp` returns headers for every answer to a caller that was admitted, also for
    refusals. `demand` may refuse an endpoint to a caller. `pace` waits until a caller may send one more message on a
    WebSocket. `owe` counts the octets of an answer against its caller (`CallerRates.owe`). With `hosts`,
    requests with another Host are refused. `cors` tells browsers which pages may use the endpoints.
    """

    def __init__(
        self,
        endpoints: Iterable[AnyEndpoint],
        services: Services,
        *,
        limits: SizeLimits,
        admit: Admit,
        telemetry: Telemetry,
        body_seconds: float = 60,
        stamp: Stamp = _no_headers,
        demand: Demand = _no_demand,
        pace: Pace = _no_pace,
        owe: Owe = _owe_nothing,
        hosts: frozenset[str] | None = None,
        cors: Cors = NO_PAGES,
    ) -> None:
        self._services = services
        self._admit = admit
        self._telemetry = telemetry
        self._stamp = stamp
        self._demand = demand
        self._pace = pace
        self._owe = owe
        self.cors = cors
        self._routes = Routes(endpoints, limits, hosts)
        self._bodies = BodyReader(body_seconds)

    async def answer(self, request: HttpRequest) -> HttpReply:
        """Return the answer to a request; nothing is raised except a cancellation."""
        entry = _Entry()
        stamped: list[tuple[bytes, bytes]] = []
        by_method: Mapping[str, Route] = {}
        try:
            by_method, path = self._routes.find(request)
            if request.method == "OPTIONS" and "OPTIONS" not in by_method:
                entry.route = "options"
                reply = HttpReply(HTTPStatus.NO_CONTENT, [(b"allow", allowed_methods(by_method))])
                reply.headers.extend(self.cors.preflight(request.headers, by_method))
            else:
                reply = await self._answer(_route(by_method, request, entry), path, request, entry, stamped)
        except StreamClosed:
            entry.code = "closed"
            reply = HttpReply(400, [])  # the client has disconnected and will not read it
        except Exception as error:  # not trio.Cancelled, which is a BaseException
            reply = self._refuse(error, entry)
            if isinstance(error, MethodNotAllowed):
                reply.headers.append((b"allow", allowed_methods(by_method)))
        reply.headers.extend(stamped)
        reply.headers.extend(self.cors.headers(request.headers))
        if reply.status != HTTPStatus.NO_CONTENT:  # RFC 9110 section 8.6: MUST NOT
            reply.headers.append((b"content-length", b"%d" % len(reply.body)))
        self._log(entry, len(reply.body))
        return reply

    async def stream(self, request: HttpRequest, stream: WebSocketStream) -> HttpReply | None:
        """Serve a WebSocket until it is closed; a returned `HttpReply` refuses the handshake."""
        entry = _Entry()
        try:
            by_method, path = self._routes.find(request)
            route = _route(by_method, request, entry)
            if not route.endpoint.websocket:
                raise Malformed("this endpoint is not a WebSocket")
            self.cors.check_stream(request.headers)
            call = await self._call(route, path, request, entry, [], stream)
            await route.endpoint.handler(self._services, call)
            await stream.close()
        except StreamClosed:
            entry.code = "closed"
        except Exception as error:
            reply = self._refuse(error, entry)
            reply.headers.extend(self.cors.headers(request.headers))
            return reply
        finally:
            self._log(entry, 0)
        return None

    async def _answer(
        self,
        route: Route,
        path: Mapping[str, str],
        request: HttpRequest,
        entry: _Entry,
        stamped: list[tuple[bytes, bytes]],
    ) -> HttpReply:
        endpoint = route.endpoint
        if endpoint.websocket:
            raise Malformed("this endpoint is a WebSocket: send an opening handshake (RFC 6455 section 4.1)")
        call = await self._call(route, path, request, entry, stamped, None)
        if endpoint.waits and wait_seconds(request.headers, at_most=1):
            with request.holding.wait() as may_wait:
                if not may_wait:
                    self._telemetry.bound_hit("waiting-requests")
                    raise Busy("too many waiting requests from this caller or its address; use a stream")
                answer = await endpoint.handler(self._services, call)
        else:
            answer = await endpoint.handler(self._services, call)
        if not isinstance(answer, Answer):
            answer = Answer(answer)
        headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
        status = int(answer.status or endpoint.status)
        if route.answer is None:
            return HttpReply(status, headers)
        if not any(name == b"content-type" for name, _ in headers):
            headers.append((b"content-type", route.answer.media_type.encode()))
        octets = route.answer.write(answer.body)
        self._owe(call.caller, len(octets))
        if not request.holding.take_answer(len(octets)):
            raise Busy("too many large answers wait for callers to read them; try again later")
        return HttpReply(status, headers, octets)

    # Longer than 40 lines: the steps of a request, in their order.
    async def _call(
        self,
        route: Route,
        path: Mapping[str, str],
        request: HttpRequest,
        entry: _Entry,
        stamped: list[tuple[bytes, bytes]],
        stream: WebSocketStream | None,
    ) -> Call[Any, Any]:
        """Return what the handler gets. The body is received only after the caller was admitted."""
        endpoint = route.endpoint
        WORKING_FOR.set(request.holding.owner)  # the address, until the caller is known
        caller = await self._admit(endpoint.caller, request.headers, request.names)
        stamped.extend(self._stamp(caller))
        owner = _owner(caller)
        if not request.holding.admit(owner):
            raise Busy("this caller has too many connections; close those that are not needed")
        WORKING_FOR.set(request.holding.owner)
        self._demand(caller, endpoint)
        if isinstance(caller, Follower):
            entry.peer = caller.provider
        query = _query(request.query, endpoint.query) if request.query and endpoint.query else {}
        body: object = (
            None if stream is None else PacedStream(stream, partial(self._pace, caller), partial(self._owe, caller))
        )
        if route.request is not None:
            check_media_type(request.headers, route.request)
            began = time.monotonic()
            octets = await self._bodies.receive(route, request)
            if isinstance(caller, Device) and time.monotonic() - began > ADMITTED_SECONDS:
                caller = await self._admit(endpoint.caller, request.headers, request.names)
            entry.received = len(octets)
            body = await self._bodies.decode(route.request, octets)
            if endpoint.counts_as is not None:
                self._owe(caller, (endpoint.counts_as(body) - 1) * ANSWER_OCTETS)
        return Call(
            caller,
            body,
            path,
            query,
            request.headers,
            request.address,
            partial(_reserve_answer, request.holding),
            request.user,
        )

    def _refuse(self, error: Exception, entry: _Entry) -> HttpReply:
        refusal = problems.classify(error)
        entry.code = refusal.code
        reply = problems.reply(refusal)
        if entry.unlinkable:
            if isinstance(refusal, Internal):
                self._telemetry.failure_unlinkable(entry.route, error)
        elif isinstance(refusal, Internal):
            self._telemetry.log.error("a handler failed", route=entry.route, id=entry.id, exc_info=error)
            reply.headers.append((REQUEST_ID.encode(), entry.id.encode()))
        elif error.__cause__ is not None:
            # The text of the cause may have names, addresses or parts of the body in it.
            self._telemetry.log.debug("refused", route=entry.route, id=entry.id, cause=type(error.__cause__).__name__)
        release_frames(error)
        return reply

    def _log(self, entry: _Entry, sent: int) -> None:
        if entry.unlinkable:
            self._telemetry.request_unlinkable(entry.route, entry.code)
            return
        self._telemetry.request(
            entry.route,
            entry.code,
            id_=entry.id,
            peer=entry.peer,
            received=entry.received,
            sent=sent,
            milliseconds=(time.perf_counter() - entry.began) * 1000,
        )


def _owner(caller: Caller) -> Owner:
    """Return the owner for which an admitted caller's connection counts; None if it still counts for the address."""
    if isinstance(caller, Device):
        return "device", caller.row
    return ("provider", caller.provider) if isinstance(caller, Follower) else None


async def _reserve_answer(holding: Holding, octets: int) -> None:
    if not await holding.reserve(octets):
        raise Busy("too many large answers wait for callers to read them; try again later")


def _route(by_method: Mapping[str, Route], request: HttpRequest, entry: _Entry) -> Route:
    route = by_method.get("GET" if request.method == "HEAD" else request.method)
    if route is None:
        raise MethodNotAllowed
    entry.route, entry.unlinkable = route.endpoint.name, route.endpoint.unlinkable
    return route


def _query(query: bytes, known: tuple[str, ...]) -> dict[str, str]:
    """Return the known keys of a query; unknown keys are ignored."""
    if len(query) > QUERY_BYTES:
        raise Malformed(f"the query is longer than {QUERY_BYTES} bytes")
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS)
    except ValueError as error:
        raise Malformed("the query is not a list of keys and values in ASCII, percent-encoded") from error
    return {name: value for name, value in pairs if name in known}
