"""The process of the links between providers: it forwards bytes, and can delay, stall or cut connections.

For each ordered pair of providers there is a port: the first provider has it as the URL of the second. The bytes are
TLS, so a link can do what a network can do: be slow, stall, or break.
"""

from __future__ import annotations

import socket
import struct
from functools import partial
from typing import Final, Literal

import attrs
import trio

from mimids.testing.control import Json, send_message, serve_requests

_PIECE: Final = 65_536
_RESET: Final = struct.pack("ii", 1, 0)

Flow = Literal["open", "stalled", "cut"]


@attrs.define(eq=False)
class _Link:
    """Forwards from one port to another, and delays each piece by `delay` seconds."""

    port: int
    target: int
    flow: Flow = "open"
    delay: float = 0.0
    changed: trio.Event = attrs.field(factory=trio.Event)
    connections: set[trio.CancelScope] = attrs.field(factory=set)

    def change(self, flow: Flow, delay: float) -> None:
        self.flow, self.delay = flow, delay
        changed, self.changed = self.changed, trio.Event()
        changed.set()
        if flow == "cut":
            for connection in self.connections:
                connection.cancel()

    async def forward(self, near: trio.SocketStream) -> None:
        """Serve one connection until either side ends it or the link is cut."""
        far: trio.SocketStream | None = None
        ordered = False
        connection = trio.CancelScope()
        self.connections.add(connection)
        try:
            with connection:
                if self.flow == "cut":
                    return
                await self._wait_open()
                far = await _connect(self.target)
                async with trio.open_nursery() as both:
                    both.start_soon(self._pump, near, far)
                    both.start_soon(self._pump, far, near)
                ordered = True
        except* OSError:  # the target does not run
            pass
        except* trio.BrokenResourceError:
            pass
        finally:
            self.connections.discard(connection)
            for stream in (near, far):
                if stream is not None:
                    _close(stream, abruptly=not ordered)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        while piece := await source.receive_some(_PIECE):
            await trio.sleep(self.delay)
            await self._wait_open()
            await sink.send_all(piece)
        await self._wait_open()
        await sink.send_eof()

    async def _wait_open(self) -> None:
        while self.flow == "stalled":
            await self.changed.wait()


async def _connect(port: int) -> trio.SocketStream:
    connecting = trio.socket.socket()
    try:
        await connecting.connect(("127.0.0.1", port))
    except BaseException:
        connecting.close()
        raise
    return trio.SocketStream(connecting)


def _close(stream: trio.SocketStream, *, abruptly: bool) -> None:
    if abruptly:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    stream.socket.close()


def main(start: Json, control: socket.socket) -> int:
    """Run the links; `start` has port and target of each link by name."""
    trio.run(_run, {name: _Link(port, target) for name, (port, target) in start.items()}, control)
    return 0


async def _run(links: dict[str, _Link], control: socket.socket) -> None:
    async def handle(request: Json) -> Json:
        links[request["link"]].change(request["flow"], request["delay"])
        return {}

    async with trio.open_nursery() as nursery:
        for link in links.values():
            listen = partial(trio.serve_tcp, link.forward, link.port, host="127.0.0.1")
            await nursery.start(listen)
        send_message(control, {"ready": True})
        await serve_requests(control, handle)
