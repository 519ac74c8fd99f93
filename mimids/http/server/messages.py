"""Requests and answers of HTTP, independent of the server, and the applications that answer them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import attrs

from mimids.http.server.holding import Holding
from mimids.wire.ids import ProviderId


class StreamClosed(Exception):
    """The other side of a request or WebSocket has closed the connection or the WebSocket."""


@attrs.frozen
class HttpRequest:
    """A request whose body has not been read: `receive` returns the next piece, and whether there are more.

    If the body does not arrive, the handler is cancelled, or `receive` raises `StreamClosed`.
    """

    method: str
    path: bytes  # percent-encoded, as the client sent it, without the query
    query: bytes
    headers: Mapping[str, str]  # lower-case names; the values of a repeated header are joined by ", "
    names: frozenset[ProviderId] | None  # the providers that the client certificate is valid for; None without one
    receive: Callable[[], Awaitable[tuple[bytes, bool]]]
    address: str = ""  # the IP address of the client; empty on a Unix socket
    holding: Holding = attrs.field(factory=Holding)  # the connection's part of the shared pools
    user: int | None = None  # on a Unix socket: the user of the operating system that connected


@attrs.frozen
class HttpReply:
    """An answer; header names are in lower case."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""


def _no_headers(_: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return []


@attrs.frozen
class DirectApp:
    """An ASGI application that also answers requests without ASGI: `answer` is for plain requests (plain_requests.py).

    `answer` treats a request as `asgi` does. An exception that it raises is logged and answered with a 500. When the
    listener is full, the listener itself answers. The listener's answer has the headers that `headers` returns for the
    headers of the request.
    """

    asgi: Callable[[Any, Any, Any], Awaitable[None]]
    answer: Callable[[HttpRequest], Awaitable[HttpReply]]
    headers: Callable[[Mapping[str, str]], list[tuple[bytes, bytes]]] = _no_headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request or WebSocket as an ASGI application."""
        await self.asgi(scope, receive, send)


def join_headers(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by name; `fields` have lower-case names."""
    headers: dict[str, str] = {}
    for name_, value_ in fields:
        name, value = name_.decode("latin-1"), value_.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
