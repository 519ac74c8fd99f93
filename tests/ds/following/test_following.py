"""Streams at three providers while calls are lost and devices connect and leave: each gets all that it asks for.

What is drawn comes from a seed; which of two things that happen at once is first does not.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from pathlib import Path
from random import Random

import attrs
import pytest
import trio

from mimids.ds.devices.streams import DeviceGone
from mimids.ds.ports import PeerAnswer
from mimids.errors import MimiError, PeerUnavailable
from mimids.testing.clock import MovableClock
from mimids.values import Device
from mimids.wire.declare import decode, encode
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import CommitData, Frame, FrameBody, FrameType, Messages, SendRequest, Withdraw
from tests.support.doubles import Called, Peer, stopped_clock
from tests.support.federation import COMMIT, Room, device, federated, present, read, said
from tests.support.provider import Assembled

NAMES = ("a.example", "b.example", "c.example")
JOBS = ("delivery", "outgoing_welcomes", "sync")
STEPS = 60


class Line:
    """The connection of a stream, until it is cut."""

    def __init__(self, person: Person) -> None:
        self._person = person
        self._to_server, self._from_device = trio.open_memory_channel[bytes](1000)

    def say(self, type_: FrameType, body: FrameBody) -> None:
        self._to_server.send_nowait(encode(Frame(7, type_, body)))

    async def receive(self) -> bytes:
        return await self._from_device.receive()

    async def send(self, octets: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self._person.line is not self:
            raise DeviceGone
        body = decode(Frame, octets).body
        if isinstance(body, Messages):
            self._person.take(body)


@attrs.define(eq=False)
class Person:
    """Somebody with one device, which has a stream now and then and keeps what it gets."""

    provider: Assembled
    device: Device
    room: Room
    streams: trio.Nursery
    got: dict[PartitionKey, list[str]] = attrs.field(factory=dict)  # of the partitions that are presented
    line: Line | None = None
    cut: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def take(self, body: Messages) -> None:
        key = next((key for key in self.got if body.epoch.masked_partition_key in key.masks()), None)
        if key is not None:
            got, counter = self.got[key], body.epoch.counter
            assert counter <= len(got), "nothing is skipped"
            texts = said(body.epoch.epoch.messages)
            assert got[counter : counter + len(texts)] == texts[: len(got) - counter], "a repeat is the same"
            got += texts[len(got) - counter :]

    def connect(self) -> None:
        self.line, self.cut = Line(self), trio.CancelScope()
        self.streams.start_soon(self._serve, self.line, self.cut)
        for key in list(self.got):
            self.present(key)

    async def _serve(self, line: Line, cut: trio.CancelScope) -> None:
        with cut:
            await self.provider.services.streams.serve(self.device, line)

    def hang_up(self) -> None:
        self.line = None
        self.cut.cancel()

    def present(self, key: PartitionKey) -> None:
        got = self.got.setdefault(key, [])
        if self.line is not None:
            self.line.say(FrameType.PRESENT, present(self.room.hub, (key, len(got))))

    def withdraw(self, key: PartitionKey) -> None:
        if self.got.pop(key, None) is not None and self.line is not None:
            self.line.say(FrameType.WITHDRAW, Withdraw((key,)))


class Play:
    """What happens, drawn from a seed."""

    def __init__(self, seed: int, providers: list[Assembled], clock: MovableClock, streams: trio.Nursery) -> None:
        self.dice, self.clock, self.room = Random(seed), clock, Room()
        self.epochs: dict[PartitionKey, int] = {self.room.key: 0}
        self.people = [
            Person(provider, device(provider, name, row), self.room, streams)
            for provider in providers
            for row, name in enumerate(("one", "two"), start=1)
        ]
        self.faulty = True
        for provider in providers:
            for name, spec in list(provider.peers.peers.items()):
                provider.peers.add(name, self._way(spec))

    def _way(self, spec: Peer) -> Peer:
        """Return a way on which calls, or their answers, are late or lost."""

        async def call(called: Called) -> PeerAnswer:
            await self._befall()
            answer = await spec(called)
            await self._befall()
            return answer

        return call

    async def _befall(self) -> None:
        fate = self.dice.random() if self.faulty else 1.0
        if fate < 0.1:
            raise PeerUnavailable
        if fate < 0.2:
            await trio.sleep(fate / 20)

    async def step(self, number: int) -> None:
        person, key = self.dice.choice(self.people), self.dice.choice(list(self.epochs))
        services, who, hub = person.provider.services, person.device, self.room.hub
        match self.dice.choices(range(9), (35, 7, 13, 20, 5, 8, 4, 4, 4))[0]:
            case 0:
                await services.hub_router.hub(hub).send(who, self.room.send(f"{number}", key, epoch=self.epochs[key]))
            case 1:
                following = self.room.new_key()
                message = self.room.message(f"{number}", epoch=self.epochs[key], kind=COMMIT)
                await services.hub_router.hub(hub).send(
                    who, SendRequest(message, key, CommitData(following, None, None))
                )
                self.epochs[following] = self.epochs[key] + 1
            case 2:
                person.connect() if person.line is None else person.hang_up()
            case 3:
                person.present(key)
            case 4:
                person.withdraw(key)
            case 5:
                await services.following.leave(who, hub, self.room.group_id)
            case 6:
                person.provider.services.epoch_receiver.requested.clear()  # which a restart forgets
            case 7:
                self.clock.advance(self.dice.choice((1, 5, 70)))
            case 8:
                await read(person.provider, who, hub, key)


@pytest.mark.parametrize("seed", range(10))
async def test_a_device_that_presents_a_key_gets_its_whole_partition_once_and_in_order(
    seed: int, tmp_path: Path
) -> None:
    clock = stopped_clock()
    async with (
        federated(tmp_path, *NAMES, clock=clock, jobs_of=JOBS) as providers,
        trio.open_nursery() as streams,
    ):
        for provider, name in product(providers, ("one", "two")):
            await provider.add_device(name)
        play = Play(seed, providers, clock, streams)
        hub, room = providers[0], play.room
        await hub.services.hub.create_group(room.creation(), play.people[0].device)
        for number in range(STEPS):
            with suppress(MimiError):  # lost on the way
                await play.step(number)
            await trio.sleep(play.dice.choice((0, 0, 0.002, 0.01)))
        play.faulty = False
        said_there = {key: await read(hub, play.people[0].device, room.hub, key) for key in play.epochs}
        for person in play.people:
            if person.line is None:
                person.connect()
            for key in play.epochs:
                person.present(key)
        with trio.fail_after(60):
            while any(person.got != said_there for person in play.people):
                await trio.sleep(0.02)
                clock.advance(5)
        streams.cancel_scope.cancel()
