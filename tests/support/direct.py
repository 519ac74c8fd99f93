"""Any ASGI application as a `DirectApp`, so that tests of the ASGI path run on the direct path, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mimids.http.server.connection import EXTENSION, ASGIApp
from mimids.http.server.listener_state import ConnectionInfo
from mimids.http.server.messages import DirectApp, HttpReply, HttpRequest

if TYPE_CHECKING:
    import trio


def as_direct(app: ASGIApp, draining: trio.Event) -> DirectApp:
    """Return an application that answers plain requests by `app`; an answer is sent when `app` has returned."""

    async def answer(request: HttpRequest) -> HttpReply:
        sent: list[Any] = []

        async def receive() -> Any:
            piece, more = await request.receive()
            return {"type": "http.request", "body": piece, "more_body": more}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(_scope(request, draining), receive, send)
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return HttpReply(sent[0]["status"], list(sent[0]["headers"]), body)

    return DirectApp(app, answer)


def _scope(request: HttpRequest, draining: trio.Event) -> dict[str, Any]:
    info = ConnectionInfo("public", None, request.names, draining, request.holding)
    return {
        "type": "http",
        "method": request.method,
        "raw_path": request.path,
        "path": request.path.decode(),
        "query_string": request.query,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in request.headers.items()],
        "client": (request.address, 0),
        "extensions": {EXTENSION: info},
    }
