"""Members with a real MLS library race in a linear group of three providers, also while providers are killed."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import attrs
import pytest
import trio

from mimids.client import CommitAttempt, CommitSuperseded, Device, InboxWelcome, Problem, Unreachable, commit_with_retry
from mimids.testing import Federation, Session, open_federation
from mimids.wire.ids import provider_id
from mimids.wire.messages import Message, SendRequest, SendResponse
from tests.support.mls import SUITE, Member, needs_mls
from tests.support.played import BINDINGS, note
from tests.support.stage import AWAY, HUB, NAMES, eventually

pytestmark = [pytest.mark.slow, AWAY, needs_mls]

ROUNDS: Final = 8
AGAIN_SECONDS: Final = 0.1
CONFIG: Final = {
    "limits": {"device_sends_per_second": 0},
    "federation": {"connect_seconds": 2, "answer_seconds": 4},
    "delivery": {"backoff_cap_seconds": 1},
}


@attrs.define(eq=False)
class Person:
    """A member with its device, how far it has received in its epoch, and what it heard."""

    mls: Member
    device: Device
    counter: int = 0
    sent: set[bytes] = attrs.field(factory=set)
    heard: list[str] = attrs.field(factory=list)
    commits: int = 0
    lost: int = 0

    async def say(self, text: str) -> None:
        """Send a text; again in the next epoch if a commit came first, since nobody reads on after a commit here."""
        while True:
            request = self.mls.encrypt(text)
            self.sent.add(request.message.encoded)
            if not (await self._send(request)).earlier_commits:
                self.heard.append(text)
                return
            await self.catch_up()

    async def _send(self, request: SendRequest) -> SendResponse:
        while True:
            try:
                return await self.device.send(HUB, request)
            except (Problem, Unreachable) as error:
                if isinstance(error, Problem) and not error.is_temporary:
                    raise
                await trio.sleep(AGAIN_SECONDS)

    async def change_keys(self) -> None:
        """Commit, on top of whatever commits come first, through all failures of providers."""
        made = made_in = None

        async def make() -> CommitAttempt:
            nonlocal made, made_in
            if made is None or made_in != self.mls.key:  # else the same octets: they may have been sequenced
                made, made_in = self.mls.commit(), self.mls.key
                self.sent.add(made.message)
            return CommitAttempt(made.request, self.counter)

        async def apply(first: int, messages: tuple[Message, ...]) -> None:
            self.lost += 1
            self.receive(first, messages)

        while True:
            try:
                await commit_with_retry(self.device, HUB, make, apply, tries=50)
                break
            except (Problem, Unreachable) as error:
                # With its hub down, a provider may not have the commit that came first yet.
                if isinstance(error, Problem) and not (error.is_temporary or isinstance(error, CommitSuperseded)):
                    raise
                await trio.sleep(AGAIN_SECONDS)
                await self.catch_up()  # the commit may have been sequenced though no answer came
                assert made is not None
                if self.mls.key == made.following:
                    return
        await self.catch_up()
        self.commits += 1

    async def catch_up(self) -> None:
        """Receive what there is, and follow commits into their epochs."""
        while True:
            try:
                page = await self.device.receive(HUB, self.mls.key, self.counter)
            except (Problem, Unreachable) as error:
                if isinstance(error, Problem) and not error.is_temporary:
                    raise
                await trio.sleep(AGAIN_SECONDS)
                continue
            if not page:
                return
            self.receive(self.counter, page)

    def receive(self, first: int, messages: tuple[Message, ...]) -> None:
        """Process messages of the epoch, up to the commit that ends it."""
        assert first == self.counter
        for message in messages:
            self.counter += 1
            octets = message.message.encoded
            if octets in self.sent:
                if message.commit is not None:
                    self.mls.merge()
            elif (text := self.mls.receive(octets)) is not None:
                self.heard.append(text)
            if message.commit is not None:
                assert message.commit.next_partition_key in self.mls.key.masks()
                self.counter = 0
                return


@asynccontextmanager
async def three_people(session: Session) -> AsyncIterator[tuple[Federation, list[Person]]]:
    """Provide Alice at the hub, and Bob and Carol, whom she has added to a linear group."""
    async with open_federation(*NAMES, config=CONFIG, session=session) as federation, AsyncExitStack() as stack:
        people = []
        for name, home in zip(("alice", "bob", "carol"), federation, strict=True):
            account = await trio.to_thread.run_sync(home.add_device, name)
            device = await stack.enter_async_context(account.client())
            people.append(Person(Member(account.user_id, provider_id(home.name)), device))
        alice, *others = people
        packages = {}
        for person, home in zip(others, [*federation][1:], strict=True):
            await person.device.upload([person.mls.key_package()])
            contact = await trio.to_thread.run_sync(home.contact, person.mls.identity.rpartition("/")[2])
            packages[await alice.device.fetch_key_package(contact, SUITE)] = contact.provider
        await alice.device.create_group(alice.mls.create(), linear=True)
        note(BINDINGS, SUITE, "linear group")
        made = alice.mls.commit(adding=packages)
        alice.sent.add(made.message)
        await alice.device.send(HUB, made.request)
        await alice.catch_up()
        for person in others:

            async def inbox(person: Person = person) -> tuple[InboxWelcome, ...]:
                return await person.device.welcomes()

            (welcome,) = await eventually(inbox)
            person.mls.join(welcome.welcome.encoded)
            await person.device.acknowledge(welcome.welcome_id)
        yield federation, people


async def talk(person: Person, chance: random.Random) -> None:
    note(BINDINGS, SUITE, "racing commits")
    for number in range(ROUNDS):
        await person.catch_up()
        await person.say(f"{person.mls} {number}")
        await person.change_keys()
        await trio.sleep(chance.uniform(0, 0.02))


async def check_agreement(people: list[Person]) -> None:
    """Check that all are in one epoch, with one tree, and have heard everything once."""
    for person in people:
        await person.catch_up()
    assert len({person.mls.key for person in people}) == 1
    assert len({person.mls.tree for person in people}) == 1
    said = sorted(f"{person.mls} {number}" for person in people for number in range(ROUNDS))
    for person in people:
        assert sorted(person.heard) == said, person.mls


async def test_everyone_agrees_after_a_race_of_commits(mimids_session: Session) -> None:
    async with three_people(mimids_session) as (_, people):
        async with trio.open_nursery() as nursery:
            for number, person in enumerate(people):
                nursery.start_soon(talk, person, random.Random(number))
        await check_agreement(people)
        assert sum(person.commits for person in people) == len(people) * ROUNDS
        assert sum(person.lost for person in people) > 0


async def test_everyone_agrees_after_a_race_while_providers_are_killed(mimids_session: Session) -> None:
    async with three_people(mimids_session) as (federation, people):
        async with trio.open_nursery() as nursery:
            for number, person in enumerate(people):
                nursery.start_soon(talk, person, random.Random(number))
            for name in (*NAMES, HUB):
                await trio.sleep(0.5)
                await trio.to_thread.run_sync(federation[name].kill)
                await trio.sleep(0.2)
                await trio.to_thread.run_sync(federation[name].start)
        await check_agreement(people)


async def test_a_removed_member_reads_no_more(mimids_session: Session) -> None:
    async with three_people(mimids_session) as (_, people):
        alice, bob, carol = people
        removal = alice.mls.commit(removing=[bob.mls])
        alice.sent.add(removal.message)
        await alice.device.send(HUB, removal.request)
        await alice.catch_up()
        await carol.catch_up()
        assert carol.mls.key == alice.mls.key == removal.following
        await alice.say("he is gone")
        await carol.catch_up()
        assert carol.heard == ["he is gone"]
        page = await bob.device.receive(HUB, removal.key)
        assert page[-1].message.encoded == removal.message
        bob.mls.receive(removal.message)
        assert bob.mls.key == removal.key, "the bindings stay in the epoch from which they are removed"
