"""A device's stream at real providers: under trio and asyncio, with broken connections and a killed provider."""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
import attrs
import pytest
import trio

from mimids.client import Arrived, Backoff, NotServed, Problem, Sending, Stream, open_device, requests
from mimids.testing import DeviceAccount, PretendGroup, Provider, Session, content_of, open_federation
from mimids.wire.ids import CipherSuite, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import SendResponse

QUICK = Backoff(0.01, 0.1)
NAMES = ("a.example", "b.example")


class Cutter:
    """The network between a device and its provider: `cut` breaks all open connections."""

    def __init__(self, target: str, nursery: trio.Nursery, listener: trio.SocketListener) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = parts.hostname, parts.port
        self.url = f"https://127.0.0.1:{listener.socket.getsockname()[1]}"
        self.connections = 0
        self._nursery = nursery
        self._open: set[trio.CancelScope] = set()

    def cut(self) -> None:
        for scope in self._open:
            scope.cancel()

    async def carry(self, device: trio.SocketStream) -> None:
        self.connections += 1
        with trio.CancelScope() as scope:
            self._open.add(scope)
            try:
                async with device, await trio.open_tcp_stream(*self._target) as provider, trio.open_nursery() as both:
                    both.start_soon(self._pass_on, device, provider, scope)
                    both.start_soon(self._pass_on, provider, device, scope)
            except OSError:
                pass
            finally:
                self._open.discard(scope)

    async def _pass_on(self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(4096):
                await target.send_all(data)
        except trio.BrokenResourceError:
            pass
        scope.cancel()


@asynccontextmanager
async def cutter(account: DeviceAccount) -> AsyncIterator[Cutter]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        made = Cutter(account.url, nursery, listener)
        nursery.start_soon(trio.serve_listeners, made.carry, [listener])
        yield made
        nursery.cancel_scope.cancel()


async def read(stream: Stream, number: int) -> list[str]:
    """Return the contents of the next messages, checking that they follow each other."""
    got: list[str] = []
    counter = None
    while len(got) < number:
        event = await anext(stream)
        if isinstance(event, NotServed):
            continue  # its provider has to follow the partition first
        assert isinstance(event, Arrived), event
        assert counter in (None, event.counter)
        assert event.skipped == 0
        counter = event.next_counter
        got += [content_of(each).decode() for each in event.messages]
    return got


async def converse(session: Session) -> None:
    """Do everything once, under trio or asyncio."""
    async with open_federation(*NAMES, session=session) as (a, b):
        group = PretendGroup.at(a.name)
        alice, bob = a.add_device("alice"), b.add_device("bob")
        with anyio.fail_after(20):
            async with alice.client() as hers, bob.client() as his, hers.stream() as one, his.stream() as two:
                await hers.create_group(group.creation())
                one.present(group.hub, group.key)
                assert (await one.send(group.hub, group.message(b"hello"))).counter == 0
                two.present(group.hub, group.key)
                assert await read(two, 1) == ["hello"]
                commit, following = group.commit()
                two.present(group.hub, following.key)
                assert (await two.send(group.hub, commit)).counter == 1
                assert (await one.send(group.hub, following.message(b"next epoch"))).counter == 0
                await his.leave(group.hub, group.group_id)
                assert await his.report(ProviderId(a.name), a.name, "test", group_id=group.group_id) > 0


async def test_groups_with_the_shortest_and_the_longest_id_are_created_and_left(mimids_session: Session) -> None:
    async with open_federation("a.example", session=mimids_session) as (a,), a.add_device("alice").client() as alice:
        hub = ProviderId(a.name)
        for octets in (b"\0", bytes(range(256))):
            group_id = GroupId(octets)
            await alice.create_group(requests.creation(group_id, CipherSuite(1), PartitionKey(secrets.token_bytes(16))))
            await alice.leave(hub, group_id)
        request = requests.creation(GroupId(b"any"), CipherSuite(1), PartitionKey(secrets.token_bytes(16)))
        for octets in (b"", bytes(257)):
            with pytest.raises(ValueError, match="a group id has"):
                requests.creation(GroupId(octets), CipherSuite(1), request.partition_key)
            with pytest.raises(ValueError, match="a group id has"):
                await alice.leave(hub, GroupId(octets))
            unchecked = attrs.evolve(cast("Any", request), group_id=octets)
            with pytest.raises(Problem) as refused:
                await alice.create_group(unchecked)
            assert refused.value.code == "malformed"


def kill_and_start(provider: Provider) -> None:
    provider.kill()
    provider.start()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_streams_work_alike_under_trio_and_asyncio(backend: str, mimids_session: Session) -> None:
    anyio.run(converse, mimids_session, backend=backend)


# Over 40 lines: one scenario, whose steps share all of its objects.
# Longer than 40 lines: one story, in which each step needs the one before.
async def test_with_many_broken_connections_nothing_is_lost_or_repeated(mimids_session: Session) -> None:
    seeded, number = random.Random(7), 400
    async with open_federation(*NAMES, session=mimids_session) as (a, b):
        group = PretendGroup.at(a.name)
        alice, bob = a.add_device("alice"), b.add_device("bob")
        async with (
            cutter(alice) as hers,
            cutter(bob) as his,
            open_device(hers.url, alice.token, trust=alice.ca_file) as one,
            open_device(his.url, bob.token, trust=bob.ca_file) as two,
            alice.client() as direct,
        ):
            await direct.create_group(group.creation())
            async with (
                one.stream(backoff=QUICK) as sends,
                two.stream(backoff=QUICK) as hears,
                trio.open_nursery() as cutting,
            ):
                results: list[SendResponse | Problem] = []

                async def cut() -> None:
                    while True:
                        await trio.sleep(seeded.uniform(0.02, 0.15))
                        seeded.choice((hers, his)).cut()

                async def collect(sending: Sending) -> None:
                    results.extend(await sending.wait())

                async def talk() -> None:
                    async with trio.open_nursery() as waiting:
                        for start in range(0, number, 20):
                            requests = [group.message(b"%d" % each) for each in range(start, start + 20)]
                            waiting.start_soon(collect, sends.send_nowait(group.hub, requests))
                            await trio.sleep(seeded.uniform(0, 0.2))

                with trio.fail_after(60):
                    cutting.start_soon(cut)
                    hears.present(group.hub, group.key)
                    async with trio.open_nursery() as talking:
                        talking.start_soon(talk)
                        got = await read(hears, number)
                assert sends.statistics().in_flight == 0
                assert sends.statistics().connections + hears.statistics().connections > 4
                cutting.cancel_scope.cancel()
            assert got == [str(each) for each in range(number)]
            counters = [each.counter for each in results if isinstance(each, SendResponse)]
            assert sorted(counters) == list(range(number))
            assert len(a.stored(group.key)) == number


async def test_a_killed_provider_answers_messages_in_flight_after_its_restart(mimids_session: Session) -> None:
    async with open_federation("a.example", session=mimids_session) as (a,):
        group = PretendGroup.at(a.name)
        async with a.add_device("alice").client() as alice, alice.stream(backoff=QUICK) as stream:
            await alice.create_group(group.creation())
            stream.present(group.hub, group.key)
            with trio.fail_after(30):
                await stream.send(group.hub, group.message(b"0"))
                for start in (1, 51, 101):
                    numbers = range(start, start + 50)
                    sending = stream.send_nowait(group.hub, [group.message(b"%d" % each) for each in numbers])
                    await trio.sleep(0.005 * (start % 4))
                    await trio.to_thread.run_sync(kill_and_start, a)
                    results = await sending.wait()
                    assert [each.counter for each in results if isinstance(each, SendResponse)] == list(numbers)
                assert await read(stream, 151) == [str(each) for each in range(151)]
