"""Providers without sockets, on real stores: each calls the endpoints of the others in memory."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from mimids.ds.ports import Clock, PeerAnswer
from mimids.http.api.providers import PROVIDERS
from mimids.http.header_names import ARRANGEMENT, LINEAR
from mimids.http.peers.answers import named_revision
from mimids.http.peers.problems import error_from
from mimids.mls.framing import MLSMessage, PrivateMessage
from mimids.values import Device, DeviceRow
from mimids.wire.codec import OPAQUE_V
from mimids.wire.declare import codec, decode
from mimids.wire.ids import MLS10, CipherSuite, Counter, GroupId, PartitionKey, ProviderId, local_user_id
from mimids.wire.messages import (
    CommitData,
    CreateGroupRequest,
    Message,
    Present,
    ReceiveRequest,
    ReceiveResponse,
    SendRequest,
)
from tests.support import signing
from tests.support.doubles import Called, Peer
from tests.support.hub import offer
from tests.support.inmemory import InMemory
from tests.support.patience import patience
from tests.support.provider import Assembled, Authority, assembled
from tests.support.recordings import Recording, expected

APPLICATION, PROPOSAL, COMMIT = 1, 2, 3


@asynccontextmanager
async def federated(
    directory: Path,
    *names: str,
    clock: Clock | None = None,
    jobs_of: Sequence[str] = ("delivery", "outgoing_welcomes", "gateway"),
    **sections: Mapping[str, Any],
) -> AsyncIterator[list[Assembled]]:
    """Run providers for the block, each with the jobs of the services named in `jobs_of`."""
    authority = Authority(directory)
    limits = {"device_sends_per_second": 0, "device_streams": 0, **sections.pop("limits", {})}
    others: dict[str, Mapping[str, Any]] = {"federation": {"allow": list(names)}, "limits": limits, **sections}
    async with AsyncExitStack() as stack:
        providers = [
            await stack.enter_async_context(assembled(authority.config(name, **others), clock=clock)) for name in names
        ]
        jobs = await stack.enter_async_context(trio.open_nursery())
        for provider in providers:
            for other in providers:
                provider.peers.add(other.config.provider, in_memory_peer(other, provider.config.provider))
            for job in jobs_of:
                await jobs.start(getattr(provider.services, job).run)
        yield providers
        jobs.cancel_scope.cancel()


def in_memory_peer(target: Assembled, caller: ProviderId) -> Peer:
    """Return what `caller` reaches as its peer `target`: the endpoints for providers, called in memory."""
    endpoints = InMemory(target.app(PROVIDERS), [caller])

    async def answer(called: Called) -> PeerAnswer:
        headers = {"content-type": called.media_type, "from": f"mimi@{caller}"}
        if called.wait_seconds is not None:
            headers["prefer"] = f"wait={called.wait_seconds}"
        if called.terms_revision is not None:
            headers[ARRANGEMENT] = str(called.terms_revision)
        answered = await endpoints.ask(called.method, called.path, called.body, headers)
        revision = named_revision(answered.headers)
        if revision is not None:
            called.on_terms_revision(revision)
        if answered.status >= 400:
            raise error_from(answered.status, answered.headers, answered.body, now_seconds=0)
        return PeerAnswer(answered.body, answered.headers.get(LINEAR) == "?1")

    return answer


def device(provider: Assembled, user: str = "alice", row: int = 1) -> Device:
    name = provider.config.provider
    return Device(name, local_user_id(name, user), DeviceRow(row), "phone")


class Room:
    """A group whose messages are made up: any octets that parse as PrivateMessages."""

    def __init__(self, name: str = "room", hub: str = "a.example") -> None:
        self.hub = ProviderId(hub)
        self.group_id = GroupId(f"mimi://{hub}/g/{name}".encode())
        self.key = self.new_key()

    @classmethod
    def of(cls, room: signing.Room) -> Room:
        """Return the group of a room with real signatures, for messages that are made up."""
        made = cls()
        made.group_id = room.group_id
        return made

    @staticmethod
    def new_key() -> PartitionKey:
        return PartitionKey(secrets.token_bytes(PartitionKey.SIZE))

    def creation(self, key: PartitionKey | None = None) -> CreateGroupRequest:
        return CreateGroupRequest(self.group_id, MLS10, CipherSuite(1), key or self.key, None, None, None)

    def message(self, text: str, *, epoch: int = 0, kind: int = APPLICATION) -> MLSMessage:
        sealed = text.encode().ljust(32, b".")
        octets = b"\0\1\0\2" + OPAQUE_V.encode(self.group_id) + epoch.to_bytes(8, "big") + bytes([kind])
        return decode(MLSMessage, octets + OPAQUE_V.encode(b"") + OPAQUE_V.encode(bytes(28)) + OPAQUE_V.encode(sealed))

    def send(self, text: str, key: PartitionKey | None = None, *, epoch: int = 0) -> SendRequest:
        return SendRequest(self.message(text, epoch=epoch), key or self.key, None)

    def commit(self, text: str, following: PartitionKey, key: PartitionKey | None = None) -> SendRequest:
        return SendRequest(self.message(text, kind=COMMIT), key or self.key, CommitData(following, None, None))


def commit_at(room: Room, epoch: int, key: PartitionKey, following: PartitionKey) -> SendRequest:
    """Return a commit of an epoch of the room, from the partition of `key` to that of `following`."""
    message = room.message(following.mask(32).hex()[:20], epoch=epoch, kind=COMMIT)
    return SendRequest(message, key, CommitData(following, None, None))


def present(hub: ProviderId, *positions: tuple[PartitionKey, int]) -> Present:
    """Return the frame that presents these keys, each with the counter to start from."""
    return Present(hub, tuple(ReceiveRequest(key, Counter(counter)) for key, counter in positions))


def texts(answer: bytes) -> list[str]:
    """Return the texts of the messages in a ReceiveResponse."""
    return said(decode(ReceiveResponse, answer).epoch.messages)


def said(messages: Iterable[Message]) -> list[str]:
    return [_text(message.message) for message in messages]


async def read(provider: Assembled, who: Device, hub: ProviderId, key: PartitionKey, counter: int = 0) -> list[str]:
    return texts(await provider.services.hub_router.hub(hub).receive(who, ReceiveRequest(key, Counter(counter))))


async def received(
    provider: Assembled, who: Device, hub: ProviderId, key: PartitionKey, counter: int = 0
) -> list[bytes]:
    """Return the messages that a device receives from a counter on."""
    request = ReceiveRequest(key, Counter(counter))
    answer = decode(ReceiveResponse, await provider.services.hub_router.hub(hub).receive(who, request))
    assert answer.hints == ()
    return [message.message.encoded for message in answer.epoch.messages]


async def play(
    recording: Recording, hub: Assembled, *, then: Callable[[list[PartitionKey]], Awaitable[None]] | None = None
) -> dict[PartitionKey, list[bytes]]:
    """Have a hub sequence a recorded conversation, with a call of `then` after each message that it sequenced.

    Returns the messages by partition; `then` gets the partitions that have messages.
    """
    sequenced: dict[PartitionKey, list[bytes]] = {}
    await hub.services.hub.create_group(recording.creation(), device(hub))
    for recorded in recording.messages():
        if expected(recorded.line) == "accept":
            answer = await offer(hub.services.hub, recorded)
            sequenced.setdefault(recorded.key, []).append(recorded.request.message.encoded)
            assert answer.counter == len(sequenced[recorded.key]) - 1
            if then is not None:
                await then(list(sequenced))
    return sequenced


async def wait_stored(provider: Assembled, hub: ProviderId, who: Device, key: PartitionKey, count: int) -> list[str]:
    """Wait until `count` messages of a partition are stored here, without asking the hub."""
    found: list[str] = []
    with patience():
        while len(found) < count:
            request = ReceiveRequest(key, Counter(len(found)))
            page = await provider.services.hub_router.hub(hub).page(who, request, limit_octets=1 << 24)
            new = () if page is None else page[1].messages
            found += [_text(codec(Message).decode(encoded).message) for encoded in new]
            if not new:
                await trio.sleep(0.01)
    return found


def _text(message: MLSMessage) -> str:
    assert isinstance(message.message, PrivateMessage)
    return message.message.ciphertext.rstrip(b".").decode()
