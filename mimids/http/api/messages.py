"""Requests and answers in HTTP's own terms, whatever server carries them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import attrs

from mimids.wire.ids import ProviderId


@attrs.frozen
class HttpRequest:
    """A request whose body has not been read: `receive` returns the next piece, and whether there are more."""

    method: str
    path: bytes  # as it was sent, percent-encoded, without the query
    query: bytes
    headers: Mapping[str, str]  # lower-case names; the values of a repeated header are joined by ", "
    names: frozenset[ProviderId] | None  # the providers that the client certificate is valid for; None without one
    receive: Callable[[], Awaitable[tuple[bytes, bool]]]


@attrs.frozen
class HttpReply:
    """An answer; header names are in lower case."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
