"""A group with real signatures at a hub in memory: who removes whom, and what the public state says."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

import attrs
import trio

from mimids.ds.departures.provider_keys import external_sender
from mimids.ds.notifier import DEPARTURES
from mimids.mls.code_points import ContentType, ExtensionType, WireFormat
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.mls.leaf_node import Extension
from mimids.mls.proposals import Add, ExternalInit, Proposal, ProposalOrRef, ProposalRef, Remove
from mimids.values import Device
from mimids.wire.codec import OPAQUE_V
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, Counter, GroupId, PartitionKey, ProviderId, Secret
from mimids.wire.messages import (
    CommitData,
    CreateGroupRequest,
    ExternalJoinRequest,
    Message,
    ReceiveRequest,
    ReceiveResponse,
    SendRequest,
    WelcomeData,
)
from tests.support.naive_tree import opaque
from tests.support.provider import Assembled
from tests.support.signing import Client, Room, by_reference, by_value, fresh_key, ref_of
from tests.support.stored import rows, until


async def owned(provider: Assembled, user: str, client: Client) -> Device:
    """Add the device of a client, named after its seed as its credential says."""
    assert isinstance(client.credential.content, bytes)
    name = client.credential.content.decode().rpartition("/")[2]
    found = await provider.services.devices.authenticate(Secret((await provider.add_device(user, name)).encode()))
    assert found is not None
    return found


async def senders_of(*providers: Assembled, bare: bool = False) -> Extension:
    """Return external_senders with the Ed25519 keys of providers; `bare` is the form of ts-mls for one of them."""
    octets = b""
    for provider in providers:
        await provider.services.provider_keys.need(1)
        (key,) = [each for each in await provider.services.provider_keys.all_keys() if not each.retired]
        octets += external_sender(provider.config.provider, key.pair.public)
    return Extension(ExtensionType.EXTERNAL_SENDERS, octets if bare else opaque(octets))


def copied(message: MLSMessage) -> MLSMessage:
    """Return a message as another provider reads it."""
    return decode(MLSMessage, encode(message))


def joinable(room: Room) -> MLSMessage:
    """Return a GroupInfo of the room that one can join with."""
    info = room.info(Extension(ExtensionType.EXTERNAL_PUB, opaque(bytes(range(32)))))
    return copied(MLSMessage(MLS10, WireFormat.GROUP_INFO, info))


def private_message(room: Room, kind: ContentType) -> MLSMessage:
    """Return a message of the room's epoch that only members can read."""
    head = b"\0\1\0\2" + OPAQUE_V.encode(room.group_id) + room.epoch.to_bytes(8, "big") + bytes([kind])
    parts = (b"", bytes(28), secrets.token_bytes(64))
    return decode(MLSMessage, head + b"".join(map(OPAQUE_V.encode, parts)))


def take_removes(room: Room, messages: Iterable[Message]) -> list[ProposalRef]:
    """Return the Removes among the messages of the room's epoch, and remember them, so that a commit may cover them."""
    found = []
    for each in messages:
        public = each.message.message
        if each.message.content_type is ContentType.PROPOSAL and isinstance(public, PublicMessage):
            content = public.content.content
            assert isinstance(content, Proposal)
            if isinstance(content.body, Remove):
                ref = ref_of(each.message, room.suite)
                room.sent[ref] = (content, public.content.sender)
                found.append(ref)
    return found


@attrs.define
class Chat:
    """A group; `room` is its newest epoch and `key` the key of that epoch's partition."""

    hub: Assembled
    by: Device
    room: Room
    key: PartitionKey

    @classmethod
    async def create(
        cls,
        hub: Assembled,
        by: Device,
        clients: Sequence[Client],
        *extensions: Extension,
        name: str = "chat",
    ) -> Chat:
        """Create a group at a hub by its device `by`, who is the first client, and add the others."""
        room = Room.create(clients[0], *extensions)
        room.group_id = GroupId(f"mimi://{hub.config.provider}/g/{name}".encode())
        chat = cls(hub, by, room, PartitionKey(secrets.token_bytes(16)))
        creation = CreateGroupRequest(room.group_id, MLS10, CipherSuite(1), chat.key, joinable(room), None, None)
        await hub.services.hub.create_group(creation, by)
        if len(clients) > 1:
            await chat.commit(*(by_value(Add(each.key_package())) for each in clients[1:]))
        return chat

    async def commit(self, *items: ProposalOrRef, with_info: bool = True, welcome: WelcomeData | None = None) -> None:
        """Commit by the first client; the commit covers what `items` say and nothing else."""
        message, after = self.room.commit(0, *items)
        following = PartitionKey(secrets.token_bytes(16))
        data = CommitData(following, joinable(after) if with_info else None, welcome)
        await self.hub.services.hub.send(SendRequest(copied(message), self.key, data), self.by)
        self.room, self.key = after, following

    async def join(self, client: Client, by: Device) -> None:
        """Join from outside by an external commit, which covers no proposals."""
        message, after = self.room.commit(client, by_value(ExternalInit(fresh_key(self.room.suite))))
        following = PartitionKey(secrets.token_bytes(16))
        request = ExternalJoinRequest(copied(message), CommitData(following, joinable(after), None))
        await self.hub.services.hub.join(request, by)
        self.room, self.key = after, following

    async def removes(self) -> list[ProposalRef]:
        """Return the Removes that were sequenced in the newest epoch, as a member takes them for its next commit."""
        answer = await self.hub.services.hub.receive(ReceiveRequest(self.key, Counter(0)), self.by)
        return take_removes(self.room, decode(ReceiveResponse, answer).epoch.messages)

    async def commit_pending(self) -> None:
        """Commit all Removes that were sequenced."""
        await self.commit(*map(by_reference, await self.removes()))

    async def follow(self, provider: Assembled, by: Device) -> None:
        """Let a device of another provider read the newest epoch, and wait until its provider has the state."""
        request = ReceiveRequest(self.key, Counter(0))
        hub = provider.services.hub_router.hub(ProviderId(self.hub.config.provider))
        await hub.receive(by, request)
        await self.hub.services.hub.send(
            SendRequest(private_message(self.room, ContentType.APPLICATION), self.key, None), self.by
        )
        known = "SELECT 1 FROM partitions WHERE masked_key = ? AND next_counter > 0"
        await until(lambda: rows(provider, known, self.key.mask(32)))
        await hub.receive(by, request)

    async def encrypt_commit(self) -> None:
        """Let the first client commit by a PrivateMessage without a GroupInfo; the room stays as it is."""
        data = CommitData(PartitionKey(secrets.token_bytes(16)), None, None)
        await self.hub.services.hub.send(
            SendRequest(private_message(self.room, ContentType.COMMIT), self.key, data), self.by
        )

    def leaf_of(self, client: Client) -> int | None:
        """Return the leaf of a client in the newest epoch, None without one."""
        return next((leaf for leaf, each in self.room.clients.items() if each == client), None)


async def removals(provider: Assembled) -> list[tuple[str, str | None]]:
    """Return state and reason of every departure."""
    found = await rows(provider, "SELECT state, reason FROM departures ORDER BY id")
    return [(state, reason) for state, reason in found]


async def eventually_removals(provider: Assembled, *wanted: tuple[str, str | None]) -> None:
    """Wait until the departures are these, in whatever order; the job looks again each time."""

    found: list[tuple[str, str | None]] = []

    async def look() -> bool:
        provider.services.notifier.notify(DEPARTURES)
        found[:] = await removals(provider)
        return sorted(found, key=str) == sorted(wanted, key=str)

    try:
        await until(look)
    except trio.TooSlowError:
        counts = provider.services.departures.statistics()
        raise AssertionError(f"the departures are {found}, not {wanted}; {counts}") from None
