"""When the Welcome of a later commit is released (semantics: welcomes-and-leaving)."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from mimids.ds.groups import hub as hub_module
from mimids.ds.groups.hub import LocalHub
from mimids.mls import framing
from mimids.mls.code_points import SenderType
from mimids.mls.proposals import Add, ExternalInit
from mimids.store.engine.migrate import migrate, shipped
from mimids.wire.ids import PartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    ExternalJoinRequest,
    ExternalProposalRequest,
    SendRequest,
    WelcomeData,
)
from tests.support import signing
from tests.support.federation import PROPOSAL, Room
from tests.support.hub import ALICE, A, create, running_hub
from tests.support.welcomes import welcome_to

NEWCOMER, JOINER, PROPOSER = signing.Client.of(2), signing.Client.of(3), signing.Client.of(4)


@attrs.frozen
class Fork:
    """A group with two commits in its first partition; the Welcome of the second is held."""

    hub: LocalHub
    room: signing.Room  # after the second commit
    key: PartitionKey

    async def message(self) -> None:
        await self.hub.send(self._words().send("a message", self.key, epoch=1), ALICE)

    async def encrypted_proposal(self) -> None:
        proposal = self._words().message("a proposal", epoch=1, kind=PROPOSAL)
        await self.hub.send(SendRequest(proposal, self.key, None), ALICE)

    async def commit(self) -> None:
        message, _ = self.room.commit(0)
        await self.hub.send(SendRequest(message, self.key, CommitData(Room.new_key(), None, None)), ALICE)

    async def encrypted_commit(self) -> None:
        commit = self._words().message("a commit", epoch=1, kind=3)
        await self.hub.send(SendRequest(commit, self.key, CommitData(Room.new_key(), None, None)), ALICE)

    async def external_commit(self) -> None:
        message, _ = self.room.commit(JOINER, signing.by_value(ExternalInit(bytes(32))))
        await self.hub.join(ExternalJoinRequest(message, CommitData(Room.new_key(), None, None)), ALICE)

    async def external_proposal(self) -> None:
        sender = framing.Sender(SenderType.NEW_MEMBER_PROPOSAL, None)
        message = self.room.propose(sender, Add(PROPOSER.key_package()), by=PROPOSER.signer)
        await self.hub.propose(ExternalProposalRequest(message, self.key.mask(32)), ALICE)

    def _words(self) -> Room:
        room = Room()
        room.group_id = self.room.group_id
        return room


def adding(room: signing.Room, key: PartitionKey, following: PartitionKey) -> tuple[SendRequest, signing.Room]:
    """Return a commit that adds the newcomer, with a Welcome, and the room after it."""
    package = NEWCOMER.key_package()
    message, after = room.commit(0, signing.by_value(Add(package)))
    data = WelcomeData(welcome_to(package.ref(room.suite)), (ProviderId(A),))
    return SendRequest(message, key, CommitData(following, None, data)), after


async def fork(hub: LocalHub) -> Fork:
    room = signing.Room.create(signing.Client.of(1))
    key, following = await create(hub, room), Room.new_key()
    first, _ = room.commit(0)
    await hub.send(SendRequest(first, key, CommitData(Room.new_key(), None, None)), ALICE)
    second, after = adding(room, key, following)
    await hub.send(second, ALICE)
    return Fork(hub, after, following)


async def states(hub: LocalHub) -> list[str]:
    rows = await hub._store.read(lambda tx: tx.all("SELECT state FROM outgoing_welcomes ORDER BY id"))
    return [row[0] for row in rows]


USES: dict[str, Callable[[Fork], Awaitable[None]]] = {
    "message": Fork.message,
    "encrypted proposal": Fork.encrypted_proposal,
    "commit": Fork.commit,
    "encrypted commit": Fork.encrypted_commit,
    "external commit": Fork.external_commit,
    "external proposal": Fork.external_proposal,
}


@pytest.mark.parametrize("use", USES)
async def test_any_message_in_its_branch_releases_a_held_welcome(use: str, tmp_path: Path) -> None:
    async with running_hub(tmp_path, group={"external_joins": "open"}) as hub:
        forked = await fork(hub)
        assert await states(hub) == ["held"]
        await USES[use](forked)
        assert await states(hub) == ["due"]


@pytest.mark.parametrize(("kind", "transactions"), [("message", 1), ("commit", 1), ("commit", 3)])
async def test_a_message_in_the_batch_of_its_commit_does_not_release_it(
    kind: str, transactions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if transactions > 1:
        monkeypatch.setattr(hub_module, "PUBLIC_OCTETS_AT_ONCE", 1)
    async with running_hub(tmp_path) as hub:
        room = signing.Room.create(signing.Client.of(1))
        key, following = await create(hub, room), Room.new_key()
        first, _ = room.commit(0)
        second, after = adding(room, key, following)
        words = Room()
        words.group_id = room.group_id
        use = words.send("at once", following, epoch=1)
        if kind == "commit":
            use = SendRequest(after.commit(0)[0], following, CommitData(Room.new_key(), None, None))
        batch = [SendRequest(first, key, CommitData(Room.new_key(), None, None)), second, use]
        assert [answer.counter for answer in await hub.send_batch(batch, ALICE)] == [0, 1, 0]  # type: ignore[union-attr]
        assert await states(hub) == ["held"]
        await hub.send(words.send("later", following, epoch=1), ALICE)
        assert await states(hub) == ["due"]


async def test_a_branch_whose_messages_came_before_its_commit_is_used(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        room = signing.Room.create(signing.Client.of(1))
        key, following = await create(hub, room), Room.new_key()
        first, _ = room.commit(0)
        second, _ = adding(room, key, following)
        words = Room()
        words.group_id = room.group_id
        await hub.send(words.send("ahead of the commit", following, epoch=1), ALICE)
        await hub.send(SendRequest(first, key, CommitData(Room.new_key(), None, None)), ALICE)
        await hub.send(second, ALICE)
        assert await states(hub) == ["due"]


@pytest.mark.sqlite_file("no database in PostgreSQL is as old")
def test_welcomes_that_were_held_for_ever_are_released_by_the_upgrade(tmp_path: Path) -> None:
    database = tmp_path / "mimids.sqlite3"
    migrate(database, shipped()[:8])
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO providers (id, domain) VALUES (1, 'a.example')")
        connection.execute(
            "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at) VALUES (1, 1, x'67', 1, 1, 0)"
        )
        connection.execute("INSERT INTO welcomes (id, digest, body, stored_at) VALUES (1, x'00', x'00', 0)")
        for row, parent, ended in ((1, None, None), (2, 1, None), (3, 1, 3), (4, 1, None), (5, 2, None), (6, 3, 3)):
            connection.execute(
                "INSERT INTO partitions"
                " (id, group_ref, hub, masked_key, parent, terminated_by, held_welcomes, opened_at)"
                " VALUES (?, 1, 1, randomblob(32), ?, ?, ?, 0)",
                (row, parent, ended, row in (2, 3, 4)),
            )
        for row in (2, 3, 4):  # 2 went on with a commit, 3 too but is terminated, 4 carries nothing
            connection.execute(
                "INSERT INTO outgoing_welcomes (id, welcome, partition, provider, refs, state, created_at)"
                " VALUES (?1, 1, ?1, 1, x'00', 'held', 0)",
                (row,),
            )
    migrate(database)
    with closing(sqlite3.connect(database)) as connection:
        states = connection.execute("SELECT id, state FROM outgoing_welcomes ORDER BY id").fetchall()
        held = connection.execute("SELECT id FROM partitions WHERE held_welcomes > 0 ORDER BY id").fetchall()
    assert states == [(2, "due"), (3, "held"), (4, "held")]
    assert held == [(3,), (4,)]
