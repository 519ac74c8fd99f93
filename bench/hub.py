"""The hub compared with floors of the same run, in CPU time of its process (bench: programs-and-bars).

- Application messages of 1 KiB through send-batch, pushed to two followers, compared with the store floor and the echo
  floor.
- Signed proposals through send-batch, compared with bare verifications of as many signatures.
- Single sends of 1 KiB with 1, 16 and 256 in flight, and sends forwarded to another hub, compared with the echo floor.

    python -m bench.hub
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from bench import store_floor
from bench.floor import cpu_seconds, echo_floor
from bench.mls import made_up
from bench.versus_side import two_providers
from mimids.client import Device
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.suites import verify_with_label
from mimids.testing import DeviceAccount, PretendGroup, Provider, federation
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, PartitionKey, ProviderId
from mimids.wire.messages import CreateGroupRequest, SendRequest, SendResult, SendStatus
from tests.support.signing import GROUP, Client, Room

HUB: Final = ProviderId("a.example")
NO_RATES: Final = {
    "limits": {"device_sends_per_second": 0, "user_sends_per_second": 0, "device_requests_per_minute": 0}
}
BATCH: Final = 1024
BATCHES: Final = 24
WARM_UP_BATCHES: Final = 2
BODY_OCTETS: Final = 1024


@attrs.frozen
class Figure:
    """One line of output: a figure in messages for each CPU second, and the floor that it is compared with."""

    name: str
    per_cpu_second: float
    floor: str
    floor_per_cpu_second: float
    bar: float | None = None

    @property
    def ratio(self) -> float:
        return self.per_cpu_second / self.floor_per_cpu_second

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"   bar {self.bar:g}: {'met' if self.ratio >= self.bar else 'MISSED'}"
        return f"{self.name:<58} {self.per_cpu_second:>8.0f}/s  {self.ratio:>6.2f} of {self.floor}{bar}"


def application_messages() -> float:
    """Return messages for each CPU second of a hub that pushes them to two followers."""
    with federation(HUB, "b.example", "c.example", config=NO_RATES, links=False) as (hub, *followers):
        alice = hub.add_device("alice")
        groups = [PretendGroup.at(HUB) for _ in range(8)]
        members = [follower.add_device("member") for follower in followers]
        for group in groups:
            alice.ask(partial(create, group))
            for member in members:
                member.ask(partial(_receive, group))
        content = secrets.token_bytes(BODY_OCTETS - 160)
        batches = [
            [groups[number % len(groups)].message(content) for _ in range(BATCH)]
            for number in range(WARM_UP_BATCHES + BATCHES)
        ]
        _send(alice, batches[:WARM_UP_BATCHES])
        _wait_stored(followers, WARM_UP_BATCHES * BATCH)
        before = _cpu(hub)
        _send(alice, batches[WARM_UP_BATCHES:])
        _wait_stored(followers, (WARM_UP_BATCHES + BATCHES) * BATCH)
        return BATCHES * BATCH / (_cpu(hub) - before)


async def create(group: PretendGroup, device: Device) -> None:
    await device.create_group(group.creation())


async def _receive(group: PretendGroup, device: Device) -> None:
    await device.receive(HUB, group.key)


async def _send_one(batch: Sequence[SendRequest], device: Device) -> tuple[SendResult, ...]:
    return await device.send_batch(HUB, batch)


def signed_proposals(batches: int = 4) -> float:
    """Return signed proposals for each CPU second of a hub that knows the state of the group."""
    with federation(HUB, config=NO_RATES, links=False) as (hub,):
        alice = hub.add_device("alice")
        room, key = Room.create(Client.of(1)), PartitionKey(secrets.token_bytes(16))
        info = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info())
        creation = CreateGroupRequest(GROUP, MLS10, room.suite.code, key, info, None, None)
        alice.ask(lambda device: device.create_group(creation))
        requests = [
            [SendRequest(_proposal(room, number * BATCH + n), key, None) for n in range(BATCH)]
            for number in range(batches + 1)
        ]
        _send(alice, requests[:1])
        before = _cpu(hub)
        _send(alice, requests[1:])
        return batches * BATCH / (_cpu(hub) - before)


def verifications(count: int = 3000) -> float:
    """Return signature verifications alone of such proposals for each CPU second."""
    room = Room.create(Client.of(1))
    messages = [_proposal(room, number).message for number in range(100)]
    key, context = Client.of(1).signer.public, room.context().encoded
    signed = [
        (message.authenticated_content().tbs(context), message.signature)
        for message in messages
        if isinstance(message, PublicMessage)
    ]
    before = time.process_time()
    for number in range(count):
        tbs, signature = signed[number % len(signed)]
        assert verify_with_label(room.suite, key, b"FramedContentTBS", tbs, signature)
    return count / (time.process_time() - before)


def _proposal(room: Room, number: int) -> MLSMessage:
    """Return a signed proposal that differs from all others."""
    return room.propose(0, b"custom", authenticated_data=number.to_bytes(8, "big"))


def single_sends(in_flight: int, messages: int = 3000) -> float:
    """Return single sends for each CPU second of a hub, with this many requests in flight."""
    with federation(HUB, config=NO_RATES, links=False) as (hub,):
        alice, group = hub.add_device("alice"), PretendGroup.at(HUB)
        alice.ask(partial(create, group))
        content = secrets.token_bytes(BODY_OCTETS - 160)
        waiting = [group.message(content) for _ in range(messages + in_flight)]

        async def send_all() -> float:
            async with alice.client() as device:
                await device.send(HUB, waiting.pop())
                before = _cpu(hub)

                async def send_each() -> None:
                    while waiting:
                        await device.send(HUB, waiting.pop())

                async with trio.open_nursery() as nursery:
                    for _ in range(in_flight):
                        nursery.start_soon(send_each)
                return (messages + in_flight - 1) / (_cpu(hub) - before)

        return trio.run(send_all)


def forwarded_sends(*, tls: bool, messages: int = 1500, warm_up: int = 200) -> float:
    """Return sends for each CPU second of the device's provider and the hub together, with 16 requests in flight.

    `tls` is for the connections of devices. Providers always use TLS between them.
    """
    with two_providers([], client_tls=tls) as side:
        side.forwarded_send(warm_up)
        spent, count = side.forwarded_send(messages)
        return count / spent


def sends_beside_a_load(members: int = 10_000) -> tuple[float, float]:
    """Return the 99th percentile of sends while a large group is created, and how long the creation took."""
    info = decode(MLSMessage, MLS10.to_bytes(2, "big") + WireFormat.GROUP_INFO.to_bytes(2, "big") + made_up(members))
    assert isinstance(info.message, GroupInfo)
    context = info.message.group_context
    key = PartitionKey(secrets.token_bytes(16))
    creation = CreateGroupRequest(context.group_id, MLS10, context.cipher_suite, key, info, None, None)
    with federation(HUB, config=NO_RATES, links=False) as (hub,):
        alice, group = hub.add_device("alice"), PretendGroup.at(HUB)
        alice.ask(partial(create, group))
        waits: list[float] = []

        async def both() -> float:
            async with alice.client() as loader, alice.client() as sender, trio.open_nursery() as nursery:
                await sender.send(HUB, group.message(b"first"))

                async def send_on() -> None:
                    while True:
                        began = time.perf_counter()
                        await sender.send(HUB, group.message(secrets.token_bytes(BODY_OCTETS - 160)))
                        waits.append(time.perf_counter() - began)

                nursery.start_soon(send_on)
                began = time.perf_counter()
                await loader.create_group(creation)
                took = time.perf_counter() - began
                nursery.cancel_scope.cancel()
            return took

        took = trio.run(both)
    return sorted(waits)[len(waits) * 99 // 100], took


def _send(account: DeviceAccount, batches: Sequence[Sequence[SendRequest]]) -> None:
    for batch in batches:
        results = account.ask(partial(_send_one, batch))
        refused = [result.outcome for result in results if result.status is not SendStatus.ACCEPTED]
        assert not refused, refused[0]


def _cpu(provider: Provider) -> float:
    assert provider.pid is not None
    return cpu_seconds(provider.pid)


def _wait_stored(followers: Sequence[Provider], messages: int) -> None:
    deadline = time.monotonic() + 60
    while any(follower.read("SELECT count(*) FROM messages")[0][0] < messages for follower in followers):
        if time.monotonic() > deadline:
            raise TimeoutError("the followers did not get all messages within a minute")
        time.sleep(0.05)


def _store_floor() -> float:
    with tempfile.TemporaryDirectory() as directory:
        return trio.run(partial(store_floor.measure, Path(directory), messages=20_000)).messages_per_cpu_second


def figures(rounds: int = 3) -> list[Figure]:
    """Measure each figure and its floors in turn, several times; return the figures with the median ratio."""
    found: list[list[Figure]] = []
    for _ in range(rounds):
        store, echo, application = _store_floor(), echo_floor(2).per_cpu_second, application_messages()
        bare, proposals = verifications(), signed_proposals()
        found.append(
            [
                Figure("application messages, two followers, send-batch", application, "the store floor", store, 0.4),
                Figure("the same", application, "the echo floor", echo, 10),
                Figure("signed proposals, send-batch", proposals, "bare verification", bare, 0.6),
                *(
                    Figure(f"single sends of 1 KiB, {n} in flight", single_sends(n), "the echo floor", echo)
                    for n in (1, 16, 256)
                ),
                *(
                    Figure(f"forwarded sends, 16 in flight, {how}", forwarded_sends(tls=tls), "the echo floor", echo)
                    for how, tls in (("TLS", True), ("plain HTTP from devices", False))
                ),
            ]
        )
    return [sorted(each, key=lambda figure: figure.ratio)[rounds // 2] for each in zip(*found, strict=True)]


def main() -> None:
    for figure in figures():
        print(figure)
    p99, took = sends_beside_a_load()
    print(f"sends while a group of 10,000 members loads for {took:.1f} s: p99 {p99 * 1000:.0f} ms (bar 50)")


if __name__ == "__main__":
    main()
