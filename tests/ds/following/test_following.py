"""What devices get in the groups of other hubs: each message once, from the counter that they ask from.

In the last test, streams at three providers run while calls are lost and devices connect and leave. What is drawn comes
from a seed; which of two things that happen at once is first does not.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from random import Random

import attrs
import pytest
import trio
import trio.testing

from mimids.ds.devices.stream_session import DeviceGone
from mimids.ds.following.intake import find_or_add_partition
from mimids.ds.ports import PeerAnswer
from mimids.errors import MimiError, NotFollowed, PeerUnavailable
from mimids.store import groups, providers
from mimids.store.engine.transaction import Tx
from mimids.testing.clock import MovableClock
from mimids.values import Device, Milliseconds
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, MaskedPartitionKey, PartitionKey
from mimids.wire.messages import (
    CommitData,
    Frame,
    FrameBody,
    FrameType,
    Messages,
    ReceiveRequest,
    ResumeRequest,
    SendRequest,
    Withdraw,
)
from tests.support.doubles import Called, Peer, stopped_clock
from tests.support.federation import (
    COMMIT,
    Room,
    device,
    federated,
    play,
    present,
    read,
    received,
    said,
    texts,
    wait_stored,
)
from tests.support.provider import Assembled
from tests.support.recordings import Recording
from tests.support.stored import until

NAMES = ("a.example", "b.example", "c.example")
JOBS = ("delivery", "outgoing_welcomes", "sync")
STEPS = 60


CONVERSATIONS = (
    "public",
    "private",
    "policy",
    "policy-private",
    "rules",
    "rooms",
    *(f"suite-{n}" for n in range(2, 8)),
)


@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_receive_begins_at_the_counter_that_was_asked_for(name: str, pushed: bool, tmp_path: Path) -> None:
    recording = Recording(name)
    jobs = ("delivery",) if pushed else ()
    async with federated(tmp_path, "a.example", "b.example", jobs_of=jobs) as (a, b):
        sequenced = await play(recording, a)
        assert sequenced
        for key, messages in sequenced.items():
            for counter in range(len(messages) + 1):
                got = await received(b, device(b), a.config.provider, key, counter)
                assert got == messages[counter:], (counter, len(messages))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_devices_that_receive_while_others_send_get_each_message_once(
    name: str, seed: int, tmp_path: Path
) -> None:
    recording, dice = Recording(name), Random(f"{name} {seed}")
    async with federated(tmp_path, *NAMES, jobs_of=("delivery",) if seed else ()) as providers:
        hub, readers = providers[0], [(provider, device(provider, who)) for provider in providers for who in "xy"]
        got: dict[tuple[int, PartitionKey], list[bytes]] = {}

        async def one_reads(keys: list[PartitionKey], at: int) -> int:
            provider, who = readers[at]
            new = 0
            for key in keys:
                have = got.setdefault((at, key), [])
                page = await received(provider, who, hub.config.provider, key, len(have))
                have += page
                new += len(page)
            return new

        async def some_read(keys: list[PartitionKey]) -> None:
            await one_reads([key for key in keys if dice.random() < 0.3], dice.randrange(len(readers)))

        sequenced = await play(recording, hub, then=some_read)
        for at in range(len(readers)):
            while await one_reads(list(sequenced), at):  # an answer may lack messages that have not been pushed yet
                pass
        for (_, key), messages in got.items():
            assert messages == sequenced[key]


async def test_a_follower_that_is_behind_of_a_counter_that_its_hub_gave_out_asks_for_the_messages(
    tmp_path: Path,
) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, *NAMES[:2], clock=clock, jobs_of=JOBS) as (hub, follower):
        alice, bob, room = device(hub), device(follower, "bob"), Room()
        await hub.services.hub.create_group(room.creation(), alice)
        send = follower.services.hub_router.hub(room.hub).send
        await send(bob, room.send("0"))
        await wait_stored(follower, room.hub, bob, room.key, 1)
        await hub.services.store.write(lambda tx: tx.execute("UPDATE follows SET suspended_reason = 'too large'"))
        for n in range(1, 4):
            await hub.services.hub.send(room.send(f"{n}"), alice)
        await hub.services.store.write(
            lambda tx: tx.execute("UPDATE follows SET suspended_reason = NULL, next_counter = 4")
        )
        await send(bob, room.send("4"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        clock.advance(1)
        assert await wait_stored(follower, room.hub, bob, room.key, 5) == ["0", "1", "2", "3", "4"]


async def test_a_partition_that_falls_behind_while_its_hub_is_asked_is_asked_about_next(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, *NAMES[:2], clock=clock, jobs_of=("delivery",)) as (hub, follower):
        alice, bob, room = device(hub), device(follower, "bob"), Room()
        asked: list[MaskedPartitionKey] = []
        answer = trio.Event()

        async def answers_late(called: Called) -> PeerAnswer:
            asked.append(decode(ResumeRequest, called.body).masked_partition_key)
            await answer.wait()
            raise NotFollowed

        left, right = room.new_key(), room.new_key()
        await hub.services.hub.create_group(room.creation(), alice)
        for request in (room.commit("left", left), room.commit("right", right)):
            await hub.services.hub.send(request, alice)
        for key in (left, right):
            await follower.services.hub_router.hub(room.hub).send(bob, room.send("0", key, epoch=1))
            await wait_stored(follower, room.hub, bob, key, 1)
        async with trio.open_nursery() as jobs:
            await jobs.start(follower.services.sync.run)
            await trio.testing.wait_all_tasks_blocked(0.05)
            follower.peers.add(room.hub, answers_late)
            for key in (left, right):
                follower.services.sync.note_behind(room.hub, room.group_id, key.mask(32), Counter(1))
                await trio.testing.wait_all_tasks_blocked(0.05)
                clock.advance(1)
                await trio.testing.wait_all_tasks_blocked(0.05)
            answer.set()
            await trio.testing.wait_all_tasks_blocked(0.05)
            clock.advance(1)
            await until(lambda: _asked_about(asked, left.mask(32), right.mask(32)))
            jobs.cancel_scope.cancel()


async def _asked_about(asked: list[MaskedPartitionKey], *keys: MaskedPartitionKey) -> bool:
    return asked == [*keys]


async def test_what_is_known_of_a_partition_is_answered_while_its_hub_is_away(tmp_path: Path) -> None:
    async with federated(tmp_path, *NAMES[:2]) as (hub, follower):
        alice, bob, room = device(hub), device(follower, "bob"), Room()
        following, unseen = room.new_key(), room.new_key()
        await hub.services.hub.create_group(room.creation(), alice)
        await follower.services.hub_router.hub(room.hub).send(bob, room.send("0"))
        await hub.services.hub.send(room.commit("1", following), alice)
        await wait_stored(follower, room.hub, bob, room.key, 2)
        del follower.peers.peers[hub.config.provider]
        assert await read(follower, bob, room.hub, following) == []  # the commit that opens it is stored
        assert await read(follower, bob, room.hub, room.key, 2) == []
        assert await read(follower, bob, room.hub, room.key, 1) == ["1"]
        with pytest.raises(PeerUnavailable):
            await read(follower, bob, room.hub, following, 1)  # the device has more than its provider
        with pytest.raises(PeerUnavailable):
            await read(follower, bob, room.hub, unseen)
        await follower.services.store.write(partial(add_partition_of_a_sender, room, unseen))
        with pytest.raises(PeerUnavailable):
            await read(follower, bob, room.hub, unseen)


def add_partition_of_a_sender(room: Room, key: PartitionKey, tx: Tx) -> None:
    """Add a partition whose messages are not here, as when a device sent the first one."""
    group = groups.find_group(tx, providers.provider_row(tx, room.hub) or 0, room.group_id)
    assert group is not None
    find_or_add_partition(tx, group, key.mask(32), Milliseconds(1))


async def test_a_device_that_waits_gets_what_is_pushed_while_its_hub_cannot_be_asked(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, *NAMES[:2], clock=clock) as (hub, follower):
        alice, bob, room = device(hub), device(follower, "bob"), Room()
        await hub.services.hub.create_group(room.creation(), alice)
        at_follower = follower.services.hub_router.hub(room.hub)
        await at_follower.send(bob, room.send("0"))
        await wait_stored(follower, room.hub, bob, room.key, 1)
        del follower.peers.peers[hub.config.provider]
        got: list[bytes] = []

        async def wait(counter: int) -> None:
            request = ReceiveRequest(room.key, Counter(counter))
            got.append(await at_follower.receive(bob, request, wait_seconds=20))

        for counter, expected in ((1, ["1"]), (2, [])):
            async with trio.open_nursery() as waiting:
                waiting.start_soon(wait, counter)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert not got
                if expected:
                    await hub.services.hub.send(room.send("1"), alice)
                while not got and not expected:  # it may not have begun to wait: it reads the store first
                    clock.advance(20)
                    await trio.sleep(0.05)
            assert texts(got.pop()) == expected


class Line:
    """The connection of a stream, until it is cut."""

    heard_at = 0.0

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
        match self.dice.choices(range(8), (35, 7, 13, 20, 5, 8, 6, 6))[0]:
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
                self.clock.advance(self.dice.choice((1, 5, 70)))
            case 7:
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
