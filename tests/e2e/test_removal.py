"""A provider whose last user was removed gets the removing commit and nothing later, whatever it requests."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import httpx
import pytest
import trio

from mimids.client import Device, Problem
from mimids.mls.code_points import ExtensionType, SenderType, WireFormat
from mimids.mls.framing import MLSMessage, Sender
from mimids.mls.leaf_node import Extension
from mimids.mls.proposals import Add, ExternalInit, ProposalOrRef, Remove
from mimids.testing import Federation, PretendGroup, Provider, Session, open_federation
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, Counter, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    CreateGroupRequest,
    ExternalJoinRequest,
    ExternalProposalRequest,
    ReceiveRequest,
    ReceiveResponse,
    ResumeRequest,
    SendRequest,
)
from tests.support.naive_tree import opaque
from tests.support.signing import GROUP, Client, Room, by_value
from tests.support.stage import HUB, NAMES, SUITE, eventually

MASK = 32
KEYS = [PartitionKey(bytes([number]) * 16) for number in range(1, 5)]  # of four epochs


@attrs.define
class Played:
    """A group of Alice, Bob and Carol, one at each provider, in which Carol is removed and others go on."""

    federation: Federation
    alice: Device
    bob: Device
    carol: Device
    room: Room
    info: MLSMessage
    removing: bytes = b""
    later: list[bytes] = attrs.field(factory=list)  # messages of later epochs

    async def say(self, key: PartitionKey, epoch: int, content: bytes) -> bytes:
        """Send an application message by Alice, which only members can read."""
        group = PretendGroup(HUB, GROUP, epoch, key)
        request = group.message(content)
        await self.alice.send(HUB, request)
        return request.message.encoded

    async def commit(self, key: PartitionKey, following: PartitionKey, made: tuple[MLSMessage, Room]) -> bytes:
        """Send a commit of Alice's with the GroupInfo of the room after it."""
        self.room, self.info = made[1], info_of(made[1])
        message = decode(MLSMessage, encode(made[0]))
        await self.alice.send(HUB, SendRequest(message, key, CommitData(following, self.info, None)))
        return message.encoded


def info_of(room: Room) -> MLSMessage:
    """Return a GroupInfo that one can join with."""
    info = room.info(Extension(ExtensionType.EXTERNAL_PUB, opaque(bytes(range(32)))))
    return decode(MLSMessage, encode(MLSMessage(MLS10, WireFormat.GROUP_INFO, info)))


@asynccontextmanager
async def played(session: Session) -> AsyncIterator[Played]:
    async with open_federation(*NAMES, session=session) as federation:
        a, b, c = federation
        async with (
            a.add_device("alice").client() as alice,
            b.add_device("bob").client() as bob,
            c.add_device("carol").client() as carol,
        ):
            clients = [Client.of(seed, name) for seed, name in enumerate(("alice@a.example", "bob@b.example"), start=1)]
            third = Client.of(3, "carol@c.example")
            room = Room.create(clients[0])
            play = Played(federation, alice, bob, carol, room, info_of(room))
            await alice.create_group(CreateGroupRequest(GROUP, MLS10, SUITE, KEYS[0], play.info, None, None))
            adds = [by_value(Add(each.key_package())) for each in (clients[1], third)]
            await play.commit(KEYS[0], KEYS[1], room.commit(0, *adds))
            for device in (bob, carol):  # their keys, from their Welcomes
                assert await device.receive(HUB, KEYS[1]) == ()
            await play.say(KEYS[1], 1, b"to all three")
            index = next(leaf for leaf, client in play.room.clients.items() if client == third)
            play.removing = await play.commit(KEYS[1], KEYS[2], play.room.commit(0, by_value(Remove(index))))
            play.later.append(await play.say(KEYS[2], 2, b"without Carol"))
            play.later.append(await play.commit(KEYS[2], KEYS[3], play.room.commit(0)))
            play.later.append(await play.say(KEYS[3], 3, b"still without Carol"))
            yield play


async def has(provider: Provider, key: PartitionKey, number: int) -> None:
    """Wait until a provider has this many messages of a partition."""

    async def look() -> bool:
        return len(provider.stored(key)) == number

    await eventually(look)


@asynccontextmanager
async def calling(provider: Provider, hub: Provider) -> AsyncIterator[httpx.AsyncClient]:
    """Call the hub with the certificate of a provider, around the server of that provider."""
    trust = ssl.create_default_context(cafile=provider.ca_file)
    trust.load_cert_chain(provider.config.tls.certificate, provider.config.tls.private_key)
    headers = {"From": f"mimi@{provider.name}", "Content-Type": "application/mimi-ds"}
    async with httpx.AsyncClient(verify=trust, base_url=f"{hub.public_url}/ds/v1/", headers=headers) as http:
        yield http


async def hinted(http: httpx.AsyncClient, key: PartitionKey) -> dict[MaskedPartitionKey, list[bytes]]:
    """Return the messages that the hub gives for a key, by partition."""
    answer = await http.post("receive", content=encode(ReceiveRequest(key, Counter(0))))
    assert answer.status_code == 200, answer.text
    response = decode(ReceiveResponse, answer.content)
    epochs = {hint.masked_partition_key: hint.epoch for hint in response.hints}
    epochs[key.mask(MASK)] = response.epoch
    return {name: [message.message.encoded for message in epoch.messages] for name, epoch in epochs.items()}


async def resume(http: httpx.AsyncClient, key: PartitionKey) -> int:
    answer = await http.post("resume", content=encode(ResumeRequest(GROUP, key.mask(MASK), Counter(0))))
    return answer.status_code


async def test_after_the_removing_commit_nothing_comes_by_push_hint_or_resume(mimids_session: Session) -> None:
    async with played(mimids_session) as play:
        a, b, c = play.federation
        await has(b, KEYS[3], 1)  # a remaining member follows from epoch to epoch
        await has(c, KEYS[1], 2)
        assert c.stored(KEYS[1])[-1] == play.removing
        async with calling(b, a) as as_b, calling(c, a) as as_c:
            assert KEYS[2].mask(MASK) in await hinted(as_b, KEYS[1])
            assert set(await hinted(as_c, KEYS[1])) == {KEYS[1].mask(MASK)}
            for key in KEYS[2:]:
                assert await resume(as_b, key) == 204
                assert await resume(as_c, key) == 403
            assert await resume(as_c, KEYS[1]) == 204  # it may get again what it had before
        for provider in (c, a):  # they resume each other at their start
            await trio.to_thread.run_sync(provider.restart)
        await play.say(KEYS[1], 1, b"late, in the epoch that ended")
        await has(c, KEYS[1], 3)
        assert holds_nothing_later(c, play)
        assert not holds_nothing_later(b, play)


def holds_nothing_later(provider: Provider, play: Played) -> bool:
    return not any(message in octets for octets in provider.files().values() for message in play.later)


def external_commit(room: Room, client: Client, *items: ProposalOrRef) -> ExternalJoinRequest:
    """Return an external commit of a client, to a partition of the client's own."""
    message, _ = room.commit(client, by_value(ExternalInit(bytes(32))), *items)
    data = CommitData(PartitionKey(secrets.token_bytes(PartitionKey.SIZE)), None, None)
    return ExternalJoinRequest(decode(MLSMessage, encode(message)), data)


async def test_a_provider_without_members_cannot_join_from_outside(mimids_session: Session) -> None:
    async with played(mimids_session) as play:
        _, _, c = play.federation
        async with c.add_device("dora").client() as dora:
            for device, name, seed in ((play.carol, "carol@c.example", 3), (dora, "dora@c.example", 4)):
                client = Client.of(seed, name)
                for key in (None, KEYS[2], KEYS[3]):
                    with pytest.raises(Problem, match="unknown-group"):
                        await device.group_info(HUB, GROUP, partition=None if key is None else key.mask(MASK))
                with pytest.raises(Problem, match="unknown-group"):
                    await device.join(HUB, external_commit(play.room, client))
                outside = Sender(SenderType.NEW_MEMBER_PROPOSAL, None)
                add = play.room.propose(outside, Add(client.key_package()), by=client.signer)
                for partition in (None, KEYS[2].mask(MASK), KEYS[3].mask(MASK)):
                    request = ExternalProposalRequest(decode(MLSMessage, encode(add)), partition)
                    with pytest.raises(Problem, match="unknown-group"):
                        await device.propose(HUB, request)


async def test_a_provider_of_members_lets_its_own_users_join_from_outside_and_no_others(
    mimids_session: Session,
) -> None:
    async with played(mimids_session) as play:
        a, b, _ = play.federation
        assert (await play.bob.group_info(HUB, GROUP)).info.group_info == play.info
        bob = Client.of(2, "bob@b.example")
        own = next(leaf for leaf, client in play.room.clients.items() if client == bob)
        async with calling(b, a) as as_b:  # around its server, which would not pass this on
            request = external_commit(play.room, Client.of(3, "carol@c.example"))
            assert (await as_b.post("join", content=encode(request))).status_code == 404
        request = external_commit(play.room, bob, by_value(Remove(own)))
        assert (await play.bob.join(HUB, request)).counter == 1


async def test_a_removed_member_receives_nothing_and_reaches_nobody(mimids_session: Session) -> None:
    async with played(mimids_session) as play:
        a, b, c = play.federation
        own = PartitionKey(b"a key of Carol's")
        with pytest.raises(Problem, match="unknown-partition"):
            await play.carol.receive(HUB, own)
        with pytest.raises(Problem, match="unknown-group"):
            await play.carol.group_info(HUB, GROUP)
        request = PretendGroup(HUB, GROUP, 3, own).message(b"do you hear me")
        answer = await play.carol.send(HUB, request)
        assert answer.detached == 1
        with pytest.raises(Problem, match="unknown-partition"):
            await play.carol.receive(ProviderId(b.name), own)
        await play.say(KEYS[3], 3, b"we do not")
        await has(b, KEYS[3], 2)
        assert b.stored(own) == []
        for device in (play.alice, play.bob):
            for key in KEYS[1:]:
                got = await device.receive(HUB, key)
                assert request.message.encoded not in [message.message.encoded for message in got]
        async with calling(b, a) as as_b:
            assert own.mask(MASK) not in await hinted(as_b, KEYS[1])
        assert holds_nothing_later(c, play)
