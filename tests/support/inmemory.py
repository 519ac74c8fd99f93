"""Requests to an ASGI application in memory, as a listener would pass them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import attrs
import trio

from mimids.http.api.asgi import Message, Receive, Scope, Send
from mimids.http.server.connection import ASGIApp
from mimids.http.server.listener_state import ConnectionInfo
from mimids.wire.ids import ProviderId


@attrs.frozen
class Answered:
    """An answer with its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """The code of the problem; fails if the answer is not a problem document."""
        assert self.headers["content-type"] == "application/problem+json", (self.status, self.body)
        document = json.loads(self.body)
        assert document["status"] == self.status
        return str(document["type"]).rpartition(":")[2].rpartition("#")[2]

    def json(self) -> Any:
        return json.loads(self.body)


class InMemory:
    """A client of `app` with a certificate for `names` (None: without a certificate)."""

    def __init__(self, app: ASGIApp, names: Iterable[str] | None = None) -> None:
        self._app = app
        self._names = None if names is None else frozenset(map(ProviderId, names))

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes | Sequence[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answered:
        """Exchange one request; a body in pieces is chunked, without Content-Length."""
        sent = {"host": "localhost", **(headers or {})}
        pieces = list(body) if not isinstance(body, bytes) else [body]
        if isinstance(body, bytes) and (body or method in ("POST", "PUT")):
            sent.setdefault("content-length", str(len(body)))
        messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        messages.append({"type": "http.request", "body": b"", "more_body": False})
        scope = self._scope("http", target, sent) | {"method": method}
        answer: list[Message] = []
        answered = trio.Event()

        async def receive() -> Message:
            await trio.lowlevel.checkpoint()
            if messages:
                return messages.pop(0)
            await answered.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            await trio.lowlevel.checkpoint()
            answer.append(message)
            if message["type"] == "http.response.body" and not message["more_body"]:
                answered.set()

        await self._app(scope, receive, send)
        start, *rest = answer
        received = {name.decode(): value.decode() for name, value in start["headers"]}
        content = b"".join(message["body"] for message in rest)
        assert received.get("content-length") == (None if start["status"] == 204 else str(len(content)))
        return Answered(start["status"], received, content)

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def websocket(self, target: str, headers: Mapping[str, str] | None = None, protocols: Sequence[str] = ()) -> Scope:
        sent = {"host": "localhost", **(headers or {})}
        if protocols:
            sent["sec-websocket-protocol"] = ", ".join(protocols)
        return self._scope("websocket", target, sent) | {"subprotocols": list(protocols)}

    def _scope(self, kind: str, target: str, headers: Mapping[str, str]) -> dict[str, Any]:
        path, _, query = target.partition("?")
        return {
            "type": kind,
            "http_version": "1.1",
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "extensions": {"mimids": ConnectionInfo("test", None, self._names, trio.Event())},
        }
