"""Members with Wire's core-crypto are added over OHTTP, talk, race and leave, through three live providers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import attrs
import pytest
import trio

from mimids.client import CommitSuperseded, Device, InboxWelcome, requests
from mimids.testing import Federation, Session, open_federation
from mimids.wire.ids import CipherSuite, GroupId, PartitionKey, ProviderId
from tests.support import ts_mls
from tests.support.played import CORE_CRYPTO, note, versions
from tests.support.stage import HUB, NAMES, eventually

pytestmark = pytest.mark.slow

SUITE: Final = CipherSuite(1)
GROUP: Final = GroupId(b"mimi://a.example/g/core-crypto")


@attrs.define(eq=False)
class Person:
    """A member with its device, and how far it has received in its epoch."""

    user_id: str
    home: ProviderId
    mls: ts_mls.Program
    device: Device
    key: PartitionKey | None = None
    counter: int = 0
    own: dict[bytes, PartitionKey | None] = attrs.field(factory=dict)  # what it sent; of commits, the next key
    heard: list[tuple[str, str]] = attrs.field(factory=list)

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        answer = self.mls.ask(op=op, **fields)
        assert "error" not in answer, answer
        return answer

    def enter(self, key: PartitionKey) -> None:
        self.key, self.counter = key, 0

    async def create(self) -> None:
        key = PartitionKey.from_hex(self.ask("create", group_id=GROUP.hex())["key"])
        self.enter(key)
        await self.device.create_group(requests.creation(GROUP, SUITE, key), linear=True)
        note(CORE_CRYPTO, SUITE, "create", "linear group", "public handshakes", "tree in GroupInfo and Welcome")

    async def commit(self, op: str, word: str, *, homes: list[ProviderId] | None = None, **fields: Any) -> bool:
        """Make a commit and send it; tell whether it was the first of its epoch."""
        assert self.key is not None
        made = self.ask(op, **fields)
        octets, following = bytes.fromhex(made["commit"]), PartitionKey.from_hex(made["key"])
        request = requests.commit(
            octets,
            self.key,
            following,
            group_info=bytes.fromhex(made["group_info"]),
            welcome=None if made["welcome"] is None else bytes.fromhex(made["welcome"]),
            service_providers=homes or [],
        )
        try:
            await self.device.send(HUB, request)
        except CommitSuperseded:
            self.ask("settle", accepted=False)
            return False
        self.ask("settle", accepted=True)
        self.own[octets] = following
        note(CORE_CRYPTO, SUITE, word)
        return True

    async def say(self, text: str) -> None:
        assert self.key is not None
        octets = bytes.fromhex(self.ask("encrypt", data=text)["message"])
        self.own[octets] = None
        await self.device.send(HUB, requests.message(octets, self.key))
        note(CORE_CRYPTO, SUITE, "messages")

    async def join(self) -> None:
        async def inbox() -> tuple[InboxWelcome, ...]:
            return await self.device.welcomes()

        (received,) = await eventually(inbox)
        self.enter(PartitionKey.from_hex(self.ask("join", welcome=received.welcome.encoded.hex())["key"]))
        await self.device.acknowledge(received.welcome_id)

    async def join_external(self) -> None:
        info = (await self.device.group_info(HUB, GROUP)).info.group_info.encoded
        made = self.ask("join_external", group_info=info.hex())
        octets, following = bytes.fromhex(made["commit"]), PartitionKey.from_hex(made["key"])
        info = bytes.fromhex(made["group_info"])
        answer = await self.device.join(HUB, requests.external_join(octets, following, group_info=info))
        assert not answer.earlier_commits
        self.ask("settle", accepted=True)
        self.enter(following)
        note(CORE_CRYPTO, SUITE, "external join")

    async def catch_up(self, until: PartitionKey | None = None) -> None:
        """Receive what there is, and follow commits, until an epoch if one is named."""

        async def there() -> bool:
            while self.key is not None and (page := await self.device.receive(HUB, self.key, self.counter)):
                for message in page:
                    self.counter += 1
                    if self._process(message.message.encoded):
                        break
            return until is None or self.key == until

        await eventually(there)

    def _process(self, octets: bytes) -> bool:
        """Process a message; tell whether it ended the epoch."""
        assert self.key is not None
        if octets in self.own:
            following = self.own[octets]
            if following is not None:
                self.enter(following)
            return following is not None
        got = self.ask("receive", message=octets.hex())
        if got["data"] is not None:
            self.heard.append((got["sender"], got["data"]))
        if not got["active"]:
            self.key = None
            return True
        if (key := PartitionKey.from_hex(got["key"])) == self.key:
            return False
        self.enter(key)
        return True


@asynccontextmanager
async def four_people(session: Session) -> AsyncIterator[tuple[Federation, list[Person]]]:
    """Provide Alice at the hub, Bob and Carol, whom she has added to a linear group, and Dave, who is not in it."""
    async with open_federation(*NAMES, session=session) as federation, AsyncExitStack() as stack:
        people = []
        for name, home in zip(("alice", "bob", "carol", "dave"), [*federation, federation[NAMES[1]]], strict=True):
            account = await trio.to_thread.run_sync(home.add_device, name)
            program = stack.enter_context(ts_mls.running("core_crypto.mjs", account.user_id))
            assert program.read()["version"] == versions()[CORE_CRYPTO]
            device = await stack.enter_async_context(account.client())
            people.append(Person(account.user_id, ProviderId(home.name), program, device))
        alice, *others, _ = people
        packages = []
        for person in others:
            made = bytes.fromhex(person.ask("key_package")["key_package"])
            assert (await person.device.upload([made])).accepted == 1
            contact = await trio.to_thread.run_sync(federation[person.home].contact, person.user_id.rpartition("/")[2])
            packages.append((await alice.device.fetch_key_package(contact, SUITE)).hex())
        await alice.create()
        assert await alice.commit("add", "add", key_packages=packages, homes=[each.home for each in others])
        await alice.catch_up()
        for person in others:
            await person.join()
        yield federation, people


# Longer than 40 lines: one story, in which each step needs the one before.
async def test_members_talk_race_join_from_outside_and_remove(mimids_session: Session) -> None:
    async with four_people(mimids_session) as (federation, people):
        alice, bob, carol, dave = people
        people.remove(dave)
        assert len({person.key for person in people}) == 1
        for person in people:
            await person.say(f"hello from {person.user_id}")
            for each in people:
                await each.catch_up()
        for person in people:
            said = [(each.user_id, f"hello from {each.user_id}") for each in people if each is not person]
            assert person.heard == said

        note(CORE_CRYPTO, SUITE, "racing commits")
        first, second = await alice.commit("update", "update"), await bob.commit("update", "update")
        assert (first, second) == (True, False)
        for person in people:
            await person.catch_up()
        assert len({person.key for person in people}) == 1
        assert await bob.commit("update", "update"), "it goes on after a commit that was not accepted"
        for person in people:
            await person.catch_up()

        await dave.join_external()
        people.append(dave)
        for person in people:
            await person.catch_up(dave.key)
        await dave.say("hello, I came by myself")
        await bob.catch_up()
        assert bob.heard[-1] == (dave.user_id, "hello, I came by myself")

        assert await alice.commit("remove", "remove", identity=bob.user_id)
        await alice.catch_up()
        await carol.catch_up(alice.key)
        await alice.say("he is gone")
        await carol.catch_up()
        assert carol.heard[-1] == (alice.user_id, "he is gone")
        await bob.catch_up()
        assert bob.key is None
        hub = federation[HUB]
        assert hub.read("SELECT count(*) FROM messages WHERE kind = 3 GROUP BY partition") == [(1,)] * 5
