"""A group with 1,000 followers, of which 50 are down: from one send to the last push (bench: programs-and-bars).

The hub is a real server. All followers are one process that speaks TLS with a certificate of each follower's own, so
that on a machine with few cores about half of the time is theirs. Those that are down take connections and say nothing.

    python -m bench.many_followers            1,000 followers
    python -m bench.many_followers 200        as many as named
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs

from bench.floor import cpu_seconds
from bench.versus_side import whole_body
from mimids.client import Device
from mimids.testing import PretendGroup, Provider, federation
from mimids.testing.session import Session
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, PartitionKey, ProviderId
from mimids.wire.messages import PushRequest, PushResponse, ReceiveRequest

HUB: Final = ProviderId("a.example")
FOLLOWERS: Final = 1000
OF_WHICH_DOWN: Final = 20  # one in so many
ROUNDS: Final = 6
BAR_SECONDS: Final = 3
BODY_OCTETS: Final = 1024 - 160
AT_ONCE: Final = 32  # followers that begin to follow at the same time


def names(count: int) -> tuple[list[str], list[str]]:
    """Return the names of the followers that are up, and of those that are down."""
    every = [f"f{number:04}.example" for number in range(count)]
    down = every[::OF_WHICH_DOWN]
    return [name for name in every if name not in set(down)], down


# --- the followers ----------------------------------------------------------------------------------------------


class Follower(asyncio.Protocol):
    """One connection of the hub: answers each push with the counter after its last message."""

    def __init__(self, heard: Callable[[int], None]) -> None:
        self._heard = heard
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        body = whole_body(self._received)
        if body is None:
            return
        self._received = b""
        epochs = decode(PushRequest, body).epochs
        answer = encode(PushResponse(tuple(Counter(each.counter + len(each.epoch.messages)) for each in epochs)))
        kind = b"content-type: application/mimi-ds"
        self._transport.write(b"HTTP/1.1 200 OK\r\n%b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(answer), answer))
        for each in epochs:
            for counter in range(each.counter, each.counter + len(each.epoch.messages)):
                self._heard(counter)


def context_of(directory: Path, name: str, side: ssl.Purpose) -> ssl.SSLContext:
    """Return the TLS of a follower, which shows its own certificate."""
    context = ssl.create_default_context(side, cafile=str(directory / "ca.pem"))
    context.load_cert_chain(directory / f"{name}.pem", directory / f"{name}.key")
    return context


async def follow(directory: Path, name: str, hub: tuple[str, int], key: PartitionKey, turn: asyncio.Semaphore) -> None:
    """Present the key to the hub, as a follower does whose device has it."""
    context = context_of(directory, name, ssl.Purpose.SERVER_AUTH)
    body = encode(ReceiveRequest(key, Counter(0)))
    head = f"POST /ds/v1/receive HTTP/1.1\r\nHost: {HUB}\r\nFrom: mimi@{name}\r\nContent-Type: application/mimi-ds\r\n"
    async with turn:
        reader, writer = await asyncio.open_connection(*hub, ssl=context, server_hostname=HUB)
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(repr(answer))


async def be_followers(directory: Path, count: int) -> None:
    """Serve all followers: print two ports, follow what standard input names, then print when each round has ended."""
    up, _ = names(count)
    pushes, ended = [0] * ROUNDS, asyncio.Event()
    contexts: dict[str, ssl.SSLContext] = {}
    first = context_of(directory, up[0], ssl.Purpose.CLIENT_AUTH)

    def choose(connection: ssl.SSLObject, name: str, _: ssl.SSLContext) -> None:
        connection.context = contexts[name]

    def heard(counter: int) -> None:
        pushes[counter] += 1
        if pushes[counter] == len(up):
            print(time.monotonic(), flush=True)
            if counter == ROUNDS - 1:
                ended.set()

    first.sni_callback = choose
    for name in up:
        contexts[name] = context_of(directory, name, ssl.Purpose.CLIENT_AUTH)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Follower, heard), "127.0.0.1", 0, ssl=first, backlog=2 * count)
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(2 * count)
    print(server.sockets[0].getsockname()[1], silent.getsockname()[1], flush=True)
    asked = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    turn = asyncio.Semaphore(AT_ONCE)
    key = PartitionKey.from_hex(asked["key"])
    await asyncio.gather(*(follow(directory, name, tuple(asked["hub"]), key, turn) for name in [*up, *names(count)[1]]))
    print("following", flush=True)
    await ended.wait()


# --- the hub ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Round:
    """Seconds until the last follower had the message, CPU seconds of the hub, and its memory in MB afterwards."""

    seconds: float
    cpu_seconds: float
    megabytes: float


@contextmanager
def running(count: int) -> Iterator[tuple[Provider, subprocess.Popen[str]]]:
    """Run a hub and its followers for the block."""
    up, down = names(count)
    session = Session()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for each in [*up, *down]:
            session.issue(each).write(directory / f"{each}.pem", directory / f"{each}.key")
        (directory / "ca.pem").write_bytes(session.ca_file.read_bytes())
        command = [sys.executable, "-m", "bench.many_followers", "be", str(directory), str(count)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as followers:
            try:
                assert followers.stdout is not None
                port, silent = followers.stdout.readline().split()
                peers = {each: {"url": f"https://127.0.0.1:{port}"} for each in up}
                peers |= {each: {"url": f"https://127.0.0.1:{silent}"} for each in down}
                config = {"federation": {"allow": list(peers)}, "providers": peers}
                with federation(HUB, config=config, links=False, session=session) as (hub,):
                    yield hub, followers
            finally:
                followers.kill()
    session.close()


def rounds(count: int) -> Iterator[Round]:
    """Send one message after the other, each when all followers have had the one before and a second has passed."""
    with running(count) as (hub, followers):
        assert followers.stdin is not None
        assert followers.stdout is not None
        assert hub.pid is not None
        alice, group = hub.add_device("alice"), PretendGroup.at(HUB)
        alice.ask(lambda device: device.create_group(group.creation()))
        address = hub.public_url.removeprefix("https://").split(":")
        asked = {"key": group.key.reveal().hex(), "hub": [address[0], int(address[1])]}
        followers.stdin.write(json.dumps(asked) + "\n")
        followers.stdin.flush()
        assert followers.stdout.readline() == "following\n"
        for _ in range(ROUNDS):
            time.sleep(1)
            before, began = cpu_seconds(hub.pid), time.monotonic()
            alice.ask(partial(_send, group))
            arrived = float(followers.stdout.readline())
            time.sleep(0.1)
            yield Round(arrived - began, cpu_seconds(hub.pid) - before, _megabytes(hub.pid))


async def _send(group: PretendGroup, device: Device) -> object:
    return await device.send(HUB, group.message(secrets.token_bytes(BODY_OCTETS)))


def _megabytes(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> int:
    """Print each round, of which the first connects to all followers; return 1 if the bar is missed."""
    if sys.argv[1:2] == ["be"]:
        asyncio.run(be_followers(Path(sys.argv[2]), int(sys.argv[3])))
        return 0
    count = int(sys.argv[1]) if sys.argv[1:] else FOLLOWERS
    later = []
    for number, each in enumerate(rounds(count)):
        print(
            f"{'first message' if not number else f'message {number + 1}':<16} to the last follower"
            f" {each.seconds:>6.2f} s   CPU of the hub {each.cpu_seconds:>5.2f} s   memory {each.megabytes:>4.0f} MB",
            flush=True,
        )
        later += [each.seconds] if number else []
    met = statistics.median(later) <= BAR_SECONDS
    print(f"later ones: {statistics.median(later):.2f} s (median)   bar {BAR_SECONDS}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
