"""A table of endpoints for tests of the code that serves tables: in memory, with its log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from mimids.ds.services import Services
from mimids.errors import PolicyRefused, RateLimited, Unauthenticated
from mimids.http.api.asgi import application
from mimids.http.api.bodies import NO_BODY, WEBSOCKET, WebSocketStream, mimi_ds, octets
from mimids.http.api.cors import NO_PAGES, Cors
from mimids.http.api.endpoints import Answer, AnyEndpoint, Call, Endpoint, Listener
from mimids.http.api.table import Table
from mimids.http.server.messages import StreamClosed
from mimids.values import Anyone, Caller, Device, Follower
from mimids.wire.ids import ProviderId
from mimids.wire.messages import ReceiveRequest, ResumeRequest
from tests.support.doubles import SpyLog
from tests.support.inmemory import InMemory

OCTETS = octets("application/octet-stream")
PLAIN = {"content-type": "application/octet-stream"}
RECEIVE = mimi_ds(ReceiveRequest)
LIMIT = 100


class Handlers:
    """The handlers of the rows below; `calls` are the calls that reached them."""

    def __init__(self) -> None:
        self.calls: list[Call[Any, Any]] = []
        self.stream_closed = False

    async def echo(self, _: object, call: Call[Any, bytes]) -> bytes:
        self.calls.append(call)
        return call.body

    async def take(self, _: object, call: Call[Any, Any]) -> None:
        self.calls.append(call)

    async def refuse(self, _: object, call: Call[Any, Any]) -> None:
        raise PolicyRefused("muted in this fork", rule="muted", section="semantics: policy")

    async def limit(self, _: object, call: Call[Any, Any]) -> None:
        raise RateLimited("device_sends_per_second", 7)

    async def fail(self, _: object, call: Call[Any, Any]) -> None:
        raise RuntimeError("the secret is 42")

    async def wide(self, _: object, call: Call[Any, Any]) -> Answer[bytes]:
        return Answer(b"wide", headers={"Cache-Control": "no-store"})

    async def chat(self, _: object, call: Call[Any, WebSocketStream]) -> None:
        try:
            while (message := await call.body.receive()) != b"bye":
                await call.body.send(message.upper())
        except StreamClosed:
            self.stream_closed = True
            raise

    async def no_chat(self, _: object, call: Call[Any, WebSocketStream]) -> None:
        raise RateLimited("device_streams", 1)


def rows(handlers: Handlers) -> list[AnyEndpoint]:
    def row(name: str, method: str, path: str, handler: Any, **more: Any) -> AnyEndpoint:
        defaults: dict[str, Any] = {"caller": Anyone, "request": OCTETS, "answer": OCTETS}
        return Endpoint(
            name=name,
            listener=Listener.PUBLIC,
            method=method,
            path=path,
            handler=handler,
            summary="",
            limit="limit",
            **(defaults | more),
        )

    return [
        row("echo", "POST", "/echo", handlers.echo),
        row("receive", "POST", "/receive", handlers.take, request=RECEIVE, answer=NO_BODY),
        row("resume", "PUT", "/receive", handlers.take, request=mimi_ds(ResumeRequest), answer=NO_BODY),
        row("provider", "POST", "/ds/v1/x", handlers.take, caller=Follower, answer=NO_BODY),
        row("device", "POST", "/client/v1/x", handlers.take, caller=Device, answer=NO_BODY),
        row(
            "item",
            "GET",
            "/groups/{group}/items/{item}",
            handlers.take,
            request=NO_BODY,
            answer=NO_BODY,
            query=("bundle",),
        ),
        row("refuse", "GET", "/refuse", handlers.refuse, request=NO_BODY),
        row("limit", "GET", "/limit", handlers.limit, request=NO_BODY, caller=Follower),
        row("fail", "GET", "/fail", handlers.fail, request=NO_BODY),
        row("wide", "GET", "/wide", handlers.wide, request=NO_BODY),
        row("gateway", "POST", "/gateway", handlers.echo, unlinkable=True),
        row("chat", "GET", "/chat", handlers.chat, request=WEBSOCKET, answer=NO_BODY, caller=Device),
        row("no-chat", "GET", "/no-chat", handlers.no_chat, request=WEBSOCKET, answer=NO_BODY),
    ]


class Rig:
    """The rows above in memory, with their log."""

    def __init__(self, *, hosts: frozenset[str] | None = None, body_seconds: float = 5, cors: Cors = NO_PAGES) -> None:
        self.handlers = Handlers()
        self.log = SpyLog()

        async def admit(kind: type[Caller], headers: Any, names: Any) -> Caller:
            if kind is Follower:
                return Follower(ProviderId("b.example"))
            if kind is Device and headers.get("authorization") != "Bearer good":
                raise Unauthenticated
            return Anyone()

        def stamp(caller: Caller) -> Sequence[tuple[bytes, bytes]]:
            return [(b"mimids-arrangement-revision", b"7")] if isinstance(caller, Follower) else []

        self.app = application(
            Table(
                rows(self.handlers),
                cast("Services", None),
                limits={"limit": LIMIT},
                admit=admit,
                telemetry=self.log.telemetry,
                body_seconds=body_seconds,
                stamp=stamp,
                hosts=hosts,
                cors=cors,
            )
        )
        self.ask = InMemory(self.app).ask

    @property
    def last(self) -> dict[str, Any]:
        """The last request's log line."""
        return [line for line in self.log.lines if line["event"] == "request"][-1]
