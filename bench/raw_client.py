"""A client that counts the octets it sends: TLS without a library on top, so that a request can be anything."""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final

import attrs

PIECE: Final = 65_536
ANSWER_SECONDS: Final = 60


class Ended(Exception):
    """The server closed the connection."""


@attrs.frozen
class Target:
    """A listener, and what a client shows it."""

    address: str  # HOST:PORT
    name: str  # of the provider
    context: ssl.SSLContext


class Connection:
    """A connection that is opened again when the server has closed it; `sent` counts the octets in front of TLS."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.sent = 0
        self._socket: ssl.SSLSocket | None = None
        self._received = b""

    def ask(self, request: bytes) -> int:
        """Send a request and read its answer; return the status, 0 if the server closed the connection instead."""
        for _ in range(2):  # a kept connection may have been closed in the meantime
            fresh = self._socket is None
            try:
                self.send(request)
                return self._read_answer()
            except (Ended, OSError):
                self.close()
                if fresh:
                    return 0
        return 0

    def send(self, octets: bytes) -> None:
        """Send octets, whatever they are."""
        self.sent += len(octets)
        self._open().sendall(octets)

    def open_websocket(self, path: str, *headers: str) -> None:
        """Open a WebSocket; raise `Ended` if the server refuses."""
        self.close()
        upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
        lines = (f"GET {path} HTTP/1.1", f"Host: {self.target.name}", *upgrade, *headers)
        self._open().sendall("\r\n".join([*lines, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "\r\n"]).encode())
        if b" 101 " not in self._read_head():
            raise Ended

    def read_for(self, seconds: float) -> bool:
        """Read and forget what arrives within a time; return False if the server has closed the connection."""
        stream = self._open()
        stream.settimeout(seconds)
        try:
            return bool(stream.recv(PIECE))
        except TimeoutError:
            return True
        except OSError:
            return False
        finally:
            stream.settimeout(ANSWER_SECONDS)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._received = None, b""

    def _open(self) -> ssl.SSLSocket:
        if self._socket is None:
            host, port = self.target.address.rsplit(":", 1)
            plain = socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = self.target.context.wrap_socket(plain, server_hostname=self.target.name)
        return self._socket

    def _read_head(self) -> bytes:
        while b"\r\n\r\n" not in self._received:
            piece = self._open().recv(PIECE)
            if not piece:
                raise Ended
            self._received += piece
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        return head

    def _read_answer(self) -> int:
        head = self._read_head()
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r")[0] or 0)
        while len(self._received) < length:
            piece = self._open().recv(PIECE)
            if not piece:
                raise Ended
            self._received += piece
        self._received = self._received[length:]
        if b"connection: close" in head.lower():
            self.close()
        return int(head.split()[1])


def masked_frame(payload: bytes, opcode: int = 2) -> bytes:
    """Return one WebSocket frame of a client; the mask is zero."""
    size = len(payload)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 65_536:
        head = bytes([0x80 | opcode, 0xFE]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 0xFF]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


def request(method: str, path: str, host: str, body: bytes = b"", *headers: str, media_type: str = "") -> bytes:
    """Return a whole request with the shortest head that the endpoint accepts."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    if media_type:
        lines.append(f"Content-Type: {media_type}")
    return "\r\n".join([*lines, "\r\n"]).encode() + body


def fresh(octets: int = 16) -> bytes:
    """Return octets that no request had before."""
    return os.urandom(octets)
