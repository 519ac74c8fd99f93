"""An input: what a hostile client sends, again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs

from bench.raw_client import Connection, request
from mimids.http.api.bodies import NO_BODY
from mimids.http.api.endpoints import AnyEndpoint

Sender = Callable[[Connection, int], int]


@attrs.frozen
class Input:
    """One input of one endpoint; `send` sends it for the n-th time and returns the status of the answer.

    `messages` is how many requests or frames that is. `bounded_by` names the quota that lets a caller send such an
    input only a few times.
    """

    endpoint: str
    caller: str
    name: str
    send: Sender
    messages: int = 1
    bounded_by: str = ""


def posts(
    caller: str,
    host: str,
    endpoint: str,
    path: str,
    bodies: Mapping[str, Callable[[int], bytes]],
    *headers: str,
    method: str = "POST",
    media_type: str = "application/mimi-ds",
    bounded_by: str = "",
) -> Iterator[Input]:
    """Return an input for each body of an endpoint."""
    for name, body in bodies.items():

        def send(connection: Connection, number: int, body: Callable[[int], bytes] = body) -> int:
            return connection.ask(request(method, path, host, body(number), *headers, media_type=media_type))

        yield Input(endpoint, caller, name, send, bounded_by=bounded_by)


def asks(caller: str, endpoint: str, requests: Mapping[str, Callable[[int], bytes]]) -> Iterator[Input]:
    """Return an input for each whole request."""
    for name, make in requests.items():

        def send(connection: Connection, number: int, make: Callable[[int], bytes] = make) -> int:
            return connection.ask(make(number))

        yield Input(endpoint, caller, name, send)


def covered_endpoints(rows: Iterable[AnyEndpoint]) -> set[str]:
    """Return the names of the endpoints that must have inputs: those that take a body."""
    return {row.name for row in rows if row.request is not NO_BODY}
