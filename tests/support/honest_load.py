"""Honest users of three providers: they send, listen, fetch KeyPackages and invite, and check what they were promised.

The users of the hub and of the follower talk in two groups. Others fetch KeyPackages of Carol at the gateway's
provider, over OHTTP through their own provider, and invite her by them. Each request is repeated until its answer is
final.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import ParamSpec, TypeVar

import attrs
import trio

from mimids.client import Arrived, Backoff, Contact, Device, Problem, Stream, Unreachable
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import HpkeCiphertext
from mimids.mls.suites import SUITES, key_package_ref
from mimids.mls.welcome import EncryptedGroupSecrets, Welcome
from mimids.testing import Federation, PretendGroup, Provider, content_of
from mimids.wire.ids import MLS10, Counter, PartitionKey, ProviderId
from mimids.wire.messages import InboxWelcome, SendRequest, SendResponse, WelcomeData
from tests.support.mls_makers import replace
from tests.support.people import key_packages
from tests.support.stage import SUITE

P = ParamSpec("P")
T = TypeVar("T")

SENDERS = 2  # at the hub, and at the follower
FETCHERS = 2  # at the follower
INVITERS = 2  # at the hub
AGAIN_SECONDS = 0.05
FETCH_SECONDS = 0.1
STOCK = 200  # of each of Carol's devices
SETTLE_SECONDS = 40
BACKOFF = Backoff(0.2, cap_seconds=1)
UNLIMITED = {
    "limits": {
        "device_fetches_per_minute": 0,
        "user_fetches_per_minute": 0,
        "device_sends_per_second": 0,
        "device_groups": 0,
    }
}


@attrs.define(eq=False)
class HonestLoad:
    """The answers so far, all of which have to stay true, and how long each took."""

    hub: Provider
    follower: Provider
    gateway: Provider
    pace_seconds: float  # between two messages of a sender
    fetch_seconds: float  # between two fetches of a device
    groups: list[PretendGroup] = attrs.field(factory=list)
    sent: list[tuple[SendRequest, SendResponse]] = attrs.field(factory=list)
    heard: list[dict[PartitionKey, list[bytes]]] = attrs.field(factory=list)  # by each listening device
    fetched: list[bytes] = attrs.field(factory=list)
    invited: dict[bytes, float] = attrs.field(factory=dict)  # Welcomes that were sent, and when
    promised: set[bytes] = attrs.field(factory=set)  # Welcomes whose commit was acknowledged
    welcomed: dict[bytes, set[int]] = attrs.field(factory=dict)  # Welcomes that arrived, with their ids
    seconds: dict[str, list[float]] = attrs.field(factory=lambda: {"send": [], "fetch": [], "welcome": []})
    repeats: int = 0  # requests that had no final answer

    # --- the users ----------------------------------------------------------------------------------------------

    async def send_on(self, device: Device, group: PretendGroup, name: str) -> None:
        for number in count():
            request = group.message(f"{name} {number}".encode())
            self.sent.append((request, await self._timed("send", device.send, group.hub, request)))
            await trio.sleep(self.pace_seconds)

    async def fetch_on(self, device: Device, card: Contact) -> None:
        while True:
            await self._fetch(device, card)
            await trio.sleep(self.fetch_seconds)

    async def invite_on(self, device: Device, card: Contact) -> None:
        """Invite Carol to one new group after the other."""
        while True:
            ref = key_package_ref(SUITES[SUITE], await self._fetch(device, card))
            group = PretendGroup.at(self.hub.name)
            await self._repeated(device.create_group, group.creation())
            commit, _ = group.commit()
            secret = EncryptedGroupSecrets(ref, HpkeCiphertext(b"k", b"c"))
            welcome = MLSMessage(MLS10, WireFormat.WELCOME, Welcome(SUITE, (secret,), b"info"))
            data = WelcomeData(welcome, (ProviderId(self.gateway.name),))
            inviting = replace(commit, commit_data=replace(commit.commit_data, welcome_data=data))
            self.invited[welcome.encoded] = time.monotonic()
            await self._repeated(device.send, group.hub, inviting)
            self.promised.add(welcome.encoded)
            await trio.sleep(3 * self.fetch_seconds)

    async def keep_stocked(self, device: Device, seed: int) -> None:
        """Upload Carol's KeyPackages, and more of them before they run out."""
        while True:
            made = await trio.to_thread.run_sync(key_packages, seed, f"carol@{self.gateway.name}", STOCK)
            await self._repeated(device.upload, made)
            left = STOCK
            while left > STOCK // 2:
                await trio.sleep(1)
                left = sum(each["left"] for each in (await self._repeated(device.me))["stock"])

    async def listen(self, stream: Stream, heard: dict[PartitionKey, list[bytes]]) -> None:
        """Receive messages; each must be the next one of its partition."""
        async for event in stream:
            if isinstance(event, Arrived):
                of_partition = heard[event.partition_key]
                assert (event.counter, event.skipped) == (len(of_partition), 0)
                of_partition += [message.message.encoded for message in event.messages]

    async def welcome(self, stream: Stream) -> None:
        """Receive and acknowledge Carol's Welcomes on one of her devices."""
        async for event in stream:
            if isinstance(event, InboxWelcome):
                octets = event.welcome.encoded
                if octets not in self.welcomed:
                    self.seconds["welcome"].append(time.monotonic() - self.invited[octets])
                self.welcomed.setdefault(octets, set()).add(event.welcome_id)
                stream.acknowledge(event.welcome_id)

    async def _fetch(self, device: Device, card: Contact) -> bytes:
        self.fetched.append(await self._timed("fetch", device.fetch_key_package, card, SUITE))
        return self.fetched[-1]

    async def _timed(self, kind: str, ask: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        began = time.monotonic()
        answer = await self._repeated(ask, *args, **kwargs)
        self.seconds[kind].append(time.monotonic() - began)
        return answer

    async def _repeated(self, ask: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                return await ask(*args, **kwargs)
            except Unreachable:
                self.repeats += 1
            except Problem as problem:
                if not problem.is_temporary and problem.code != "key-packages-exhausted":
                    raise
                self.repeats += 1
            await trio.sleep(AGAIN_SECONDS)

    # --- what was promised --------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Wait until everything promised has arrived."""
        promised = {request.message.encoded for request, _ in self.sent}
        give_up_at = trio.current_time() + SETTLE_SECONDS
        while True:
            missing = len(self.promised - self.welcomed.keys())
            for heard in self.heard:
                missing += len(promised.difference(*heard.values()))
            if not missing:
                return
            assert trio.current_time() < give_up_at, f"{missing} messages and Welcomes are missing"
            await trio.sleep(0.1)

    async def check(self, reader: Device) -> None:
        """Fail unless every acknowledged message is there once, and no KeyPackage was handed out twice."""
        messages = await self._heard_everywhere(reader)
        for request, answer in self.sent:
            assert messages[request.partition_key][answer.counter] == request.message.encoded, content_of(
                request.message
            )
        everything = [message for of_partition in messages.values() for message in of_partition]
        assert len(set(everything)) == len(everything)
        assert len(self.sent) <= len(everything) <= len(self.sent) + 2 * SENDERS  # and what was in flight
        for partition, lowest, highest, found in self.hub.read(
            "SELECT partition, min(counter), max(counter), count(*) FROM messages GROUP BY partition"
        ):
            assert (lowest, highest) == (0, found - 1), partition
        assert len(set(self.fetched)) == len(self.fetched)
        assert {len(ids) for ids in self.welcomed.values()} <= {1}, "a Welcome arrived twice"
        for request, answer in self.sent[-5:]:
            assert await reader.send(self.groups[0].hub, request) == answer  # a repeat gets the same answer
        for provider in (self.hub, self.follower, self.gateway):
            assert "Traceback" not in provider.log, provider.name

    async def _heard_everywhere(self, reader: Device) -> dict[PartitionKey, list[bytes]]:
        """Return all messages, once every listening device has heard them, also those that were never acknowledged."""
        give_up_at = trio.current_time() + SETTLE_SECONDS
        while True:
            messages = {group.key: await _all_of(reader, group) for group in self.groups}
            if all(heard == messages for heard in self.heard):
                return messages
            behind = [{key.mask(32).hex(): len(each) for key, each in heard.items()} for heard in self.heard]
            assert trio.current_time() < give_up_at, behind
            await trio.sleep(0.1)

    def p99(self, kind: str) -> float:
        """Return the 99th percentile of a kind of request, in seconds."""
        found = sorted(self.seconds[kind])
        return found[len(found) * 99 // 100]

    def summary(self) -> str:
        """Return how many requests of each kind completed, and their 99th percentiles."""
        kinds = (f"{len(found)} {kind}, p99 {self.p99(kind) * 1000:.0f} ms" for kind, found in self.seconds.items())
        return "; ".join([*kinds, f"{self.repeats} repeated"])


# Longer than 40 lines: it starts one task for each part of the load.
@asynccontextmanager
async def honest_load(
    federation: Federation,
    *,
    pace_seconds: float = 0,
    fetch_seconds: float = FETCH_SECONDS,
    roles: Sequence[Provider] = (),
    listening_at: Sequence[Provider] = (),
) -> AsyncIterator[HonestLoad]:
    """Run the load for the block; then check it.

    `roles` are hub, follower and gateway: by default the federation's first three providers. Devices listen at the
    follower, or at all that are `listening_at`.
    """
    hub, follower, gateway = roles or list(federation)[:3]
    load = HonestLoad(hub, follower, gateway, pace_seconds, fetch_seconds)
    async with AsyncExitStack() as stack:

        async def device(provider: Provider, user: str, name: str = "phone") -> Device:
            account = await trio.to_thread.run_sync(provider.add_device, user, name)
            return await stack.enter_async_context(account.client())

        alice = await device(hub, "alice")
        load.groups = [PretendGroup.at(hub.name) for _ in range(2)]
        for group in load.groups:
            await alice.create_group(group.creation())
        listeners = []
        for provider in listening_at or [follower]:
            listener = await stack.enter_async_context((await device(provider, "listener")).stream(backoff=BACKOFF))
            listeners.append(listener)
            load.heard.append({group.key: [] for group in load.groups})
            for group in load.groups:
                listener.present(group.hub, group.key, Counter(0))
        carol = [await device(gateway, "carol", name) for name in ("phone", "tablet")]
        inboxes = [await stack.enter_async_context(each.stream(backoff=BACKOFF)) for each in carol]
        card = await trio.to_thread.run_sync(gateway.contact, "carol")
        async with trio.open_nursery() as listening:
            for listener, heard in zip(listeners, load.heard, strict=True):
                listening.start_soon(load.listen, listener, heard)
            for inbox in inboxes:
                listening.start_soon(load.welcome, inbox)
            for seed, each in enumerate(carol, start=1):
                listening.start_soon(load.keep_stocked, each, seed)
            async with trio.open_nursery() as asking:
                for number in range(SENDERS):
                    for provider in (hub, follower):
                        sender = await device(provider, f"sender-{number}")
                        asking.start_soon(load.send_on, sender, load.groups[number % 2], f"{provider.name}-{number}")
                for number in range(FETCHERS):
                    asking.start_soon(load.fetch_on, await device(follower, f"fetcher-{number}"), card)
                for number in range(INVITERS):
                    asking.start_soon(load.invite_on, await device(hub, f"inviter-{number}"), card)
                yield load
                asking.cancel_scope.cancel()
            await load.settle()
            await load.check(alice)
            listening.cancel_scope.cancel()


async def _all_of(device: Device, group: PretendGroup) -> list[bytes]:
    return [message.message.encoded async for message in device.receive_all(group.hub, group.key)]
