"""A hub's services on a large database, with other providers in memory; it is the same program as a server's."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from mimids.assembly import make_services
from mimids.config import Config
from mimids.ds.clock import SystemClock
from mimids.ds.commands import Context, command_named
from mimids.ds.following.delivery import _look
from mimids.ds.ports import PeerAnswer
from mimids.ds.services import Services
from mimids.ds.upkeep.retention_plan import Cutoffs, plan_group
from mimids.errors import PeerUnavailable
from mimids.http.api.operator import OPERATOR
from mimids.http.console.mount import with_console
from mimids.store import moved, peers, recoveries
from mimids.store.engine.sqlite import connect
from mimids.store.engine.transaction import Tx
from mimids.store.moved import Looked
from mimids.testing import PretendGroup
from mimids.values import Device, DeviceRow, Follower
from mimids.wire.base64url import base64url
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, BearerToken, CipherSuite, Counter, ProviderId, UserId
from mimids.wire.messages import KeyPackageRequest, PushRequest, PushResponse, ReceiveRequest, SendRequest
from tests.support import big_database
from tests.support.big_database import EPOCHS, HUB, Branch, Sizes
from tests.support.counting import CountingConnection, counting_store
from tests.support.doubles import Called, FakePeers, SpyLog
from tests.support.inmemory import InMemory
from tests.support.provider import Assembled, Authority, assembled

CONTENT_OCTETS: Final = 160
IN_USE: Final = 100  # groups with traffic, however many there are
NO_RATES: Final = {
    "device_requests_per_minute": 0,
    "device_sends_per_second": 0,
    "user_sends_per_second": 0,
    "device_bytes_per_day": 0,
    "provider_sends_per_second": 0,
    "device_joins_per_hour": 0,
}


@attrs.define
class BigHub:
    """The services, and makers of requests for partitions chosen at random."""

    assembled: Assembled
    sizes: Sizes
    chance: random.Random
    first_push: trio.Event = attrs.field(factory=trio.Event)  # set by the next push to any provider

    @property
    def services(self) -> Services:
        return self.assembled.services

    def tip(self) -> Branch:
        """Return the newest partition of one of the groups in use, chosen at random."""
        spread = self.sizes.groups // IN_USE
        return Branch(self.chance.randrange(IN_USE) * spread, EPOCHS - 1)

    def group(self, branch: Branch) -> PretendGroup:
        return PretendGroup(ProviderId(HUB), big_database.group_id(branch.group), branch.epoch, branch.key)

    def message(self) -> SendRequest:
        """Return an application message to a group chosen at random."""
        return self.group(self.tip()).message(secrets.token_bytes(CONTENT_OCTETS))

    def commit(self) -> SendRequest:
        return self.group(self.tip()).commit(secrets.token_bytes(CONTENT_OCTETS))[0]

    def device(self) -> Device:
        return device_of(1 + self.chance.randrange(self.sizes.devices))

    def requests(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """Return a request of each kind, by name; each call chooses a partition, a device and a user at random."""
        hub, services = self.services.hub, self.services

        def receive(caller: Device | Follower) -> Awaitable[object]:
            return hub.receive(ReceiveRequest(self.tip().key, Counter(1)), caller)

        def claim() -> Awaitable[object]:
            user = 1 + self.chance.randrange(self.sizes.users)
            token = BearerToken(big_database.token_octets(user))
            return services.key_packages.claim([KeyPackageRequest(user_id(user), token, MLS10, CipherSuite(1))])

        def page() -> Awaitable[object]:
            own = services.hub_router.hub(services.config.provider)
            return own.page(self.device(), ReceiveRequest(self.tip().key, Counter(1)), limit_octets=65_536)

        return {
            "send": lambda: hub.send(self.message(), self.device()),
            "send of a follower": lambda: hub.send(self.message(), Follower(self.provider())),
            "receive": lambda: receive(self.device()),
            "receive of a follower": lambda: receive(Follower(self.provider())),
            "page of a stream": page,
            "claim": claim,
            "stock": lambda: services.key_packages.stock(self.device()),
            "inbox": lambda: services.incoming_welcomes.inbox(self.device().row),
            "commit": lambda: hub.send(self.commit(), self.device()),
        }

    def beside(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """Return work that a server does beside requests, by name: each costs the same in every database."""
        services, config = self.services, self.services.config
        operator = InMemory(with_console(self.assembled.app(OPERATOR), services))
        cutoffs = Cutoffs.of(config.retention, services.clock.now())

        async def look() -> None:
            rows = [self.tip().row for _ in range(10)]
            await services.store.write(lambda tx: moved.touch(tx, rows))
            start = await services.store.read(lambda tx: moved.settled(tx) - len(rows))
            await services.store.read(partial(_look, Looked.up_to(start), self._down))

        async def push() -> None:
            def make(tx: Tx) -> None:
                peer = peers.find_peer(tx, self.chance.choice(self._down))
                assert peer is not None
                assert services.delivery._pushes.next_push(peer, 65_536, tx) is not None

            await services.store.read(make)

        async def plan() -> None:
            group = 1 + self.tip().group
            await services.store.read(partial(plan_group, group=group, hub=1, ours=1, cutoffs=cutoffs))

        async def release() -> None:
            group = self.tip().group + 1  # not one that requests go to
            await services.store.write(lambda tx: recoveries.ask(tx, 1 + group, self.chance.choice(self._down)))
            await self._command("group release", group)

        return {
            "a look for who is due": look,
            "a push to a provider that was down": push,
            "/metrics": lambda: operator.ask("GET", "/metrics"),
            "/console": lambda: operator.ask("GET", "/console"),
            "group show": lambda: self._command("group show", self.tip().group),
            "group release": release,
            "a retention plan": plan,
            "a sweep that finds nothing": services.sweeper.sweep,
        }

    @property
    def _down(self) -> list[int]:
        return [2 + n for n in range(big_database.DOWN)]

    async def _command(self, name: str, group: int) -> None:
        services, command = self.services, command_named(name)
        context = Context.of(services.config, services.clock.now())
        given = {"group": base64url(big_database.group_id(group))}
        if command.writes:
            await services.store.write_or_refuse(command.refusable(context, given))
        else:
            await services.store.read_apart(lambda tx: command.run(tx, context, given))

    def provider(self) -> ProviderId:
        """Return a provider that follows groups and is not down."""
        return ProviderId(f"p{self.chance.randrange(big_database.DOWN, big_database.FOLLOWERS)}.example")


def device_of(row: int) -> Device:
    user = 1 + (row - 1) // 2
    return Device(ProviderId(HUB), user_id(user), DeviceRow(row), f"d{row % 2}")


def user_id(user: int) -> UserId:
    return UserId(b"mimi://a.example/u/u%d" % user)


def prepare(directory: Path, messages: int) -> Config:
    """Make a database with so many messages below a directory, unless there is one; return the configuration."""
    config = Authority(directory).config(HUB, limits=NO_RATES)
    with closing(connect(config.database)) as connection:
        (found,) = connection.execute("SELECT count(*) FROM providers").fetchone()
    if not found:
        big_database.fill(config.database, messages, now=time.time_ns() // 1_000_000)
    return config


@asynccontextmanager
async def running(directory: Path, messages: int) -> AsyncIterator[BigHub]:
    """Run the services on such a database, with the store of a server."""
    async with assembled(prepare(directory, messages)) as hub:
        yield _with_followers(hub, messages)


@asynccontextmanager
async def counted(directory: Path, messages: int) -> AsyncIterator[tuple[BigHub, CountingConnection]]:
    """Make the services on such a database, with a store that counts statements and steps."""
    config = prepare(directory, messages)
    with closing(connect(config.database, synchronous="NORMAL")) as connection:
        counting, peers, log = CountingConnection(connection), FakePeers(), SpyLog(config.provider)
        services = make_services(config, SystemClock(), log.telemetry, counting_store(counting), peers)
        yield _with_followers(Assembled(config, services, peers, log), messages), counting


def _with_followers(assembled_: Assembled, messages: int) -> BigHub:
    hub = BigHub(assembled_, Sizes(messages), random.Random(messages))
    for n in range(big_database.FOLLOWERS):
        assembled_.peers.add(f"p{n}.example", _down if n < big_database.DOWN else partial(_follower, hub))
    return hub


async def _down(called: Called) -> PeerAnswer:
    raise PeerUnavailable


async def _follower(hub: BigHub, called: Called) -> PeerAnswer:
    """Answer as a follower that stores everything."""
    if called.path != "/ds/v1/push":
        raise PeerUnavailable
    hub.first_push.set()
    epochs = decode(PushRequest, called.body).epochs
    wanted = tuple(Counter(each.counter + len(each.epoch.messages)) for each in epochs)
    return PeerAnswer(encode(PushResponse(wanted)))
