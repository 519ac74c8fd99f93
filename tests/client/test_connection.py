"""Connections of a device: they are reused, and a failed handshake leaves no socket open."""

from __future__ import annotations

import socket
import ssl
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Event, Thread
from typing import Any, Literal

import anyio
import anyio.to_thread
import pytest

from mimids.client.connection import Connection
from mimids.wire.ids import Secret


class Mute:
    """Accepts one connection and sends nothing; has events for the first data and for the end."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listening.getsockname()[1]}"
        self.greeted, self.left = Event(), Event()
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with closing(self._listening), closing(self._listening.accept()[0]) as stream, suppress(OSError):
            while stream.recv(4096):
                self.greeted.set()
        self.left.set()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_request_cancelled_during_the_handshake_leaves_no_socket_open(
    backend: Literal["trio", "asyncio"],
) -> None:
    provider = Mute()

    async def ask() -> None:
        connection = Connection(provider.url, Secret(b"token"), ssl.create_default_context(), timeout_seconds=30)
        async with anyio.create_task_group() as asking:
            asking.start_soon(connection.exchange, "GET", "me")
            assert await anyio.to_thread.run_sync(provider.greeted.wait, 10)
            asking.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(provider.left.wait, 10)
        await connection.close()

    anyio.run(ask, backend=backend)


AT_ONCE = 50


class Counting(ThreadingHTTPServer):
    """Answers requests when there are `AT_ONCE` of them, and counts connections."""

    request_queue_size = AT_ONCE
    daemon_threads = True
    taken = 0

    def get_request(self) -> tuple[socket.socket, Any]:
        self.taken += 1
        return super().get_request()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    together = Barrier(AT_ONCE)

    def do_GET(self) -> None:
        self.together.wait(10)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


async def test_concurrent_requests_have_a_connection_each_and_later_ones_reuse_them() -> None:
    with Counting(("127.0.0.1", 0), Answer) as provider:
        Thread(target=provider.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{provider.server_address[1]}"
        connection = Connection(url, Secret(b"token"), ssl.create_default_context(), timeout_seconds=30)
        for _ in range(3):
            async with anyio.create_task_group() as asking:
                for _ in range(AT_ONCE):
                    asking.start_soon(connection.exchange, "GET", "me")
        await connection.close()
        provider.shutdown()
    assert provider.taken == AT_ONCE
