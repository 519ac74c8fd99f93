"""The endpoint table at work: one adapter for all rows, from a request in HTTP's terms to a `HttpReply`.

Route, admit, read, decode, handle, encode; each step either goes on or raises the refusal, which becomes a problem
document here and nowhere else. It knows no server and no framework: `asgi.py` puts it in front of one.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

import attrs
import trio

from mimids.errors import (
    Internal,
    Malformed,
    MethodNotAllowed,
    MimiError,
    NotFound,
    TimedOut,
    TooLarge,
    UnsupportedMediaType,
)
from mimids.http.api import problems
from mimids.http.api.endpoints import Access, Answer, Body, Call, Endpoint, StreamClosed, WebSocketStream
from mimids.http.api.problems import HttpReply
from mimids.http.header_names import REQUEST_ID
from mimids.telemetry import Telemetry, new_request_id
from mimids.values import Caller, Follower
from mimids.wire.codec import WireError
from mimids.wire.ids import ProviderId

LONG_OCTETS: Final = 16 * 1024  # a body above this is decoded off the event loop (architecture: tasks)
DECODERS: Final = 2
QUERY_BYTES: Final = 4096
QUERY_FIELDS: Final = 32

Admit = Callable[[Access, Mapping[str, str], "frozenset[ProviderId] | None"], Awaitable[Caller]]
Stamp = Callable[[Caller], Sequence[tuple[bytes, bytes]]]
Demand = Callable[[Caller, Endpoint], None]


@attrs.frozen
class HttpRequest:
    """A request whose body has not been read: `receive` gives a piece, and whether there is more."""

    method: str
    path: bytes  # as it was sent, percent-encoded, without the query
    query: bytes
    headers: Mapping[str, str]  # lower-case names; of a repeated one the values, joined by ", "
    names: frozenset[ProviderId] | None  # that its certificate was vouched for; None without one
    receive: Callable[[], Awaitable[tuple[bytes, bool]]]


@attrs.frozen
class _Row:
    """A row, with what can be known of it before any request."""

    endpoint: Endpoint
    segments: tuple[bytes, ...]
    limit: int  # octets


@attrs.define
class _Entry:
    """What becomes of one request, for its log line."""

    route: str = "none"
    unlinkable: bool = False
    peer: ProviderId | None = None
    received: int = 0
    code: str = "ok"
    id: str = attrs.field(factory=new_request_id)
    began: float = attrs.field(factory=time.perf_counter)


def _nothing(_: Caller) -> Sequence[tuple[bytes, bytes]]:
    return ()


def _no_demand(_: Caller, __: Endpoint) -> None:
    return


class Table:
    """The endpoints of one listener.

    `limits` has the octets that rows name in `limit`; `admit` tells who asks; `stamp` gives the headers of every
    answer to a caller that was admitted, refusals too; `demand` then may refuse it this endpoint; with `hosts`, other
    values of Host are refused.
    """

    def __init__(
        self,
        endpoints: Iterable[Endpoint],
        services: object,
        *,
        limits: Mapping[str, int],
        admit: Admit,
        telemetry: Telemetry,
        body_seconds: float = 60,
        stamp: Stamp = _nothing,
        demand: Demand = _no_demand,
        hosts: frozenset[str] | None = None,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._services = services
        self._admit = admit
        self._telemetry = telemetry
        self._body_seconds = body_seconds
        self._stamp = stamp
        self._demand = demand
        self._hosts = hosts
        self._decoding = trio.CapacityLimiter(DECODERS)
        self._exact: dict[bytes, dict[str, _Row]] = {}
        self._patterns: dict[tuple[bytes, ...], dict[str, _Row]] = {}
        for endpoint in self.endpoints:
            segments = tuple(endpoint.path.encode().split(b"/"))
            row = _Row(endpoint, segments, limits[endpoint.limit])
            rows = (
                self._patterns.setdefault(segments, {})
                if "{" in endpoint.path
                else self._exact.setdefault(endpoint.path.encode(), {})
            )
            if rows.setdefault(endpoint.method, row) is not row:
                raise ValueError(f"{endpoint.method} {endpoint.path} is there twice")

    async def answer(self, request: HttpRequest) -> HttpReply:
        """Return the answer to any request; only cancellation is raised."""
        entry = _Entry()
        stamped: list[tuple[bytes, bytes]] = []
        rows: Mapping[str, _Row] = {}
        try:
            rows, path = self._find(request)
            if request.method == "OPTIONS" and "OPTIONS" not in rows:
                entry.route = "options"
                reply = HttpReply(HTTPStatus.NO_CONTENT, [(b"allow", _allow(rows))])
            else:
                reply = await self._answer_row(self._row(rows, request, entry), path, request, entry, stamped)
        except StreamClosed:
            entry.code = "closed"
            reply = HttpReply(400, [])  # to nobody
        except Exception as error:  # trio.Cancelled is none
            reply = self._refuse(error, entry)
            if isinstance(error, MethodNotAllowed):
                reply.headers.append((b"allow", _allow(rows)))
        reply.headers.extend(stamped)
        if reply.status != HTTPStatus.NO_CONTENT:  # RFC 9110 section 8.6: MUST NOT
            reply.headers.append((b"content-length", b"%d" % len(reply.body)))
        self._note(entry, len(reply.body))
        return reply

    async def stream(self, request: HttpRequest, stream: WebSocketStream) -> HttpReply | None:
        """Serve a WebSocket; a `HttpReply` is for a handshake that is refused, or for one that was to be answered."""
        entry = _Entry()
        try:
            rows, path = self._find(request)
            row = self._row(rows, request, entry)
            if not row.endpoint.websocket:
                raise Malformed("no WebSocket is served here")
            call = await self._call(row, path, request, entry, [], stream)
            await row.endpoint.handler(self._services, call)
            await stream.close()
        except StreamClosed:
            entry.code = "closed"
        except Exception as error:
            return self._refuse(error, entry)
        finally:
            self._note(entry, 0)
        return None

    # --- route ----------------------------------------------------------------------------------------------------

    def _find(self, request: HttpRequest) -> tuple[dict[str, _Row], dict[str, str]]:
        """Return the rows of a path by method, and what stands where they have braces."""
        if self._hosts is not None and _host(request.headers) not in self._hosts:
            raise Malformed("this listener is not known by that Host")
        if found := self._exact.get(request.path):
            return found, {}
        segments = request.path.split(b"/")
        for pattern, rows in self._patterns.items():
            values = _match(pattern, segments)
            if values is not None:
                return rows, values
        raise NotFound

    def _row(self, rows: Mapping[str, _Row], request: HttpRequest, entry: _Entry) -> _Row:
        row = rows.get("GET" if request.method == "HEAD" else request.method)
        if row is None:
            raise MethodNotAllowed
        entry.route, entry.unlinkable = row.endpoint.name, row.endpoint.unlinkable
        return row

    # --- one row --------------------------------------------------------------------------------------------------

    async def _answer_row(
        self,
        row: _Row,
        path: Mapping[str, str],
        request: HttpRequest,
        entry: _Entry,
        stamped: list[tuple[bytes, bytes]],
    ) -> HttpReply:
        endpoint = row.endpoint
        if endpoint.websocket:
            raise Malformed("a WebSocket handshake is wanted here")
        call = await self._call(row, path, request, entry, stamped, None)
        answer = await endpoint.handler(self._services, call)
        if not isinstance(answer, Answer):
            answer = Answer(answer)
        headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
        status = int(answer.status or endpoint.status)
        if endpoint.answer is None:
            return HttpReply(status, headers)
        if not any(name == b"content-type" for name, _ in headers):
            headers.append((b"content-type", endpoint.answer.media_type.encode()))
        return HttpReply(status, headers, endpoint.answer.write(answer.body))

    async def _call(
        self,
        row: _Row,
        path: Mapping[str, str],
        request: HttpRequest,
        entry: _Entry,
        stamped: list[tuple[bytes, bytes]],
        stream: WebSocketStream | None,
    ) -> Call[Any]:
        """Admit the caller, then read and decode: a stranger's body is not even received."""
        caller = await self._admit(row.endpoint.access, request.headers, request.names)
        stamped.extend(self._stamp(caller))
        self._demand(caller, row.endpoint)
        if isinstance(caller, Follower):
            entry.peer = caller.provider
        query = _query(request.query, row.endpoint.query) if request.query and row.endpoint.query else {}
        body: object = stream
        if row.endpoint.request is not None:
            _check_media_type(request.headers, row.endpoint.request)
            octets = await self._read(row, request)
            entry.received = len(octets)
            if len(octets) > LONG_OCTETS:  # a hostile one takes about a second for each MiB
                body = await trio.to_thread.run_sync(_decode, row.endpoint.request, octets, limiter=self._decoding)
            else:
                body = _decode(row.endpoint.request, octets)
        return Call(body, caller, path, query, request.headers)

    async def _read(self, row: _Row, request: HttpRequest) -> bytes:
        """Receive the body, however it is framed; stop at the first octet too many."""
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:18]) > row.limit:
            raise TooLarge(row.endpoint.limit, int(declared[:18]))
        octets, more = await request.receive()
        if more:  # or is this the end? Nearly always; the listener bounds a single wait
            piece, more = await request.receive()
            octets += piece
        if more:
            try:
                with trio.fail_after(self._body_seconds):
                    octets = await _read_on(row, request, octets)
            except trio.TooSlowError:
                raise TimedOut from None
        if len(octets) > row.limit:
            raise TooLarge(row.endpoint.limit, len(octets))
        return octets

    # --- the end --------------------------------------------------------------------------------------------------

    def _refuse(self, error: Exception, entry: _Entry) -> HttpReply:
        refusal = problems.classify(error)
        entry.code = refusal.code
        reply = problems.reply(refusal)
        if isinstance(refusal, Internal):
            self._telemetry.log.error("a handler failed", route=entry.route, id=entry.id, exc_info=error)
            reply.headers.append((REQUEST_ID.encode(), entry.id.encode()))
        elif error.__cause__ is not None:
            self._telemetry.log.debug("refused", route=entry.route, id=entry.id, cause=repr(error.__cause__))
        return reply

    def _note(self, entry: _Entry, sent: int) -> None:
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


async def _read_on(row: _Row, request: HttpRequest, first: bytes) -> bytes:
    pieces, size, more = [first], len(first), True
    while more:
        piece, more = await request.receive()
        pieces.append(piece)
        size += len(piece)
        if size > row.limit:
            raise TooLarge(row.endpoint.limit, size)
    return b"".join(pieces)


def _decode(body: Body[Any], octets: bytes) -> object:
    try:
        return body.read(octets)
    except WireError as error:
        raise Malformed(str(error.within(body.schema))) from None
    except MimiError:
        raise
    except (ValueError, RecursionError) as error:  # deep JSON recurses
        raise Malformed(f"not {body.schema}") from error


def _check_media_type(headers: Mapping[str, str], body: Body[Any]) -> None:
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != body.media_type:
        raise UnsupportedMediaType(f"{body.media_type} is wanted")


def _query(query: bytes, known: tuple[str, ...]) -> dict[str, str]:
    """Return the known keys of a query; others are ignored."""
    if len(query) > QUERY_BYTES:
        raise Malformed("the query is too long")
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS)
    except ValueError as error:
        raise Malformed("the query is not readable") from error
    return {name: value for name, value in pairs if name in known}


def _match(pattern: tuple[bytes, ...], segments: list[bytes]) -> dict[str, str] | None:
    """Return what stands where the pattern has braces, decoded; None if it does not fit."""
    if len(pattern) != len(segments):
        return None
    values: dict[str, str] = {}
    for wanted, given in zip(pattern, segments, strict=True):
        if wanted.startswith(b"{"):
            try:
                values[wanted[1:-1].decode()] = unquote_to_bytes(given).decode()
            except UnicodeDecodeError:
                return None
            if not given:
                return None
        elif wanted != given:
            return None
    return values


def _allow(rows: Mapping[str, _Row]) -> bytes:
    methods = {*rows, "OPTIONS"} | ({"HEAD"} if "GET" in rows else set())
    return ", ".join(sorted(methods)).encode()


def _host(headers: Mapping[str, str]) -> str:
    """Return the name in Host, without its port."""
    host = headers.get("host", "").lower()
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
