"""A restore drill under load: backup, an hour of traffic by the clock, restore, and the clients go on."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import AsyncExitStack, closing, nullcontext
from typing import Any

import attrs
import pytest
import trio
from click.testing import CliRunner

from mimids.cli.main import main
from mimids.client import Arrived, Backoff, Device, NotServed, Problem, StartedAgain, Stream
from mimids.testing import Federation, PretendGroup, Provider, Session, open_federation
from mimids.wire.ids import PartitionKey
from tests.support.chaos import CONFIG, SETTLE_SECONDS
from tests.support.stage import AWAY

pytestmark = [pytest.mark.slow, AWAY, pytest.mark.sqlite_file("backups and restores are of files")]

HOUR_SECONDS = 3600.0
STEPS = 20  # in which the hour passes


@attrs.define(eq=False)
class Person:
    """A device with its stream, and what it has of each partition."""

    device: Device
    stream: Stream
    got: dict[PartitionKey, list[bytes]] = attrs.field(factory=dict)
    told: int = 0  # how often it was sent back

    async def listen(self) -> None:
        """Receive messages: each is the next one, or follows the counter that the device was sent back to."""
        async for event in self.stream:
            if isinstance(event, Arrived):
                got = self.got[event.partition_key]
                assert (event.counter, event.skipped) == (len(got), 0)
                got += [message.message.encoded for message in event.messages]
            elif isinstance(event, StartedAgain):
                got = self.got[event.partition_key]
                assert event.counter == len(got) > event.next_counter
                del got[event.next_counter :]
                self.told += 1
            else:
                assert isinstance(event, NotServed), event
                assert event.problem.code == "unknown-partition", event


@attrs.define(eq=False)
class Drill:
    """A hub with a group of its own devices and one with another provider's, while their members talk."""

    federation: Federation
    groups: dict[PretendGroup, list[Person]]
    chance: random.Random
    acknowledged: dict[PartitionKey, dict[bytes, int]] = attrs.field(factory=dict)

    @property
    def hub(self) -> Provider:
        return self.federation["a.example"]

    async def talk(self, group: PretendGroup, stop: trio.Event, pause: float) -> None:
        """Let members send until `stop`; note the acknowledged messages with their counters."""
        sent = self.acknowledged.setdefault(group.key, {})
        while not stop.is_set():
            person = self.chance.choice(self.groups[group])
            request = group.message(b"%d" % self.chance.getrandbits(64))
            with trio.move_on_after(SETTLE_SECONDS):
                while True:
                    try:
                        sent[request.message.encoded] = (await person.stream.send(group.hub, request)).counter
                        break
                    except Problem as problem:
                        if not problem.is_temporary:
                            raise
                        await trio.sleep(0.1)
            await trio.sleep(self.chance.uniform(0, pause))

    async def wait_received(self) -> None:
        """Wait until every member has exactly what the hub has."""
        give_up_at = trio.current_time() + SETTLE_SECONDS
        for group, members in self.groups.items():
            stored = await in_thread(self.hub.stored, group.key)
            while any(member.got[group.key] != stored for member in members):
                assert trio.current_time() < give_up_at, [len(each.got[group.key]) for each in members]
                await trio.sleep(0.1)

    async def talk_for(self, seconds: float, pause: float, *, virtual_seconds: float = 0) -> None:
        """Let all groups talk for some time; `virtual_seconds` pass in it by the providers' clocks."""
        stop = trio.Event()
        async with trio.open_nursery() as talking:
            for group in self.groups:
                talking.start_soon(self.talk, group, stop, pause)
            for _ in range(STEPS):
                await trio.sleep(seconds / STEPS)
                for provider in self.federation if virtual_seconds else ():
                    await in_thread(provider.clock.advance, virtual_seconds / STEPS)
            stop.set()


async def in_thread(function: Callable[..., Any], *arguments: object) -> Any:
    return await trio.to_thread.run_sync(function, *arguments)


def command(provider: Provider, *arguments: str) -> Any:
    ran = CliRunner().invoke(main, [*arguments, "--config", str(provider.config_file), "--json"])
    assert ran.exit_code == 0, ran.stderr
    return json.loads(ran.stdout)


def counted_ids(provider: Provider) -> dict[str, int]:
    """Return the largest id of each kind that somebody outside the database may know."""
    with closing(sqlite3.connect(f"file:{provider.database}?mode=ro", uri=True)) as database:
        return {
            kind: database.execute(f"SELECT max(id) FROM {kind}").fetchone()[0]  # noqa: S608
            for kind in ("users", "devices", "tokens")
        }


async def person(stack: AsyncExitStack, home: Provider, name: str) -> Person:
    account = await in_thread(home.add_device, name)
    device = await stack.enter_async_context(account.client())
    return Person(device, await stack.enter_async_context(device.stream(backoff=Backoff(0.2, cap_seconds=1))))


# Longer than 40 lines: one story, in which each step needs the one before.
async def drill(session: Session, seed: int, *, seconds: float, pause: float, replace: bool) -> None:
    async with (
        open_federation("a.example", "b.example", config=CONFIG, session=session) as federation,
        AsyncExitStack() as stack,
    ):
        hub, other = federation["a.example"], federation["b.example"]
        alice, amy, bob = [
            await person(stack, home, name) for home, name in ((hub, "alice"), (hub, "amy"), (other, "bob"))
        ]
        groups = {PretendGroup.at(hub.name): [alice, amy], PretendGroup.at(hub.name): [alice, bob]}
        this = Drill(federation, groups, random.Random(seed))
        for group, members in groups.items():
            await alice.device.create_group(group.creation())
            for member in members:
                member.got[group.key] = []
                member.stream.present(group.hub, group.key)
        removed = await in_thread(hub.add_device, "rita")
        token = (await amy.device.issue_token("shared")).id
        async with trio.open_nursery() as listening:
            for each in (alice, amy, bob):
                listening.start_soon(each.listen)
            await this.talk_for(seconds, pause)
            await this.wait_received()
            backup = str(hub.directory / "copy")
            await in_thread(command, hub, "backup", backup)
            await this.talk_for(seconds, pause, virtual_seconds=HOUR_SECONDS)
            await this.wait_received()
            await in_thread(command, hub, "device", "remove", "rita", "phone")
            await amy.device.revoke_token(token)
            later = (await amy.device.issue_token("shared")).id
            await in_thread(hub.add_device, "zoe")
            given = counted_ids(hub)
            before = {key: dict(sent) for key, sent in this.acknowledged.items()}
            await in_thread(hub.terminate)
            if not replace:
                hub.database.rename(hub.directory / "lost")
            restored = await in_thread(command, hub, "restore", backup, *(["--replace"] if replace else []))
            assert (restored["carried_over"] is not None) == replace
            await in_thread(hub.start)
            await this.talk_for(seconds, pause)
            await this.wait_received()
            alone, shared = groups
            assert alice.told >= 1, "the lost messages of the group without another provider"
            assert amy.told == 1
            assert bob.told == 0
            stored = await in_thread(hub.stored, shared.key)
            for octets, counter in before[shared.key].items():
                assert stored[counter] == octets, "the other provider returned every message"
            assert len(stored) == len(set(stored))
            again = this.acknowledged[alone.key].keys() - before[alone.key].keys()
            assert again <= set(alice.got[alone.key])
            assert (await amy.device.issue_token("shared")).id > later
            await in_thread(hub.add_device, "yves")
            assert all(counted_ids(hub)[kind] > last for kind, last in given.items())
            async with removed.client() as device:
                with pytest.raises(Problem) if replace else nullcontext():
                    await device.me()
            listening.cancel_scope.cancel()


async def test_clients_go_on_after_a_restore(mimids_session: Session) -> None:
    await drill(mimids_session, 5, seconds=0.3, pause=0.03, replace=True)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("replace", [True, False], ids=["replaced", "lost"])
async def test_clients_go_on_after_an_hour_of_traffic(replace: bool, seed: int, mimids_session: Session) -> None:
    await drill(mimids_session, seed, seconds=20.0, pause=0.01, replace=replace)
