"""Endpoints as data.

Routing, decoding, authentication, the directory, the reference in docs/http.md and the tests of bad input are all made
from these records. A handler is an async function that gets the services and a `Call`, and returns the answer. mypy
checks that its caller, body and answer have the types of its endpoint. Nothing here depends on a web framework.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from http import HTTPStatus
from typing import Any, Generic, TypeAlias, TypeVar

import attrs

from mimids.ds.ports import Reserve, no_reserve
from mimids.ds.services import Services
from mimids.errors import MimiError
from mimids.http.api.bodies import WEBSOCKET, Body, NoBody
from mimids.values import Caller

In = TypeVar("In")
Out = TypeVar("Out")
CallerT = TypeVar("CallerT", bound=Caller)


class Listener(Enum):
    """Where an endpoint is served (http: listeners)."""

    PUBLIC = "public"
    CLIENT = "client"
    OPERATOR = "operator"


@attrs.frozen
class Call(Generic[CallerT, In]):
    """One request, authenticated and decoded."""

    caller: CallerT
    body: In
    path: Mapping[str, str] = attrs.field(factory=dict)  # the values of the parts in braces, percent-decoded
    query: Mapping[str, str] = attrs.field(factory=dict)  # only the keys that the endpoint names
    headers: Mapping[str, str] = attrs.field(factory=dict)  # lower-case names
    address: str = ""  # the IP address of the client; empty on a Unix socket
    # Reserves octets of the budget for the answer. A handler calls it before an effect that cannot be repeated.
    reserve: Reserve = no_reserve
    user: int | None = None  # on a Unix socket: the user of the operating system that connected


@attrs.frozen
class Answer(Generic[Out]):
    """An answer with its own headers or status. Most handlers return just the body."""

    body: Out
    status: int | None = None  # an int, since the relay passes on statuses that `HTTPStatus` does not know
    headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Endpoint(Generic[CallerT, In, Out]):
    """One endpoint.

    `caller` says who may call it: `Anyone`, a `Follower` (a client certificate names it, http: between-providers), a
    `Device` (Authorization: Bearer DEVICE_TOKEN, http: devices) or the `Operator` (http: operator).

    `limit` names the key of `[limits]` that bounds the request body, in octets. `problems` are this endpoint's own
    errors, besides the errors with which every endpoint may answer. Requests of an `unlinkable` endpoint (gateway,
    relay) are counted, but not logged. An endpoint that `waits` honours `Prefer: wait`. `counts_as` returns the number
    of requests that a body counts as; without `counts_as`, each body counts as one.
    """

    name: str
    listener: Listener
    method: str
    path: str
    caller: type[CallerT]
    request: Body[In] | NoBody[In]
    answer: Body[Out] | NoBody[Out]
    handler: Callable[[Services, Call[CallerT, In]], Awaitable[Out | Answer[Out]]]
    summary: str
    limit: str = "max_body_bytes"
    status: HTTPStatus = HTTPStatus.OK
    query: tuple[str, ...] = ()
    problems: tuple[type[MimiError], ...] = ()
    open_without_arrangement: bool = False  # callers need not have accepted our terms (semantics: terms-and-reports)
    unlinkable: bool = False
    waits: bool = False
    counts_as: Callable[[In], int] | None = None

    @property
    def request_body(self) -> Body[In] | None:
        """Return the body of a request, None if there is none."""
        return self.request if isinstance(self.request, Body) else None

    @property
    def answer_body(self) -> Body[Out] | None:
        """Return the body of an answer, None if there is none."""
        return self.answer if isinstance(self.answer, Body) else None

    @property
    def websocket(self) -> bool:
        """Tell whether the endpoint is a WebSocket."""
        return self.request is WEBSOCKET


# For code that treats all endpoints alike. Don't annotate a table of endpoints with it: mypy would take Any for the
# types of each row and check nothing.
AnyEndpoint: TypeAlias = Endpoint[Any, Any, Any]
