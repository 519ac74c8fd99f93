"""More load beside `honest_load`: devices that join groups from outside, and phones that sleep until a push comes."""

from __future__ import annotations

import secrets
from collections import Counter as Tally
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import attrs
import trio

from mimids.client import Device
from mimids.mls.proposals import ExternalInit
from mimids.testing import PretendGroup, Provider, PushService
from mimids.testing.push_server import PushEndpoint
from mimids.wire.ids import MLS10, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import CommitData, CreateGroupRequest, ExternalJoinRequest, Message
from tests.support.chats import copied, joinable
from tests.support.honest_load import HonestLoad
from tests.support.signing import Client, Room, by_value, fresh_key
from tests.support.stage import SUITE

JOINS_OF_A_GROUP = 8
JOIN_SECONDS = 0.2  # between two joins
PHONES = 2  # at each provider
LOOK_SECONDS = 0.05  # between two looks for pushes
WAKE_SECONDS = 30.0  # the longest time until a phone that has news is woken
OPEN_TO_ALL = {"external_joins": "open"}  # [group]
ANY_JOINS = {"device_joins_per_hour": 0, "user_joins_per_hour": 0, "provider_joins_per_hour": 0}  # [limits]


@attrs.define(eq=False)
class MoreLoad:
    """What was acknowledged, and how often phones were woken."""

    load: HonestLoad
    service: PushService
    joined: list[tuple[PartitionKey, int, bytes]] = attrs.field(factory=list)  # partition, counter, external commit
    pushed: Tally[str] = attrs.field(factory=Tally)  # pushes by the path of the endpoint
    asked: Tally[str] = attrs.field(factory=Tally)  # requests of the phone with this endpoint
    woken: Tally[str] = attrs.field(factory=Tally)  # how often a push ended its sleep
    asleep: list[str] = attrs.field(factory=list)  # phones that news did not wake in time
    _bells: dict[str, trio.Event] = attrs.field(factory=dict)  # by path: the next push

    async def join_on(self, creator: Device, joiners: Sequence[Device]) -> None:
        """Make groups, and let the devices join them in turn, each as a new member."""
        hub = ProviderId(self.load.hub.name)
        while True:
            room, key = Room.create(Client.of(1)), PartitionKey(secrets.token_bytes(PartitionKey.SIZE))
            room.group_id = GroupId(secrets.token_bytes(16))
            creation = CreateGroupRequest(room.group_id, MLS10, SUITE, key, joinable(room), None, None)
            await self.load._repeated(creator.create_group, creation)
            for number in range(JOINS_OF_A_GROUP):
                message, after = room.commit(Client.of(2 + number), by_value(ExternalInit(fresh_key(room.suite))))
                commit, following = copied(message), PartitionKey(secrets.token_bytes(PartitionKey.SIZE))
                request = ExternalJoinRequest(commit, CommitData(following, joinable(after), None))
                answer = await self.load._repeated(joiners[number % len(joiners)].join, hub, request)
                self.joined.append((key, answer.counter, commit.encoded))
                room, key = after, following
                await trio.sleep(JOIN_SECONDS)

    async def doze_on(self, phone: Device, group: PretendGroup, endpoint: PushEndpoint) -> None:
        """Read all messages and sleep until a push comes, again and again; there are always new messages."""
        path, counter = urlsplit(endpoint.url).path, 0
        await self.load._repeated(phone.subscribe, endpoint.url, endpoint.p256dh, endpoint.auth)
        while True:
            bell = self._bells[path] = trio.Event()
            while page := await self.load._repeated(self._receive, phone, path, group, counter):
                counter += len(page)
            with trio.move_on_after(WAKE_SECONDS) as waiting:
                await bell.wait()
                self.woken[path] += 1
            if waiting.cancelled_caught:
                self.asleep.append(path)

    async def _receive(self, phone: Device, path: str, group: PretendGroup, counter: int) -> tuple[Message, ...]:
        self.asked[path] += 1
        return await phone.receive(group.hub, group.key, counter)

    async def count_pushes(self) -> None:
        """Count pushes as they come, and wake the phones."""
        while True:
            for push in self.service.pushes[self.pushed.total() :]:
                self.pushed[push.path] += 1
                if push.path in self._bells:
                    self._bells[push.path].set()
            await trio.sleep(LOOK_SECONDS)

    async def check(self, reader: Device, *, phones: int, kills: int) -> None:
        """Fail unless all joins are in their partitions once, and no phone got more pushes than it made requests."""
        hub = ProviderId(self.load.hub.name)
        for key, counter, commit in self.joined:
            stored = [message.message.encoded async for message in reader.receive_all(hub, key)]
            assert stored[counter] == commit
            assert stored.count(commit) == 1
        assert len(self.woken) == phones
        assert not self.asleep
        # A process that was killed may not have stored that it had heard a phone, or that a push was taken.
        surplus = self.pushed - self.asked
        assert surplus.total() <= kills, surplus


@asynccontextmanager
async def more_load(
    load: HonestLoad, service: PushService, providers: Sequence[Provider], *, kills: int
) -> AsyncIterator[MoreLoad]:
    """Run the load for the block, beside `load`, with phones at all providers; then check it."""
    more = MoreLoad(load, service)
    async with AsyncExitStack() as stack:

        async def device(provider: Provider, user: str, name: str = "phone") -> Device:
            account = await trio.to_thread.run_sync(provider.add_device, user, name)
            return await stack.enter_async_context(account.client())

        creator = await device(load.hub, "creator")
        joiners = [await device(provider, "joiner") for provider in (load.hub, load.follower)]
        async with trio.open_nursery() as busy:
            busy.start_soon(more.count_pushes)
            busy.start_soon(more.join_on, creator, joiners)
            for provider in providers:
                for number in range(PHONES):
                    phone = await device(provider, "sleeper", f"phone-{number}")
                    busy.start_soon(more.doze_on, phone, load.groups[number % len(load.groups)], service.endpoint())
            yield more
            busy.cancel_scope.cancel()
        await more.check(creator, phones=PHONES * len(providers), kills=kills)
