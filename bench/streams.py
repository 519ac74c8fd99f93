"""Device streams over TLS: memory, latency, and the cost of a send (bench: programs-and-bars).

- 500 streams of one provider, after 20 messages of 1 KiB each: resident memory of the process, and the time until the
  last stream has received a message.
- Sends of 1 KiB in frames of 16, compared with the echo floor in CPU time.
- From a send at one provider to the frame at a device of another: median and 99th percentile.

    python -m bench.streams
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Ping, Request

from bench.floor import cpu_seconds, echo_floor
from bench.hub import BODY_OCTETS, HUB, NO_RATES, Figure, create
from mimids.testing import DeviceAccount, PretendGroup, Provider, federation
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter
from mimids.wire.messages import Frame, FrameBody, FrameType, Messages, Present, ReceiveRequest, Result, Send

STREAMS: Final = 500
MESSAGES: Final = 20
FRAMES: Final = 200
REQUESTS_IN_A_FRAME: Final = 16
SAMPLES: Final = 200
MANY_STREAMS: Final = {**NO_RATES, "limits": {**NO_RATES["limits"], "device_streams": 0}}


class Stream:
    """One WebSocket of a device, without any client library."""

    def __init__(self, transport: trio.SSLStream[trio.SocketStream], protocol: WSConnection) -> None:
        self._transport = transport
        self._protocol = protocol
        self._partial = b""

    async def say(self, type_: FrameType, body: FrameBody, frame: int = 1) -> None:
        await self._transport.send_all(self._protocol.send(BytesMessage(encode(Frame(frame, type_, body)))))

    async def hear(self) -> Frame:
        while True:
            for event in self._protocol.events():
                if isinstance(event, Ping):
                    await self._transport.send_all(self._protocol.send(event.response()))
                if isinstance(event, BytesMessage):
                    self._partial += event.data
                    if event.message_finished:
                        whole, self._partial = self._partial, b""
                        return decode(Frame, whole)
            self._protocol.receive_data(bytes(await self._transport.receive_some()))


@asynccontextmanager
async def opened(account: DeviceAccount) -> AsyncIterator[Stream]:
    address = urlsplit(account.url)
    context = ssl.create_default_context(cafile=str(account.ca_file))
    tcp = await trio.open_tcp_stream(address.hostname or "", address.port or 443)
    async with trio.SSLStream(tcp, context, server_hostname=address.hostname) as transport:
        protocol = WSConnection(ConnectionType.CLIENT)
        bearer = [f"mimids.bearer.{account.token}"]
        asked = Request(host=address.netloc, target="/client/v1/stream", subprotocols=bearer)
        await transport.send_all(protocol.send(asked))
        while not any(isinstance(event, AcceptConnection) for event in protocol.events()):
            protocol.receive_data(bytes(await transport.receive_some()))
        yield Stream(transport, protocol)


def present(group: PretendGroup) -> Present:
    return Present(HUB, (ReceiveRequest(group.key, Counter(0)),))


async def many(provider: Provider, account: DeviceAccount, group: PretendGroup) -> tuple[float, float, float]:
    """Return resident megabytes before and after, and the seconds until the last stream received a message."""
    before = resident_megabytes(provider)
    counts = [0] * STREAMS
    all_heard = trio.Event()

    async def listen(number: int, *, task_status: trio.TaskStatus[None]) -> None:
        async with opened(account) as stream:
            await stream.say(FrameType.PRESENT, present(group))
            task_status.started()
            while counts[number] <= MESSAGES:
                frame = await stream.hear()
                if isinstance(frame.body, Messages):
                    counts[number] += len(frame.body.epoch.epoch.messages)
                    if min(counts) > MESSAGES:
                        all_heard.set()
            await all_heard.wait()
            await trio.sleep_forever()

    async with account.client() as device, trio.open_nursery() as nursery:
        for number in range(STREAMS):
            await nursery.start(partial(listen, number))
        for _ in range(MESSAGES):
            await device.send(HUB, group.message(secrets.token_bytes(BODY_OCTETS - 160)))
        with trio.fail_after(60):
            while min(counts) < MESSAGES:  # noqa: ASYNC110  # 500 tasks change it
                await trio.sleep(0.01)
        began = time.perf_counter()
        await device.send(HUB, group.message(secrets.token_bytes(BODY_OCTETS - 160)))
        with trio.fail_after(60):
            await all_heard.wait()
        took = time.perf_counter() - began
        after = resident_megabytes(provider)
        nursery.cancel_scope.cancel()
    return before, after, took


async def sends(provider: Provider, account: DeviceAccount, group: PretendGroup) -> float:
    """Return messages sent over one stream for each CPU second of the provider."""
    content = secrets.token_bytes(BODY_OCTETS - 160)
    frames = [Send(HUB, tuple(group.message(content) for _ in range(REQUESTS_IN_A_FRAME))) for _ in range(FRAMES)]
    async with opened(account) as stream, trio.open_nursery() as nursery:
        await stream.say(FrameType.SEND, Send(HUB, (group.message(content),)))
        await stream.hear()
        before = cpu_of(provider)

        async def say_all() -> None:
            for frame in frames:
                await stream.say(FrameType.SEND, frame)

        nursery.start_soon(say_all)
        for _ in frames:
            answer = await stream.hear()
            assert isinstance(answer.body, Result), answer
        return FRAMES * REQUESTS_IN_A_FRAME / (cpu_of(provider) - before)


async def latencies(sender: DeviceAccount, hearer: DeviceAccount, group: PretendGroup) -> list[float]:
    """Return seconds from a send at one provider to the frame at a device of another, sorted."""
    found = []
    async with sender.client() as device, opened(hearer) as stream:
        await device.send(HUB, group.message(b"first"))
        await stream.say(FrameType.PRESENT, present(group))
        await stream.hear()
        for _ in range(SAMPLES):
            began = time.perf_counter()
            await device.send(HUB, group.message(secrets.token_bytes(BODY_OCTETS - 160)))
            await stream.hear()
            found.append(time.perf_counter() - began)
            await trio.sleep(0.03)
    return sorted(found)


def cpu_of(provider: Provider) -> float:
    assert provider.pid is not None
    return cpu_seconds(provider.pid)


def resident_megabytes(provider: Provider) -> float:
    """Return the resident memory of a provider's process (Linux)."""
    status = Path(f"/proc/{provider.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    with federation(HUB, "b.example", config=MANY_STREAMS, links=False) as (hub, other):
        alice, bob = hub.add_device("alice"), other.add_device("bob")
        groups = [PretendGroup.at(HUB) for _ in range(3)]
        for group in groups:
            alice.ask(partial(create, group))
        echo = echo_floor(2).per_cpu_second
        found = trio.run(latencies, alice, bob, groups[0])
        per_cpu_second = trio.run(sends, hub, alice, groups[1])
        before, after, took = trio.run(many, hub, alice, groups[2])
    print(Figure("sends over a device stream, 16 to a frame", per_cpu_second, "the echo floor", echo, 5))
    half, most = found[len(found) // 2], found[len(found) * 99 // 100]
    print(f"from a send to the frame at another provider's device: p50 {half * 1000:.0f} ms, p99 {most * 1000:.0f} ms")
    held = f"{after:.0f} MB resident (before {before:.0f}; bar 200)"
    print(f"{STREAMS} streams, each with {MESSAGES} messages of 1 KiB: {held}")
    print(f"a message reaches the last of {STREAMS} streams in {took:.2f} s (bar 2)")


if __name__ == "__main__":
    main()
