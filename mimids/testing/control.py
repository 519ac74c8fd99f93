"""The control connection from a test to a process that it started: lines of JSON over a socket pair.

The test sends requests, and the process sends one answer to each. When the test's end closes, the process exits.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn

import trio

ANSWER_SECONDS: Final = 30
_PIECE: Final = 65_536

Json = dict[str, Any]


class NotAnswering(Exception):
    """The process has ended, is stopped, or does not run yet."""


class Control:
    """The test's end of the connection. Any thread may use it."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._buffer = b""
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any]) -> Json:
        """Send a request and return the answer; raise `NotAnswering` if none comes."""
        with self._lock:
            try:
                self._socket.settimeout(ANSWER_SECONDS)
                self._socket.sendall(_line(request))
                return self._read(ANSWER_SECONDS)
            except OSError as error:
                raise NotAnswering(str(error) or type(error).__name__) from error

    def send_start(self, start: Mapping[str, Any]) -> None:
        """Tell the process what to run. When that runs, the process sends a message, which `wait_message` returns."""
        with self._lock:
            self._socket.settimeout(ANSWER_SECONDS)
            self._socket.sendall(_line(start))

    def wait_message(self, seconds: float) -> Json | None:
        """Return the next message that the process sends unasked, None after `seconds`.

        Raises `NotAnswering` if the process has ended.
        """
        with self._lock:
            try:
                return self._read(seconds)
            except TimeoutError:
                return None
            except OSError as error:
                raise NotAnswering(str(error) or type(error).__name__) from error

    def close(self) -> None:
        """Close the connection, which ends the process."""
        self._socket.close()

    def _read(self, seconds: float) -> Json:
        give_up_at = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(give_up_at - time.monotonic(), 0.001))
            piece = self._socket.recv(_PIECE)
            if not piece:
                raise ConnectionResetError("the process has ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: Json = json.loads(line)
        return message


def read_start(connected: socket.socket) -> Json:
    """Return the test's first message, which says what the process must run."""
    line = b""
    while not line.endswith(b"\n"):
        piece = connected.recv(_PIECE)
        if not piece:
            os._exit(0)
        line += piece
    start: Json = json.loads(line)
    return start


def send_message(connected: socket.socket, message: Mapping[str, Any]) -> None:
    """Send the test a message that it did not ask for."""
    connected.sendall(_line(message))


async def serve_requests(connected: socket.socket, handle: Callable[[Json], Awaitable[Json]]) -> NoReturn:
    """Answer the test's requests one after the other; end the process when the test closes the connection."""
    connected.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
    buffer = b""
    while True:
        piece = await stream.receive_some(_PIECE)
        if not piece:
            os._exit(0)
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            await stream.send_all(_line(await handle(json.loads(line))))


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
