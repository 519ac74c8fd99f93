"""The echo floor: what an HTTP request costs without any of our code (bench: programs-and-bars).

A bare ASGI callable on unchanged Hypercorn, plain HTTP/1.1, 16 connections, POST of 200 octets that is echoed. The
server and the load are separate processes. Only the server's CPU time counts, so a busy machine makes the run slower
but hardly changes the result.

    python -m bench.floor
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import attrs

CONNECTIONS: Final = 16
BODY: Final = b"x" * 200
WARM_UP_SECONDS: Final = 0.5


@attrs.frozen
class Rate:
    """The requests of a server under load, and their cost."""

    requests: int
    cpu_seconds: float  # of the server's process, user and system
    seconds: float

    @property
    def per_cpu_second(self) -> float:
        return self.requests / self.cpu_seconds


def echo_floor(seconds: float = 4) -> Rate:
    """Measure the floor."""
    return measure([sys.executable, "-m", "bench.floor", "serve"], seconds=seconds)


def measure(
    server: Sequence[str], *, seconds: float = 4, path: str = "/", trust: Path | None = None, name: str = "localhost"
) -> Rate:
    """Measure any server that prints `HOST:PORT` on its first line and echoes POSTs; `trust` makes it TLS."""
    with running(server) as (process, address):
        load = [sys.executable, "-m", "bench.floor", "load", address, path, name, str(trust or "")]
        _load(load, WARM_UP_SECONDS)
        before = cpu_seconds(process)
        requests, took = _load(load, seconds)
        return Rate(requests, cpu_seconds(process) - before, took)


@contextmanager
def running(server: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Run a server until the end of the block; yield its process id and the address that it printed."""
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise RuntimeError(f"{server} ended with exit code {process.wait()}")
            yield process.pid, address
        finally:
            process.terminate()


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process with its threads, in steps of 10 ms (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _load(command: Sequence[str], seconds: float) -> tuple[int, float]:
    out = subprocess.run([*command, str(seconds)], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return int(out[0]), float(out[1])


# --- the two processes --------------------------------------------------------------------------------------------


async def echo(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise NotImplementedError  # tells Hypercorn that there is no lifespan
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve() -> None:
    import trio
    from hypercorn.config import Config
    from hypercorn.trio import serve as hypercorn

    with socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS) as listening:
        config = Config()
        config.bind = [f"fd://{listening.fileno()}"]
        config.errorlog = None
        host, port = listening.getsockname()
        print(f"{host}:{port}", flush=True)
        trio.run(hypercorn, echo, config)


class Client(asyncio.Protocol):
    """One connection: sends a request, waits for the whole answer, and sends the next request."""

    def __init__(self, request: bytes, ended: asyncio.Future[None]) -> None:
        self.answered = 0
        self._request = request
        self.ended = ended
        self._received = b""
        self._size = 0  # of one answer; all answers have the same size

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, _ = self._received.partition(b"\r\n\r\n")
        if end and not self._size:
            self._size = len(head) + len(end) + len(BODY)
        if not self._size or len(self._received) < self._size:
            return
        if not (head.startswith(b"HTTP/1.1 200") and self._received.endswith(end + BODY)):
            self.ended.set_exception(RuntimeError(f"the answer is not the echo of the request: {self._received!r}"))
            self._transport.abort()
            return
        self._received = b""
        self.answered += 1
        self._transport.write(self._request)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def load(address: str, path: str, name: str, trust: str, seconds: float) -> tuple[int, float]:
    """Keep `CONNECTIONS` busy; return the number of requests that were answered, and the seconds."""
    host, port = address.rsplit(":", 1)
    context = ssl.create_default_context(cafile=trust) if trust else None
    request = f"POST {path} HTTP/1.1\r\nhost: {name}\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY
    loop = asyncio.get_running_loop()
    clients: list[Client] = []

    async def keep_busy() -> None:
        while True:  # Hypercorn closes a connection after 1000 requests
            making = partial(Client, request, loop.create_future())
            server_hostname = name if context else None
            _, client = await loop.create_connection(
                making, host, int(port), ssl=context, server_hostname=server_hostname
            )
            clients.append(client)
            await client.ended

    began = loop.time()
    tasks = [asyncio.create_task(keep_busy()) for _ in range(CONNECTIONS)]
    failed, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    took = loop.time() - began
    for task in tasks:
        task.cancel()
    for task in failed:
        task.result()
    return sum(client.answered for client in clients), took


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["serve"]:
        serve()
    elif arguments[:1] == ["load"]:
        address, path, name, trust, seconds = arguments[1:]
        print(*asyncio.run(load(address, path, name, trust, float(seconds))))
    else:
        rate = echo_floor()
        spent = f"{rate.requests} requests, {rate.cpu_seconds:.2f} s of CPU in {rate.seconds:.1f} s"
        print(f"echo floor: {rate.per_cpu_second:.0f} requests for each CPU second ({spent})")


if __name__ == "__main__":
    main(sys.argv[1:])
