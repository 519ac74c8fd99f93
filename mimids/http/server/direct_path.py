"""The direct path: plain requests are answered in the task of their connection, without Hypercorn and ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from mimids.http.server.buffers import UNCOUNTED_OCTETS
from mimids.http.server.listener_state import ConnectionInfo, ListenerState
from mimids.http.server.messages import HttpReply, HttpRequest
from mimids.http.server.plain_requests import PlainBody, PlainHead, encode_reply, parse_head
from mimids.http.server.transport import PeerGone
from mimids.owners import WORKING_FOR

Answer = Callable[[HttpRequest], Awaitable[HttpReply]]

HEAD_KEPT_OCTETS: Final = 1024  # a longer head is not kept for the next request


class Carrier(Protocol):
    """What the direct path needs of its connection."""

    def begin_request(self) -> bool:
        """Record that a request begins; return whether it is the last request that this connection may have.

        Raises `PeerGone` if the peer's certificate is not trusted any more.
        """

    def end_request(self) -> None:
        """Record that the request is answered."""

    async def receive(self, most: int) -> bytes:
        """Wait for about `most` octets; return no octets at the end of the stream.

        Raise `PeerGone` if the peer is gone.
        """

    async def send(self, data: bytes) -> None:
        """Send octets; nothing is sent once the peer is gone."""

    async def refuse(self, status: int) -> None:
        """Answer with this status and no body."""

    def end_reading(self) -> None:
        """Receive no more; the connection is closed once the peer has read the answer."""

    def watch_peer(self) -> None:
        """Receive in another task until the next `receive`, and cancel the connection if the peer disconnects."""


class DirectPath:
    """Answers the plain requests of one connection by `answer`."""

    def __init__(
        self, answer: Answer, carrier: Carrier, shared: ListenerState, info: ConnectionInfo, address: str
    ) -> None:
        self._answer = answer
        self._carrier = carrier
        self._shared = shared
        self._info = info
        self._address = address
        self._last: tuple[bytes, PlainHead] | None = None  # the octets of the last head, and the parsed head

    async def serve(self, received: bytes) -> bytes:
        """Answer the plain requests at the beginning of `received`; return the rest, which is for Hypercorn's protocol.

        If the connection is to be closed, nothing is returned.
        """
        while received:
            head = self._parse_head(received)
            if head is None:
                break
            received = received[head.octets :]
            next_octets = len(received) - head.length
            if next_octets <= UNCOUNTED_OCTETS:
                received = await self._serve_one(head, received)
            else:
                with self._info.holding.keep(next_octets) as kept:
                    received = await self._serve_one(head, received) if kept else b""
                if not kept:
                    self._carrier.end_reading()
            if received:
                await trio.lowlevel.checkpoint()
        return received

    def _parse_head(self, received: bytes) -> PlainHead | None:
        """Return the head of the plain request at the beginning of `received`, as `parse_head` does.

        Repeated requests often have the same head, which is parsed only once.
        """
        if self._last is not None and received.startswith(self._last[0]):
            return self._last[1]
        head = parse_head(received, self._shared.limits.head_bytes)
        if head is not None and head.octets <= HEAD_KEPT_OCTETS:
            self._last = received[: head.octets], head
        return head

    async def _serve_one(self, head: PlainHead, received: bytes) -> bytes:
        """Answer one request; return what was received after it."""
        carrier, shared = self._carrier, self._shared
        body = PlainBody(received, head.length, carrier, shared.limits)
        is_last = carrier.begin_request()
        shared.busy.begin(body)
        try:
            await shared.turns.wait(self._info.holding.owner)
            reply = await self._reply(self._request(head, body), body)
            closes = is_last or shared.draining.is_set() or not body.is_complete
            octets = b"" if reply is None else self._encode(reply, closes=closes)
        except Exception as error:
            shared.log_fault("a handler failed", ExceptionGroup("", [error]))
            return await self._refuse(500)
        finally:
            shared.busy.end(body)
            WORKING_FOR.set(None)  # the endpoint table sets it again for the next caller
        if reply is None:
            if not body.timed_out:
                raise PeerGone
            shared.tally.timed_out += 1
            return await self._refuse(408)
        await carrier.send(octets)
        self._info.holding.give_back()
        if closes or shared.draining.is_set():  # draining may have begun while the peer read the answer
            carrier.end_reading()
            return b""
        carrier.end_request()
        return body.rest()

    async def _reply(self, request: HttpRequest, body: PlainBody) -> HttpReply | None:
        """Return the answer; None if the body did not arrive."""
        if body.is_complete:
            return await self._answer(request)
        with trio.CancelScope() as body.handler:
            return await self._answer(request)
        return None

    def _encode(self, reply: HttpReply, *, closes: bool) -> bytes:
        more = self._shared.settings.response_headers("h11")
        return encode_reply(reply, [(b"connection", b"close"), *more] if closes else more)

    async def _refuse(self, status: int) -> bytes:
        self._info.holding.give_back()
        await self._carrier.refuse(status)
        self._carrier.end_reading()
        return b""

    def _request(self, head: PlainHead, body: PlainBody) -> HttpRequest:
        path, _, query = head.target.partition(b"?")
        info = self._info
        return HttpRequest(
            head.method, path, query, head.headers, info.names, body.receive, self._address, info.holding, info.user
        )
