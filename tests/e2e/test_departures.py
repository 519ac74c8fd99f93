"""A removed device is out of its groups once a member commits, through two running providers."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

import attrs
import pytest
import trio

from mimids.client import Device, external_senders_data
from mimids.mls.code_points import ContentType, ExtensionType, LeafNodeSource
from mimids.mls.leaf_node import Extension, Lifetime
from mimids.mls.proposals import Add, ExternalInit, ProposalOrRef, ProposalRef
from mimids.testing import Provider, Session, open_federation
from mimids.wire.base64url import from_base64url
from mimids.wire.ids import MLS10, CipherSuite, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import CommitData, CreateGroupRequest, ExternalJoinRequest, SendRequest
from tests.support.chats import copied, joinable, private_message, take_removes
from tests.support.mls_makers import DAY
from tests.support.signing import Client, Room, by_reference, by_value, fresh_key
from tests.support.stage import eventually

pytestmark = pytest.mark.slow

SUITE: Final = CipherSuite(1)
# Seeds of their own: a KeyPackage finds its client by the signature key, whatever other tests have made.
ALICE, BOB = Client.of(201, "alice@a.example"), Client.of(202, "bob@b.example")
CAROL, DAVE = Client.of(203, "carol@a.example"), Client.of(204, "dave@b.example")


@attrs.define
class Group:
    """A group; `room` is its newest epoch and `key` the key of that epoch's partition."""

    hub: ProviderId
    devices: dict[Client, Device]
    room: Room
    key: PartitionKey

    @classmethod
    async def create(
        cls, hub: Provider, name: str, devices: dict[Client, Device], founder: Client, senders: bytes
    ) -> Group:
        """Create a group of Alice, Bob and Carol, one of whom is the founder; Carol receives a message."""
        room = Room.create(founder, Extension(ExtensionType.EXTERNAL_SENDERS, senders))
        room.group_id = GroupId(f"mimi://{hub.name}/g/{name}".encode())
        group = cls(ProviderId(hub.name), devices, room, PartitionKey(secrets.token_bytes(16)))
        creation = CreateGroupRequest(room.group_id, MLS10, SUITE, group.key, joinable(room), None, None)
        await devices[founder].create_group(creation)
        others = [client for client in (ALICE, BOB, CAROL) if client is not founder]
        await group.commit(founder, *(by_value(Add(each.key_package())) for each in others))
        await devices[CAROL].receive(group.hub, group.key)
        greeting = private_message(group.room, ContentType.APPLICATION)
        await devices[founder].send(group.hub, SendRequest(greeting, group.key, None))
        await eventually(partial(devices[CAROL].receive, group.hub, group.key))
        return group

    async def commit(self, by: Client, *items: ProposalOrRef) -> None:
        """Commit what `items` say, and nothing else."""
        index = next(leaf for leaf, client in self.room.clients.items() if client == by)
        message, after = self.room.commit(index, *items)
        following = PartitionKey(secrets.token_bytes(16))
        data = CommitData(following, joinable(after), None)
        await self.devices[by].send(self.hub, SendRequest(copied(message), self.key, data))
        self.room, self.key = after, following

    async def join(self, client: Client) -> None:
        """Join from outside by an external commit, which covers no proposals."""
        message, after = self.room.commit(client, by_value(ExternalInit(fresh_key(self.room.suite))))
        following = PartitionKey(secrets.token_bytes(16))
        request = ExternalJoinRequest(copied(message), CommitData(following, joinable(after), None))
        await self.devices[client].join(self.hub, request)
        self.room, self.key = after, following

    async def encrypt_commit(self, by: Client) -> None:
        """Commit by a PrivateMessage without a GroupInfo, so that no provider knows the members any more."""
        following = PartitionKey(secrets.token_bytes(16))
        message = private_message(self.room, ContentType.COMMIT)
        await self.devices[by].send(self.hub, SendRequest(message, self.key, CommitData(following, None, None)))
        self.key = following

    async def removes(self, reader: Client) -> list[ProposalRef]:
        """Return the Removes in the newest epoch, as a member takes them for its next commit."""
        return take_removes(self.room, await self.devices[reader].receive(self.hub, self.key))

    @property
    def leaf(self) -> int | None:
        """Carol's leaf, None without one."""
        return next((leaf for leaf, client in self.room.clients.items() if client == CAROL), None)


@asynccontextmanager
async def two_providers(session: Session) -> AsyncIterator[tuple[Provider, Provider, dict[Client, Device]]]:
    """Provide the hubs and everybody's device; Carol has uploaded a KeyPackage."""
    async with open_federation("a.example", "b.example", session=session) as (a, b), AsyncExitStack() as stack:
        homes = {ALICE: (a, "alice"), BOB: (b, "bob"), CAROL: (a, "carol"), DAVE: (b, "dave")}
        devices = {}
        for client, (home, user) in homes.items():
            account = await trio.to_thread.run_sync(home.add_device, user)
            devices[client] = await stack.enter_async_context(account.client())
        now = int(time.time())
        leaf = CAROL.leaf(LeafNodeSource.KEY_PACKAGE, origin=Lifetime(now - DAY, now + DAY))
        assert (await devices[CAROL].upload([CAROL.key_package(leaf).encoded])).accepted == 1
        yield a, b, devices


async def test_a_removed_device_leaves_five_groups_once_members_commit(mimids_session: Session) -> None:
    async with two_providers(mimids_session) as (a, b, devices):
        keys = [*await devices[BOB].provider_keys(), *await devices[ALICE].provider_keys()]
        senders = external_senders_data(keys)
        here = [await Group.create(a, f"here {n}", devices, ALICE, senders) for n in range(2)]
        there = [await Group.create(b, f"there {n}", devices, BOB, senders) for n in range(2)]
        hidden = await Group.create(a, "hidden", devices, ALICE, senders)
        await hidden.encrypt_commit(ALICE)

        async def listed(*wanted: tuple[str, str | None, GroupId]) -> None:
            """Wait until the command says this of the departures; a reason is None where nothing is in the way."""

            async def look() -> bool:
                answer = await trio.to_thread.run_sync(a.command, "device removals")
                found = [
                    (each["state"], each["reason"], from_base64url(each["group_id"])) for each in answer["removals"]
                ]
                return not answer["searching"] and sorted(found) == sorted(wanted)

            await eventually(look, seconds=30)

        impossible = ("impossible", "encrypted-handshakes", hidden.room.group_id)
        await trio.to_thread.run_sync(partial(a.command, "device remove", user="carol", name="phone"))
        await listed(impossible, *(("proposed", None, group.room.group_id) for group in [*here, *there]))
        for group in (here[0], there[0]):
            assert len(await eventually(partial(group.removes, BOB))) == 1
            await group.join(DAVE)
            assert group.leaf is not None, "an external commit covers no proposals"
        for group, member in zip([*here, *there], (BOB, ALICE, DAVE, BOB), strict=True):
            (remove,) = await eventually(partial(group.removes, member))
            await group.commit(member, by_reference(remove))
            assert group.leaf is None
        await listed(impossible)
