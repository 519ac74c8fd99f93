"""One side of `bench.versus`: two providers of one version of mimids, and the loads on them.

`bench.versus` runs this file with PYTHONPATH set to the tree of that version. So it may use only names that both
versions have. It reads commands from standard input and writes answers to standard output, each one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import ssl
import sys
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Request

from mimids.config import Limits
from mimids.ohttp import bhttp
from mimids.ohttp.client import encapsulate
from mimids.ohttp.config import decode_keys
from mimids.ohttp.padding import pad_request
from mimids.testing import PretendGroup, Provider, federation
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, BearerToken, CipherSuite, Counter, ProviderId, UserId
from mimids.wire.messages import (
    SEND_REQUESTS,
    Frame,
    FrameType,
    KeyPackageRequest,
    ReceiveRequest,
    Send,
)

HUB: Final = ProviderId("a.example")
OTHER: Final = ProviderId("b.example")
BODY_OCTETS: Final = 1024 - 160
DEVICES: Final = 4  # that share the connections of a load, because one device may have only a part of all connections
IN_BATCH: Final = 64
IN_FRAME: Final = 16
PAGE: Final = 16
PUSH_SECONDS: Final = 60
FETCHED_BY: Final = "mimi://b.example/u/bob"  # whose KeyPackages are fetched
GATEWAY: Final = "/.well-known/ohttp-gateway"
REPLAY_ROWS: Final = 10_000_000  # the claims of one token may fill a hundredth of them
CPU_CLOCK: Final = 2  # in the number of a process's clock on Linux: scheduled time, in nanoseconds


def no_limits() -> dict[str, int]:
    """Return the rates of this version's configuration, all switched off."""
    return {
        field.name: 0 for field in Limits.__attrs_attrs__ if "_per_" in field.name and not field.name.endswith("_day")
    }


def whole_body(received: bytes) -> bytes | None:
    """Return the body of a request or answer, None if it has not arrived whole."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r")[0]):
        return None
    return body


class Connection(asyncio.Protocol):
    """Sends a request from the list, waits for the whole answer, and goes on with the next."""

    def __init__(self, waiting: list[bytes]) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._waiting = waiting
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if whole_body(self._received) is not None:
            if not self._received.startswith(b"HTTP/1.1 200"):
                self.ended.set_exception(RuntimeError(repr(self._received)))
                return
            self._received = b""
            self.go_on()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(error or RuntimeError("the server closed a connection"))

    def go_on(self) -> None:
        if self._waiting:
            self._transport.write(self._waiting.pop())
        else:
            self.ended.set_result(None)
            self._transport.close()


class Side:
    """Two providers, their devices, and what each load needs."""

    def __init__(self, hub: Provider, other: Provider, key_packages: list[bytes]) -> None:
        self.hub, self.other = hub, other
        self.devices = [hub.add_device("alice", f"phone{n}") for n in range(DEVICES)]
        self.guests = [other.add_device("bob", f"phone{n}") for n in range(DEVICES)]
        self.group, self.followed, self.page = (PretendGroup.at(HUB) for _ in range(3))
        for group in (self.group, self.followed, self.page):
            self.devices[0].ask(lambda device, group=group: device.create_group(group.creation()))
        self.guests[0].ask(lambda device: device.receive(HUB, self.followed.key))
        for _ in range(PAGE):
            self.devices[0].ask(lambda device: device.send(HUB, self.message(self.page)))
        for start in range(0, len(key_packages), 200):
            self.guests[0].ask(lambda device, start=start: device.upload(key_packages[start : start + 200]))
        token = urlsafe_b64decode(other.issue_token("bob", "shared") + "==")
        user = UserId(self.guests[0].user_id.encode())
        self.fetch_body = encode(KeyPackageRequest(user, BearerToken(token), MLS10, CipherSuite(1)))
        self.context = ssl.create_default_context(cafile=str(hub.ca_file))
        self.keys = decode_keys(self._get(other.public_url, GATEWAY))[0]

    def message(self, group: PretendGroup) -> Any:
        return group.message(secrets.token_bytes(BODY_OCTETS))

    # --- loads: each returns CPU seconds and the number of requests or messages ------------------------------------

    def send(self, requests: int, *, in_flight: int) -> tuple[float, int]:
        bodies = [encode(self.message(self.group)) for _ in range(requests)]
        return self._ask(self.devices, f"/client/v1/hubs/{HUB}/send", bodies, in_flight, [self.hub])

    def batch(self, requests: int) -> tuple[float, int]:
        spent, batches = self._batches(self.group, requests)
        return spent, batches * IN_BATCH

    def receive(self, requests: int) -> tuple[float, int]:
        bodies = [encode(ReceiveRequest(self.page.key, Counter(0)))] * requests
        return self._ask(self.devices, f"/client/v1/hubs/{HUB}/receive", bodies, 16, [self.hub])

    def fetch(self, requests: int) -> tuple[float, int]:
        bodies = [self._sealed() for _ in range(requests)]
        with self._all_given(requests):
            return self._post(self.other.public_url, GATEWAY, "message/ohttp-req", [""], bodies, 16, [self.other])

    def relayed_fetch(self, requests: int) -> tuple[float, int]:
        path, bodies = f"/client/v1/providers/{OTHER}/ohttp", [self._sealed() for _ in range(requests)]
        both = [self.hub, self.other]
        with self._all_given(requests):
            return self._ask(self.devices, path, bodies, 16, both, media_type="message/ohttp-req")

    def forwarded_send(self, requests: int) -> tuple[float, int]:
        bodies = [encode(self.message(self.group)) for _ in range(requests)]
        return self._ask(self.guests, f"/client/v1/hubs/{HUB}/send", bodies, 16, [self.hub, self.other])

    def push(self, requests: int) -> tuple[float, int]:
        """Send batches; the first answers count too, because their messages are pushed with the others."""
        both, stored = [self.hub, self.other], self._stored_by_other()
        before = cpu_seconds(both)
        self._batches(self.followed, requests)
        sent = _batches_of(requests) * IN_BATCH
        deadline = time.monotonic() + PUSH_SECONDS
        while self._stored_by_other() < stored + sent:
            if time.monotonic() > deadline:
                raise TimeoutError("the other provider did not get all messages")
            time.sleep(0.05)
        return cpu_seconds(both) - before, sent

    def stream(self, requests: int) -> tuple[float, int]:
        """Send frames of IN_FRAME messages over a WebSocket, one after the other."""
        frames = [
            encode(Frame(1, FrameType.SEND, Send(HUB, tuple(self.message(self.group) for _ in range(IN_FRAME)))))
            for _ in range(max(requests // IN_FRAME, 2))
        ]
        address, protocol = urlsplit(self.devices[0].url), WSConnection(ConnectionType.CLIENT)
        with self._connected(address) as tls:

            def wait_for(kind: type) -> None:
                while not any(isinstance(event, kind) for event in protocol.events()):
                    protocol.receive_data(tls.recv(65536))

            bearer = [f"mimids.bearer.{self.devices[0].token}"]
            tls.sendall(protocol.send(Request(host=address.netloc, target="/client/v1/stream", subprotocols=bearer)))
            wait_for(AcceptConnection)
            before = cpu_seconds([self.hub])
            for frame in frames:
                tls.sendall(protocol.send(BytesMessage(frame)))
                wait_for(BytesMessage)
            return cpu_seconds([self.hub]) - before, len(frames) * IN_FRAME

    # --- parts of them --------------------------------------------------------------------------------------------

    def _batches(self, group: PretendGroup, requests: int) -> tuple[float, int]:
        bodies = [
            SEND_REQUESTS.encode(tuple(self.message(group) for _ in range(IN_BATCH)))
            for _ in range(_batches_of(requests))
        ]
        return self._ask(self.devices, f"/client/v1/hubs/{HUB}/send-batch", bodies, 4, [self.hub])

    def _stored_by_other(self) -> int:
        return len(self.other.stored(self.followed.key))

    @contextmanager
    def _all_given(self, requests: int) -> Iterator[None]:
        """Raise if the sealed answers to the requests of the block did not have a KeyPackage each."""
        stock = "SELECT count(*) FROM key_packages"
        before = self.other.read(stock)[0][0]
        yield
        given = before - self.other.read(stock)[0][0]
        if given != requests:
            raise RuntimeError(f"{requests} requests were given {given} KeyPackages")

    def _sealed(self) -> bytes:
        fields = ((b"content-type", b"application/mimi-ds"), (b"date", formatdate(time.time(), usegmt=True).encode()))
        request = bhttp.Request("POST", "https", OTHER, "/key-packages", fields, self.fetch_body)
        return encapsulate(self.keys, pad_request(bhttp.encode_request(request)), secrets.token_bytes(32)).message

    def _get(self, url: str, path: str) -> bytes:
        address = urlsplit(url)
        with self._connected(address) as tls:
            tls.sendall(f"GET {path} HTTP/1.1\r\nhost: {address.netloc}\r\nconnection: close\r\n\r\n".encode())
            answer = b""
            while received := tls.recv(65536):
                answer += received
        return answer.partition(b"\r\n\r\n")[2]

    def _connected(self, address: SplitResult) -> ssl.SSLSocket:
        tcp = socket.create_connection((address.hostname or "", address.port or 443))
        return self.context.wrap_socket(tcp, server_hostname=address.hostname)

    def _ask(
        self,
        devices: Sequence[Any],
        path: str,
        bodies: list[bytes],
        in_flight: int,
        measured: Sequence[Provider],
        *,
        media_type: str = "application/mimi-ds",
    ) -> tuple[float, int]:
        headers = [f"authorization: Bearer {device.token}\r\n" for device in devices]
        return self._post(devices[0].url, path, media_type, headers, bodies, in_flight, measured)

    def _post(
        self,
        url: str,
        path: str,
        media_type: str,
        headers: Sequence[str],
        bodies: list[bytes],
        in_flight: int,
        measured: Sequence[Provider],
    ) -> tuple[float, int]:
        """Post each of `bodies` once over `in_flight` connections; the handshakes and first answers do not count."""
        address = urlsplit(url)
        heads = cycle(
            f"POST {path} HTTP/1.1\r\nhost: {address.netloc}\r\n{header}content-type: {media_type}\r\ncontent-length: "
            for header in headers
        )
        requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for head, body in zip(heads, bodies, strict=False)]

        async def run() -> tuple[float, int]:
            connect = partial(
                asyncio.get_running_loop().create_connection,
                host=address.hostname,
                port=address.port,
                ssl=self.context if address.scheme == "https" else None,
            )
            first = [[requests.pop()] for _ in range(min(in_flight, len(requests) // 2))]
            connections = [(await connect(partial(Connection, one)))[1] for one in first]
            for connection, one in zip(connections, first, strict=True):
                await _answered_first(connection, one)
            count, before = len(requests), cpu_seconds(measured)
            for connection in connections:
                connection._waiting = requests
                connection.go_on()
            await asyncio.gather(*(connection.ended for connection in connections))
            return cpu_seconds(measured) - before, count

        return asyncio.run(run())


def _batches_of(requests: int) -> int:
    return max(requests // IN_BATCH, 8)


async def _answered_first(connection: Any, one: list[bytes]) -> None:
    """Send one request and wait for its answer; keep the connection."""
    answered = asyncio.get_running_loop().create_future()
    go_on, connection.go_on = connection.go_on, lambda: answered.set_result(None)
    connection._transport.write(one.pop())
    await asyncio.wait([answered, connection.ended], return_when=asyncio.FIRST_COMPLETED)
    if connection.ended.done():
        connection.ended.result()
    connection.go_on = go_on


def cpu_seconds(providers: Sequence[Provider]) -> float:
    """Return the CPU time of these processes, with that of their threads that have ended."""
    return sum(time.clock_gettime(~provider.pid << 3 | CPU_CLOCK) for provider in providers)


def loads(side: Side) -> dict[str, Callable[[int], tuple[float, int]]]:
    """Return the loads by the names of `bench.versus.ROWS`."""
    return {
        **{f"send, {n} in flight": partial(side.send, in_flight=n) for n in (1, 16, 256)},
        "send-batch": side.batch,
        "stream": side.stream,
        "receive of 16 messages": side.receive,
        "fetch": side.fetch,
        "relayed fetch": side.relayed_fetch,
        "forwarded send": side.forwarded_send,
        "push": side.push,
    }


@contextmanager
def two_providers(key_packages: list[bytes], **listen: Any) -> Iterator[Side]:
    """Run both providers for the block; `listen` are further settings of their listeners."""
    config = {
        "limits": no_limits(),
        "ohttp": {"replay_max_rows": REPLAY_ROWS},
        "key_packages": {"device_packages": max(len(key_packages), 1)},
        "listen": {"drain_seconds": 1, **listen},
    }
    with federation(HUB, OTHER, config=config, links=False) as (hub, other):
        yield Side(hub, other, key_packages)


def main() -> None:
    key_packages = [bytes.fromhex(line) for line in Path(sys.argv[1]).read_text().split()]
    with two_providers(key_packages) as side:
        by_name = loads(side)
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            name, requests = json.loads(line)
            spent, count = by_name[name](requests)
            print(json.dumps({"microseconds": spent / count * 1e6}), flush=True)


if __name__ == "__main__":
    main()
