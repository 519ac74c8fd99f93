"""A process that attacks one provider in all known ways at once, at bounded rates, until its standard input ends.

It has a device's token, the certificate of another provider, and an address of its own (127.0.0.2). It prints how many
rounds of each attack it made.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import ssl
import sys
from collections import Counter as Tally
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import attrs
import trio

from mimids.testing import PretendGroup
from mimids.wire.declare import encode
from mimids.wire.ids import Counter, GroupId, KeyPackageRef, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    SEND_REQUESTS,
    Ack,
    Epoch,
    Frame,
    FrameType,
    KnownPartition,
    Message,
    Present,
    PushedEpoch,
    PushRequest,
    ReceiveRequest,
    RecoverRequest,
    Send,
    WelcomeData,
    WelcomeInitRequest,
)
from tests.support.mls_makers import replace
from tests.support.welcomes import welcome_to

ADDRESS: Final = "127.0.0.2"
PAUSE_SECONDS: Final = 0.5  # between two rounds of an attack, on average
HELD_SECONDS: Final = 2.0  # how long a connection is held open
ANSWER_SECONDS: Final = 5.0
NICE: Final = 10  # so that the attackers take what the providers leave


@attrs.frozen
class Target:
    """A provider, and what the attacker has of it."""

    name: str
    public: str  # HOST:PORT
    client: str
    ca_file: str
    certificate: str  # of the other provider
    private_key: str
    other: str
    token: str  # of the attacker's device


@attrs.define
class Attacker:
    target: Target
    group: PretendGroup
    chance: random.Random
    device: ssl.SSLContext
    provider: ssl.SSLContext

    @classmethod
    def of(cls, target: Target, seed: int) -> Attacker:
        device = ssl.create_default_context(cafile=target.ca_file)
        provider = ssl.create_default_context(cafile=target.ca_file)
        provider.load_cert_chain(target.certificate, target.private_key)
        return cls(target, PretendGroup.at(target.name), random.Random(seed), device, provider)

    # --- requests -----------------------------------------------------------------------------------------------

    async def connect(self, *, public: bool) -> trio.SSLStream[trio.SocketStream]:
        host, port = (self.target.public if public else self.target.client).rsplit(":", 1)
        connecting = trio.socket.socket()
        try:
            await connecting.bind((ADDRESS, 0))
            await connecting.connect((host, int(port)))
        except OSError:
            connecting.close()
            raise
        context = self.provider if public else self.device
        return trio.SSLStream(trio.SocketStream(connecting), context, server_hostname=self.target.name)

    def head(self, method: str, path: str, length: int, media_type: str = "application/mimi-ds", *more: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.target.name}", f"Content-Length: {length}", *more]
        lines.append(f"Content-Type: {media_type}")
        if path.startswith("/client/"):
            lines.append(f"Authorization: Bearer {self.target.token}")
        return "\r\n".join([*lines, "\r\n"]).encode()

    async def ask(self, path: str, body: bytes, *more: str, media_type: str = "application/mimi-ds") -> int:
        """Send a request and return the status of its answer, which is read up to its head only."""
        async with await self.connect(public=not path.startswith("/client/")) as stream:
            await stream.send_all(self.head("POST", path, len(body), media_type, *more) + body)
            with trio.move_on_after(ANSWER_SECONDS):
                return int(bytes(await stream.receive_some()).split()[1])
        return 0

    async def hold(self, octets: bytes, *, public: bool, times: int) -> None:
        """Send something over several connections, and hold them open without reading."""

        async def hold_one() -> None:
            with suppress(OSError, trio.BrokenResourceError):
                stream = await self.connect(public=public)
                try:
                    with trio.move_on_after(HELD_SECONDS):
                        await stream.send_all(octets)
                        await trio.sleep(HELD_SECONDS)
                finally:
                    stream.transport_stream.socket.close()  # without a word to the server

        async with trio.open_nursery() as nursery:
            for _ in range(times):
                nursery.start_soon(hold_one)

    async def stream(self, octets: bytes) -> None:
        """Open a WebSocket of the device, send frames, and read for a moment."""
        lines = (
            "GET /client/v1/stream HTTP/1.1",
            f"Host: {self.target.name}",
            f"Authorization: Bearer {self.target.token}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            "\r\n",
        )
        async with await self.connect(public=False) as stream:
            await stream.send_all("\r\n".join(lines).encode())
            await stream.receive_some()
            await stream.send_all(octets)
            with trio.move_on_after(PAUSE_SECONDS):
                while await stream.receive_some():
                    pass


# --- the attacks ------------------------------------------------------------------------------------------------------


async def flood_with_pings(attacker: Attacker) -> None:
    await attacker.stream((b"\x89\x80" + bytes(4)) * 20_000)


async def flood_with_fragments(attacker: Attacker) -> None:
    await attacker.stream(b"\x02\x80" + bytes(4) + (b"\x00\x80" + bytes(4)) * 20_000)


async def present_many_keys(attacker: Attacker) -> None:
    hub = ProviderId(attacker.chance.choice((attacker.target.name, attacker.target.other)))
    positions = tuple(ReceiveRequest(PartitionKey(secrets.token_bytes(16)), Counter(0)) for _ in range(4096))
    await attacker.stream(frame(FrameType.PRESENT, Present(hub, positions)))


async def acknowledge_much(attacker: Attacker) -> None:
    await attacker.stream(frame(FrameType.ACK, Ack(tuple(range(1, 4097)))) * 5)


async def name_many_hubs(attacker: Attacker) -> None:
    names = [ProviderId(f"{secrets.token_hex(4)}.example") for _ in range(200)]
    await attacker.stream(b"".join(frame(FrameType.SEND, Send(name, ())) for name in names))


async def abort_uploads(attacker: Attacker) -> None:
    octets = attacker.head("POST", "/client/v1/key-packages", 1 << 20) + bytes((1 << 20) - 1)
    await attacker.hold(octets, public=False, times=5)


async def begin_bodies(attacker: Attacker) -> None:
    octets = attacker.head("POST", "/.well-known/ohttp-gateway", 1 << 20, "message/ohttp-req") + bytes(900_000)
    await attacker.hold(octets, public=True, times=10)


async def open_connections(attacker: Attacker) -> None:
    await attacker.hold(b"GET / HTTP/1.1\r\n", public=True, times=40)


async def wait_for_messages(attacker: Attacker) -> None:
    body = encode(ReceiveRequest(attacker.group.key, Counter(1 << 30)))
    octets = attacker.head("POST", path(attacker, "receive"), len(body), "application/mimi-ds", "Prefer: wait=60")
    await attacker.hold(octets + body, public=False, times=30)


async def never_read(attacker: Attacker) -> None:
    body = encode(ReceiveRequest(attacker.group.key, Counter(0)))
    octets = attacker.head("POST", path(attacker, "receive"), len(body)) + body
    await attacker.hold(octets * 20, public=False, times=5)


async def send_junk_welcomes(attacker: Attacker) -> None:
    """Name as many providers as a Welcome may have; none of them is on the allow-list."""
    names = tuple(ProviderId(f"{secrets.token_hex(4)}.example") for _ in range(256))
    refs = [KeyPackageRef(secrets.token_bytes(32)) for _ in names]
    request, _ = attacker.group.commit()
    data = replace(request.commit_data, welcome_data=WelcomeData(welcome_to(*refs), names))
    await attacker.ask(path(attacker, "send"), encode(replace(request, commit_data=data)))


async def send_batches(attacker: Attacker) -> None:
    batch = [attacker.group.message(secrets.token_bytes(8)) for _ in range(256)]
    strays = [PretendGroup.at(attacker.target.name).message(b"") for _ in range(64)]
    await attacker.ask(path(attacker, "send-batch"), SEND_REQUESTS.encode((*batch, *strays)))


async def push_empty_epochs(attacker: Attacker) -> None:
    masks = [MaskedPartitionKey(secrets.token_bytes(32)) for _ in range(1024)]
    epochs = tuple(PushedEpoch(GroupId(b"group"), mask, Counter(0), None, Epoch(())) for mask in masks)
    await attacker.ask("/ds/v1/push", encode(PushRequest(epochs)))


async def push_far_counters(attacker: Attacker) -> None:
    message = Message(attacker.group.message(b"pushed").message, None)
    mask = MaskedPartitionKey(secrets.token_bytes(32))
    epochs = [
        PushedEpoch(attacker.group.group_id, mask, Counter(0x7FFF_FFFE - n), None, Epoch((message,) * n))
        for n in (0, 3)
    ]
    await attacker.ask("/ds/v1/push", encode(PushRequest(tuple(epochs))))


async def offer_many_references(attacker: Attacker) -> None:
    refs = tuple(KeyPackageRef(n.to_bytes(2, "big")) for n in range(4096))
    await attacker.ask("/ds/v1/welcome/init", encode(WelcomeInitRequest(refs)))


async def recover_much(attacker: Attacker) -> None:
    known = tuple(KnownPartition(MaskedPartitionKey(secrets.token_bytes(32)), Counter(0)) for _ in range(5_000))
    await attacker.ask("/ds/v1/recover", encode(RecoverRequest(attacker.group.group_id, known)))


async def send_garbage_to_the_gateway(attacker: Attacker) -> None:
    for _ in range(5):
        body = bytes([attacker.chance.randrange(256)]) + b"\0\x20\0\1\0\1" + secrets.token_bytes(100)
        await attacker.ask("/.well-known/ohttp-gateway", body, media_type="message/ohttp-req")


async def send_long_heads(attacker: Attacker) -> None:
    await attacker.ask("/ds/v1/receive", b"", "Prefer: " + "," * 12_000)
    await attacker.ask("/ds/v1/receive", b"", "X: " + "x" * 20_000)


async def file_reports(attacker: Attacker) -> None:
    members = {"hub": attacker.target.name, "accused": attacker.target.name, "kind": "x"}
    body = json.dumps({**members, "note": "\x1b[2J" + secrets.token_hex(1900)}).encode()
    await attacker.ask("/client/v1/reports", body, media_type="application/json")


ATTACKS: Final[tuple[Callable[[Attacker], Awaitable[None]], ...]] = (
    flood_with_pings,
    flood_with_fragments,
    present_many_keys,
    acknowledge_much,
    name_many_hubs,
    abort_uploads,
    begin_bodies,
    open_connections,
    wait_for_messages,
    never_read,
    send_junk_welcomes,
    send_batches,
    push_empty_epochs,
    push_far_counters,
    offer_many_references,
    recover_much,
    send_garbage_to_the_gateway,
    send_long_heads,
    file_reports,
)


def path(attacker: Attacker, endpoint: str) -> str:
    return f"/client/v1/hubs/{attacker.target.name}/{endpoint}"


def frame(kind: FrameType, body: Any) -> bytes:
    """Return a frame of a device as one WebSocket message, with a mask of zeros."""
    payload = encode(Frame(1, kind, body))
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65_536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return b"\x82" + length + bytes(4) + payload


async def attack(attacker: Attacker) -> dict[str, int]:
    """Make rounds of every attack until standard input ends; return how many were begun."""
    rounds: Tally[str] = Tally()

    async def repeat(one: Callable[[Attacker], Awaitable[None]]) -> None:
        while True:
            await trio.sleep(attacker.chance.uniform(0, 2 * PAUSE_SECONDS))
            rounds[one.__name__] += 1
            with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError, IndexError):
                await one(attacker)

    creation = encode(attacker.group.creation())
    assert await attacker.ask("/client/v1/groups", creation) == 201
    print("ready", flush=True)
    async with trio.open_nursery() as nursery:
        for one in ATTACKS:
            nursery.start_soon(repeat, one)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()
    return dict(rounds)


def main() -> None:
    os.nice(NICE)
    started = json.loads(sys.stdin.readline())
    attacker = Attacker.of(Target(**started["target"]), started["seed"])
    print(json.dumps(trio.run(attack, attacker)))


if __name__ == "__main__":
    main()
