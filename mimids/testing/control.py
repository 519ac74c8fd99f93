"""What a test says to a process that it started: lines of JSON over a socket pair, one answer to each request.

The test asks, the process answers. When the test's end is closed, the test is gone, and the process ends too.
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
    """The process has ended, or is stopped, or is not at work yet."""


class Control:
    """The test's end; any thread may ask."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._buffer = b""
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any]) -> Json:
        """Return the answer; raise `NotAnswering`."""
        with self._lock:
            try:
                self._socket.settimeout(ANSWER_SECONDS)
                self._socket.sendall(_line(request))
                return self._read(ANSWER_SECONDS)
            except OSError as error:
                raise NotAnswering(str(error) or type(error).__name__) from error

    def begin(self, start: Mapping[str, Any]) -> None:
        """Say what the process is to be; it answers with `hear` once it is."""
        with self._lock:
            self._socket.settimeout(ANSWER_SECONDS)
            self._socket.sendall(_line(start))

    def hear(self, seconds: float) -> Json | None:
        """Return what the process says by itself, None if it says nothing for so long; raise `NotAnswering`."""
        with self._lock:
            try:
                return self._read(seconds)
            except TimeoutError:
                return None
            except OSError as error:
                raise NotAnswering(str(error) or type(error).__name__) from error

    def close(self) -> None:
        """End it; the process ends too, if it runs."""
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
        said: Json = json.loads(line)
        return said


def first(connected: socket.socket) -> Json:
    """Return what the test says first: what the process is to be."""
    line = b""
    while not line.endswith(b"\n"):
        piece = connected.recv(_PIECE)
        if not piece:
            os._exit(0)
        line += piece
    told: Json = json.loads(line)
    return told


def say(connected: socket.socket, message: Mapping[str, Any]) -> None:
    """Tell the test something unasked, from a process that answers nothing yet."""
    connected.sendall(_line(message))


async def answer(connected: socket.socket, handle: Callable[[Json], Awaitable[Json]]) -> NoReturn:
    """Answer the test's requests, one after the other; end the process when the test is gone."""
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
