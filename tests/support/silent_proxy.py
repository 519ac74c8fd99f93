"""A proxy before the tests' PostgreSQL that can stop passing octets on, while its connections stay open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from urllib.parse import unquote

import trio


class SilentProxy:
    """`url` leads through the proxy."""

    def __init__(self, url: str) -> None:
        name, _, directory = url.partition("@/")[2].partition("?host=")
        self._socket = f"{unquote(directory)}/.s.PGSQL.5432"
        self._name = name
        self._passing = trio.Event()
        self._passing.set()
        self.url = ""

    def be_silent(self) -> None:
        """Pass nothing on."""
        self._passing = trio.Event()

    def pass_on(self) -> None:
        """Pass everything on again, also what has come meanwhile."""
        self._passing.set()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as serving:
            listeners = await serving.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            self.url = f"postgresql://mimids@127.0.0.1:{port}/{self._name}"
            task_status.started()

    async def _serve(self, near: trio.SocketStream) -> None:
        far = await trio.open_unix_socket(self._socket)
        async with near, far, trio.open_nursery() as both:
            both.start_soon(self._pump, near, far)
            both.start_soon(self._pump, far, near)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for piece in source:
                await self._passing.wait()
                await sink.send_all(piece)
            await sink.aclose()


@asynccontextmanager
async def before(url: str) -> AsyncIterator[SilentProxy]:
    """Run a proxy before a database for the block."""
    proxy = SilentProxy(url)
    async with trio.open_nursery() as jobs:
        await jobs.start(proxy.run)
        yield proxy
        jobs.cancel_scope.cancel()
