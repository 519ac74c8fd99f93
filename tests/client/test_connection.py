"""What a device's requests stand on: nothing is left open of a connection that never came to be."""

from __future__ import annotations

import socket
import ssl
from contextlib import closing, suppress
from threading import Event, Thread
from typing import Literal

import anyio
import anyio.to_thread
import pytest

from mimids.client.connection import Connection
from mimids.wire.ids import Secret


class Mute:
    """Takes one connection and says nothing; tells when it was greeted, and when it was hung up on."""

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
def test_a_request_that_is_cancelled_in_its_handshake_leaves_no_socket_open(
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
