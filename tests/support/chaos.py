"""People who talk through everything: groups with forks, devices that listen, and what befalls their providers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import attrs
import trio

from mimids.client import Arrived, Backoff, Device, NotServed, Problem, Stream
from mimids.testing import Federation, PretendGroup, Provider, Session, open_federation
from mimids.wire.ids import PartitionKey, ProviderId
from mimids.wire.messages import SendRequest, SendResponse
from tests.support.stage import NAMES

DEVICES = 20
GROUPS = 10
MEMBERS = 8  # of each group
BRANCHES = 3  # of each group, at most
PAUSE_SECONDS = 0.2  # between two messages of a group, on average
AGAIN_SECONDS = 0.1
SETTLE_SECONDS = 40
CONFIG: dict[str, dict[str, int]] = {
    "limits": {"device_sends_per_second": 0},
    "federation": {"connect_seconds": 2, "answer_seconds": 4},
    "delivery": {"backoff_cap_seconds": 1},
}


@attrs.define(eq=False)
class Person:
    """A device with its stream, and what it got of each partition."""

    name: str
    device: Device
    stream: Stream
    got: dict[PartitionKey, list[bytes]] = attrs.field(factory=dict)

    def learn(self, group: PretendGroup) -> None:
        """Present the key of an epoch that begins."""
        self.got[group.key] = []
        self.stream.present(group.hub, group.key)

    async def listen(self) -> None:
        """Take what comes; it must be what comes next."""
        async for event in self.stream:
            if isinstance(event, Arrived):
                got = self.got[event.partition_key]
                assert (event.counter, event.skipped) == (len(got), 0), self.name
                got += [message.message.encoded for message in event.messages]
            elif isinstance(event, NotServed):
                assert event.problem.code == "unknown-partition", event

    async def say(self, hub: ProviderId, request: SendRequest) -> SendResponse:
        """Send a message until it is acknowledged."""
        while True:
            try:
                return await self.stream.send(hub, request)
            except Problem as problem:
                if not problem.is_temporary:
                    raise
                await trio.sleep(AGAIN_SECONDS)


@attrs.define(eq=False)
class Talk:
    """A group, the branches that go on, and by partition what was acknowledged under which counter."""

    members: list[Person]
    branches: list[PretendGroup]
    chance: random.Random
    said: dict[PartitionKey, dict[int, bytes]] = attrs.field(factory=dict)
    forks: int = 0

    async def go_on(self, stop: trio.Event) -> None:
        """Say one thing after the other, mostly messages, now and then a commit, seldom two at once."""
        number = 0
        while not stop.is_set():
            index = self.chance.randrange(len(self.branches))
            dice = self.chance.random()
            if dice < 0.88:
                await self._say(self.branches[index].message(b"%d" % number))
            elif dice < 0.97 or len(self.branches) == BRANCHES:
                self.branches[index] = await self._commit(self.branches[index])
            else:
                self.forks += 1
                self.branches += [await self._commit(self.branches[index])]
                self.branches[index] = await self._commit(self.branches[index])
            number += 1
            await trio.sleep(self.chance.uniform(0, 2 * PAUSE_SECONDS))

    async def _commit(self, group: PretendGroup) -> PretendGroup:
        request, following = group.commit()
        await self._say(request)
        for member in self.members:
            member.learn(following)
        return following

    async def _say(self, request: SendRequest) -> None:
        person = self.chance.choice(self.members)
        answer = await person.say(self.branches[0].hub, request)
        of_partition = self.said.setdefault(request.partition_key, {})
        assert answer.counter not in of_partition
        of_partition[answer.counter] = request.message.encoded

    def missing(self) -> list[str]:
        """Say what a member does not have yet; wrong is what it has and should not."""
        missing = []
        for key, by_counter in self.said.items():
            wanted = [by_counter[counter] for counter in range(len(by_counter))]
            for member in self.members:
                got = member.got[key]
                assert got == wanted[: len(got)], member.name
                if len(got) < len(wanted):
                    missing.append(f"{member.name} has {len(got)} of {len(wanted)} at {self.branches[0].hub}")
        return missing


@attrs.define(eq=False)
class Chaos:
    """Everything at once."""

    federation: Federation
    talks: list[Talk]
    people: list[Person]

    async def settle(self) -> None:
        """Wait until every device has exactly the messages of its partitions, in order, none twice."""
        give_up_at = trio.current_time() + SETTLE_SECONDS
        while missing := [each for talk in self.talks for each in talk.missing()]:
            assert trio.current_time() < give_up_at, missing
            await trio.sleep(0.1)

    async def wait_said(self, messages: int) -> None:
        """Let them talk until so many messages are acknowledged, on however slow a machine."""
        give_up_at = trio.current_time() + SETTLE_SECONDS
        while (said := self.messages) < messages:
            assert trio.current_time() < give_up_at, said
            await trio.sleep(0.1)

    @property
    def messages(self) -> int:
        return sum(len(said) for talk in self.talks for said in talk.said.values())


@asynccontextmanager
async def talking(session: Session, chance: random.Random) -> AsyncIterator[Chaos]:
    """Let everybody talk while the block runs; then let them finish, and wait until all is settled."""
    async with open_federation(*NAMES, config=CONFIG, session=session) as federation, AsyncExitStack() as stack:
        homes = [federation[NAMES[number % len(NAMES)]] for number in range(DEVICES)]
        people = [await _person(stack, home, f"{number}@{home.name}") for number, home in enumerate(homes)]
        talks = [await _talk(people, homes, random.Random(chance.random())) for _ in range(GROUPS)]
        chaos = Chaos(federation, talks, people)
        stop = trio.Event()
        async with trio.open_nursery() as listening:
            for person in people:
                listening.start_soon(person.listen)
            async with trio.open_nursery() as speaking:
                for talk in talks:
                    speaking.start_soon(talk.go_on, stop)
                yield chaos
                stop.set()
                speaking.cancel_scope.deadline = trio.current_time() + SETTLE_SECONDS
            assert not speaking.cancel_scope.cancelled_caught, "somebody is still not answered"
            await chaos.settle()
            listening.cancel_scope.cancel()


async def _person(stack: AsyncExitStack, home: Provider, name: str) -> Person:
    account = await trio.to_thread.run_sync(home.add_device, name.partition("@")[0])
    device = await stack.enter_async_context(account.client())
    stream = await stack.enter_async_context(device.stream(backoff=Backoff(0.5, cap_seconds=1)))
    return Person(name, device, stream)


async def _talk(people: list[Person], homes: list[Provider], chance: random.Random) -> Talk:
    """Begin a group with members at every provider; the first one's is the hub."""
    numbers = chance.sample(range(DEVICES), MEMBERS)
    while len({homes[number].name for number in numbers}) < len(NAMES):
        numbers = chance.sample(range(DEVICES), MEMBERS)
    group = PretendGroup.at(homes[numbers[0]].name, random=chance.randbytes)
    members = [people[number] for number in numbers]
    await members[0].device.create_group(group.creation())
    for member in members:
        member.learn(group)
    return Talk(members, [group], chance)


# --- what befalls a provider --------------------------------------------------------------------------------------

Harm = Callable[[Federation, Provider, float], Awaitable[None]]


async def kill(federation: Federation, provider: Provider, seconds: float) -> None:
    await trio.to_thread.run_sync(provider.kill)
    await trio.sleep(seconds / 2)
    await trio.to_thread.run_sync(provider.start)


async def stop(federation: Federation, provider: Provider, seconds: float) -> None:
    provider.stop()
    await trio.sleep(seconds)
    provider.cont()


async def on_links(change: str, *arguments: float, federation: Federation, provider: Provider, seconds: float) -> None:
    others = [other for other in federation if other is not provider]
    links = [federation.link(*ends) for other in others for ends in ((provider, other), (other, provider))]
    for link in links:
        await trio.to_thread.run_sync(partial(getattr(link, change), *arguments))
    await trio.sleep(seconds)
    for link in links:
        await trio.to_thread.run_sync(link.restore)


def link_harm(change: str, *arguments: float) -> Harm:
    async def harm(federation: Federation, provider: Provider, seconds: float) -> None:
        await on_links(change, *arguments, federation=federation, provider=provider, seconds=seconds)

    return harm


def answer_harm(change: str, *arguments: int) -> Harm:
    async def harm(federation: Federation, provider: Provider, seconds: float) -> None:
        await trio.to_thread.run_sync(partial(getattr(provider, change), *arguments))
        await trio.sleep(seconds)
        await trio.to_thread.run_sync(provider.restore)

    return harm


HARMS: dict[str, Harm] = {
    "killed": kill,
    "stopped": stop,
    "cut off": link_harm("cut"),
    "stalled": link_harm("stall"),
    "slowed": link_harm("delay", 0.05),
    "heard twice": link_harm("duplicate"),
    "answers 503": answer_harm("answer", 503),
    "answers 500": answer_harm("answer", 500),
    "answers garbage": answer_harm("garbage"),
}
