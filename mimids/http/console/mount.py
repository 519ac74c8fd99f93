"""Puts the console beside the endpoints of the operator listener, under `/console`.

Quart and the console are imported when the first page is asked for: a provider whose console nobody opens starts
faster and needs less memory. The import takes a while, so it runs in a thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Final
from urllib.parse import urlsplit

import trio

from mimids.ds.services import Services
from mimids.http.api.asgi import Receive, Scope, Send

PREFIX: Final = b"/console"

Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def with_console(endpoints: Application, services: Services) -> Application:
    """Return an application that serves the console under `/console`, and `endpoints` elsewhere."""
    loading = trio.Lock()
    console: Application | None = None

    async def load() -> Application:
        nonlocal console
        async with loading:
            if console is None:
                module = await trio.to_thread.run_sync(import_module, "mimids.http.console.app")
                console = module.make_console(services)
        return console

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_below(scope["raw_path"]):
            await (console or await load())(scope, receive, send)
        else:
            await endpoints(scope, receive, send)

    return serve


def _is_below(target: bytes) -> bool:
    path = target if target.startswith(b"/") else urlsplit(target).path  # the absolute form: RFC 9112 section 3.2.2
    return path == PREFIX or path.startswith(PREFIX + b"/")
