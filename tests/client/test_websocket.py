"""A device's WebSocket: a failed handshake leaves no socket open."""

from __future__ import annotations

import ssl
from functools import partial

import pytest
import trio
import trio.testing

from mimids.client.connection import Address, Unreachable
from mimids.client.websocket import open_websocket
from mimids.wire.ids import Secret
from tests.support.patience import patience

NO_TLS = b"HTTP/1.1 400 Bad Request\r\n\r\n"


class Listener:
    """Accepts connections and answers with given bytes; `left` is set when the client disconnects."""

    def __init__(self, answer: bytes | None) -> None:
        self.left = trio.Event()
        self._answer = answer

    async def carry(self, stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if self._answer:
            await stream.send_all(self._answer)
        elif self._answer is not None:
            await stream.send_eof()
        while True:
            try:
                if not await stream.receive_some():
                    break
            except trio.BrokenResourceError:
                break
        self.left.set()


@pytest.mark.parametrize("answer", [b"", NO_TLS, None], ids=["hangs up", "speaks no TLS", "says nothing"])
async def test_a_handshake_that_fails_leaves_no_socket_open(
    answer: bytes | None, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    listener = Listener(answer)
    (listening,) = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), listener.carry, 0)
    autojump_clock.autojump_threshold = 0.05  # sockets take part
    address = Address(f"https://127.0.0.1:{_port(listening)}", Secret(b"token"), ssl.create_default_context(), 5.0)
    with pytest.raises(Unreachable):
        async with open_websocket(address, "/"):
            raise AssertionError("there is nobody to talk to")
    with patience():  # what was raised still holds the stream, so that nobody else closes it
        await listener.left.wait()
    nursery.cancel_scope.cancel()


def _port(listening: trio.SocketListener) -> int:
    return int(listening.socket.getsockname()[1])
