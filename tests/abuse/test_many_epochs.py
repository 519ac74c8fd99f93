"""Groups with very many epochs or branches: what a message, a push or a read costs does not grow with their number.

The file is long because it has a test for each read that must not grow with the number of epochs.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from mimids.ds.following.pushes import Pushes
from mimids.ds.following.recovery_answers import EPOCHS_IN_AN_ANSWER
from mimids.ds.groups import hub as local_hub
from mimids.ds.groups import pages
from mimids.ds.groups.states import States
from mimids.errors import GroupInfoMismatch
from mimids.mls.code_points import SenderType, WireFormat
from mimids.mls.framing import MLSMessage, Sender
from mimids.mls.proposals import ExternalInit, SelfRemove
from mimids.store import messages, partitions, peers, tips
from mimids.store.engine.transaction import Tx
from mimids.values import Follower
from mimids.wire.ids import MLS10, Counter, PartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    CreateGroupRequest,
    ExternalJoinRequest,
    KnownPartition,
    PushRequest,
    ReceiveRequest,
    RecoverRequest,
    SendRequest,
    SendResponse,
    WelcomeData,
)
from tests.support.federation import Room, commit_at, device, federated
from tests.support.followers import HUB, epoch, follower
from tests.support.hub import ALICE, create, running_hub
from tests.support.signing import Client, by_reference, by_value, crowd, proposal, ref_of
from tests.support.signing import Room as SignedRoom
from tests.support.welcomes import REF, welcome_to

A, B = "a.example", "b.example"
BRANCHES = 200
EPOCHS = 300


class Statements:
    """The statements that transactions run, by how often, and the rows that they return."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.rows = 0
        for name in ("one", "all"):
            monkeypatch.setattr(Tx, name, self._counted(getattr(Tx, name)))

    def reset(self) -> None:
        self.count = self.rows = 0

    def _counted(self, run: Any) -> Any:
        def counted(tx: Tx, sql: str, params: Any = ()) -> Any:
            found = run(tx, sql, params)
            self.count += 1
            self.rows += len(found) if isinstance(found, list) else found is not None
            return found

        return counted


async def branched(hub: Any, room: Room, who: Any, branches: int) -> list[PartitionKey]:
    """Create a group whose first epoch has many commits, and a message after each."""
    await hub.create_group(room.creation(), who)
    keys = [room.new_key() for _ in range(branches)]
    for key in keys:
        assert isinstance(await hub.send(room.commit(key.mask(32).hex()[:20], key), who), SendResponse)
        await hub.send(room.send("used", key, epoch=1), who)
    return keys


# --- many branches of one epoch -----------------------------------------------------------------------------------


async def test_an_answer_names_the_first_commits_only(tmp_path: Path) -> None:
    """A batch of 1,024 messages would get an answer of 340 MB in an epoch with 10,000 commits."""
    async with running_hub(tmp_path) as hub:
        room = Room()
        keys = await branched(hub, room, ALICE, BRANCHES)
        first = [key.mask(32) for key in keys[: messages.COMMITS_READ]]
        answers = await hub.send_batch([room.send(f"{n}") for n in range(3)], ALICE)
        assert [list(answer.earlier_commits) for answer in answers] == [first] * 3  # type: ignore[union-attr]
        answer = await hub.send(room.commit("one more", room.new_key()), ALICE)
        assert list(answer.earlier_commits) == first


async def test_a_commit_beside_many_reads_few_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_hub(tmp_path) as hub:
        room = Room()
        await branched(hub, room, ALICE, BRANCHES)
        counted = Statements(monkeypatch)
        await hub.send(room.commit("one more", room.new_key()), ALICE)
        assert counted.rows < messages.COMMITS_READ + 60


async def test_a_follower_that_takes_one_more_commit_is_looked_for_in_one_branch_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_in: list[int] = []
    has_leaf_of = States.has_leaf_of

    def counted(self: States, tx: Tx, group: Any, partition: Any, provider: Any) -> bool:
        looked_in.append(partition.id)
        return has_leaf_of(self, tx, group, partition, provider)

    room = crowd(2)
    async with federated(tmp_path, A, B, jobs_of=()) as (a, _):
        hub, alice = a.services.hub, device(a)
        key = PartitionKey(bytes(16))
        info = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info())
        await hub.create_group(CreateGroupRequest(room.group_id, MLS10, room.suite.code, key, info, None, None), alice)
        for n in range(20):
            data = CommitData(PartitionKey(bytes([n + 1]) * 16), None, None)
            await hub.send(SendRequest(room.commit(0)[0], key, data), alice)
        await hub.receive(ReceiveRequest(key, Counter(0)), Follower(ProviderId(B)))
        pushes = Pushes(States(), hub._recent)
        monkeypatch.setattr(States, "has_leaf_of", counted)

        def settle(first: int, end: int, tx: Tx) -> None:
            found = partitions.find_partition(tx, 1, key.masks())
            assert found is not None
            page = pages.page(tx, found, Counter(first), limit_octets=1 << 24)
            page = pages.Page(found, Counter(first), page.messages[: end - first], page.kinds, complete=False)
            pushes._follow_children(tx, peers.every_peer(tx)[0], page)

        await a.services.store.write(lambda tx: settle(0, 20, tx))
        assert len(looked_in) == 20
        looked_in.clear()
        await a.services.store.write(lambda tx: settle(19, 20, tx))
        assert len(looked_in) == 1


async def test_hints_look_at_a_bounded_number_of_epochs_without_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "HINTS_LOOKED_AT", 40)
    looked: list[int] = []
    room, keys = Room(), [Room.new_key() for _ in range(100)]
    async with running_hub(tmp_path) as hub:
        await hub.create_group(room.creation(keys[0]), ALICE)
        for n, (key, following) in enumerate(pairwise(keys)):
            await hub.send(commit_at(room, n, key, following), ALICE)
        await hub._store.write(lambda tx: tx.execute("UPDATE messages SET body = NULL WHERE partition > 1"))

        def hints(tx: Tx) -> list[pages.Page]:
            asked = partitions.find_partition(tx, 1, keys[0].masks())
            assert asked is not None

            def may_have(child: Any) -> bool:
                looked.append(child.id)
                return True

            return pages.hinted(tx, asked, may_have=may_have, limit_octets=1 << 20)

        assert await hub._store.read(hints) == []
    assert len(looked) <= 40


async def chained(hub: Any, room: Room, who: Any, epochs: int) -> list[PartitionKey]:
    """Create a group of many epochs, the first of which has two branches with messages."""
    keys = [room.new_key() for _ in range(epochs)]
    await hub.create_group(room.creation(keys[0]), who)
    for n, (key, following) in enumerate(pairwise(keys)):
        await hub.send(commit_at(room, n, key, following), who)
    beside = room.new_key()
    await hub.send(commit_at(room, 0, keys[0], beside), who)
    await hub.send(room.send("beside", beside, epoch=1), who)
    return keys


async def test_the_busiest_branch_of_many_epochs_is_found_among_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tips, "TIPS_AMONG", 20)
    async with running_hub(tmp_path) as hub:
        keys = await chained(hub, Room(), ALICE, 60)
        counted = Statements(monkeypatch)
        found = await hub._store.read(lambda tx: tips.live_tip(tx, 1))
        assert found is not None
        assert found.masked_key == keys[-1].mask(32)
        assert counted.rows < 30
        first = await hub._store.read(lambda tx: tips.live_tip(tx, 1, below=1))
        assert first is not None
        assert first.masked_key == keys[-1].mask(32), "beginning at a partition that is not among these"


async def test_a_hub_that_asks_what_it_lacks_has_few_of_many_epochs_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request of a hundred octets read all partitions of a group; two readers serve everybody."""
    monkeypatch.setattr(partitions, "PAGE_ROWS", 16)
    room, keys = Room(hub=HUB), [Room.new_key() for _ in range(200)]
    async with follower(tmp_path, room.group_id) as (running, receiver):
        await receiver.receive_push(HUB, PushRequest(tuple(epoch(room, key, ["0"]) for key in keys)))
        ask = running.services.recovery_answers.messages_beyond
        counted = Statements(monkeypatch)
        known: list[KnownPartition] = []
        while found := (await ask(Follower(HUB), RecoverRequest(room.group_id, tuple(known)))).epochs:
            if not known:
                assert counted.rows < EPOCHS_IN_AN_ANSWER * 3 + 32
            known += [KnownPartition(each.masked_partition_key, Counter(1)) for each in found]
        assert {each.masked_partition_key for each in known} == {key.mask(32) for key in keys}
        assert len(known) == len(keys)


# --- many epochs below each other ---------------------------------------------------------------------------------


async def test_a_commit_in_a_late_epoch_does_not_walk_up_all_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 500 refused commits in the 1,500th epoch held all writes for 11 s."""
    async with running_hub(tmp_path, limits={"device_sends_per_second": 0}) as hub:
        room, keys = Room(), [Room.new_key() for _ in range(EPOCHS)]
        await hub.create_group(room.creation(keys[0]), ALICE)
        for n, (key, following) in enumerate(pairwise(keys)):
            await hub.send(commit_at(room, n, key, following), ALICE)
        detached, below = room.new_key(), room.new_key()
        await hub.send(room.commit("below", below, detached), ALICE)
        info = MLSMessage(MLS10, WireFormat.GROUP_INFO, SignedRoom.create(Client.of(1)).info())
        refused = [
            SendRequest(room.message(f"{n}", epoch=EPOCHS - 1, kind=3), keys[-1], CommitData(detached, info, None))
            for n in range(20)
        ]
        counted = Statements(monkeypatch)
        answers = await hub.send_batch(refused, ALICE)
        assert {type(answer) for answer in answers} == {GroupInfoMismatch}
        assert counted.count < 20 * 15, "it was one for each epoch and commit"


async def test_a_pushed_commit_that_leads_back_costs_no_way_up_for_each_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, keys = Room(hub=HUB), [Room.new_key() for _ in range(EPOCHS)]
    async with follower(tmp_path, room.group_id) as (running, receiver):
        chain = [epoch(room, key, ["on"], 0, following) for key, following in pairwise(keys)]
        await receiver.receive_push(HUB, PushRequest(tuple(chain)))
        counted = Statements(monkeypatch)
        back = epoch(room, keys[-1], [f"{n}" for n in range(50)], 0, keys[0])
        assert (await receiver.receive_push(HUB, PushRequest((back,)))).next_counters == (50,)
        assert counted.count < 50 * 8 + EPOCHS / 10
        assert receiver.statistics().contradictions == 50
        del running


@pytest.mark.parametrize("order", ["downwards", "upwards"])
async def test_a_cycle_of_partitions_is_never_made(order: str, tmp_path: Path) -> None:
    """Whatever the order in which commits come that lead in a circle, and over how many transactions."""
    room, keys = Room(hub=HUB), [Room.new_key() for _ in range(70)]
    async with follower(tmp_path, room.group_id) as (running, receiver):
        circle = [*pairwise(keys), (keys[-1], keys[0])]
        if order == "upwards":
            circle.reverse()
        await receiver.receive_push(HUB, PushRequest(tuple(epoch(room, key, ["0"], 0) for key, _ in circle)))
        for some in (circle[:30], circle[30:]):
            pushed = [epoch(room, key, ["on"], 1, following) for key, following in some]
            await receiver.receive_push(HUB, PushRequest(tuple(pushed)))
        rows = await running.services.store.read(lambda tx: tx.all("SELECT id, parent FROM partitions"))
        parents: dict[int, int | None] = dict(rows)
        assert list(parents.values()).count(None) == 1
        for row in parents:
            above, seen = parents[row], {row}
            while above is not None:
                assert above not in seen
                seen.add(above)
                above = parents[above]
        assert receiver.statistics().contradictions == 1


# --- many proposals -----------------------------------------------------------------------------------------------


async def test_self_removes_are_not_compared_with_all_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 1,024 in an unknown state held all writes for half a minute."""
    read: list[int] = []
    body_of = messages.body_of

    def counted(tx: Tx, seq: int) -> bytes | None:
        read.append(seq)
        return body_of(tx, seq)

    monkeypatch.setattr(messages, "body_of", counted)
    room = crowd(2)
    async with running_hub(tmp_path) as hub:
        key = PartitionKey(bytes(16))
        await hub.create_group(CreateGroupRequest(room.group_id, MLS10, room.suite.code, key, None, None, None), ALICE)
        sender, signer = Sender(SenderType.MEMBER, 0), room.clients[0].signer
        batch = [
            SendRequest(room.send(sender, signer, proposal(SelfRemove()), authenticated_data=b"%d" % n), key, None)
            for n in range(100)
        ]
        assert {type(answer) for answer in await hub.send_batch(batch, ALICE)} == {SendResponse}
    assert len(read) <= len(batch)


async def test_a_second_self_remove_of_a_member_is_refused_in_a_known_state(tmp_path: Path) -> None:
    room = crowd(3)
    async with running_hub(tmp_path) as hub:
        key = await create(hub, room)
        for leaf in (1, 2):
            await hub.send(SendRequest(room.propose(leaf, SelfRemove()), key, None), ALICE)
        again = room.propose(1, SelfRemove(), authenticated_data=b"again")
        (answer,) = await hub.send_batch([SendRequest(again, key, None)], ALICE)
        assert getattr(answer, "members", {}).get("rule") == "self-remove-twice", answer


async def test_a_reference_that_a_commit_repeats_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    body_of = messages.body_of

    def counted(tx: Tx, seq: int) -> bytes | None:
        read.append(seq)
        return body_of(tx, seq)

    room = crowd(2)
    async with running_hub(tmp_path) as hub:
        key = PartitionKey(bytes(16))
        await hub.create_group(CreateGroupRequest(room.group_id, MLS10, room.suite.code, key, None, None, None), ALICE)
        proposed = room.propose(0, b"custom")
        await hub.send(SendRequest(proposed, key, None), ALICE)
        ref = by_reference(ref_of(proposed, room.suite))
        commit, _ = room.commit(0, *[ref] * 500)
        monkeypatch.setattr(messages, "body_of", counted)
        counted_statements = Statements(monkeypatch)
        await hub.send_batch([SendRequest(commit, key, CommitData(PartitionKey(bytes([1]) * 16), None, None))], ALICE)
        assert len(read) < 10
        assert counted_statements.count < 100


async def test_other_writes_get_their_turn_between_the_public_messages_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 300 commits with thousands of small proposals each held all writes for 1.4 s."""
    monkeypatch.setattr(local_hub, "PUBLIC_OCTETS_AT_ONCE", 4096)
    room = crowd(2)
    async with running_hub(tmp_path) as hub:
        key = PartitionKey(bytes(16))
        await hub.create_group(CreateGroupRequest(room.group_id, MLS10, room.suite.code, key, None, None, None), ALICE)
        batch = [SendRequest(room.propose(0, bytes(1000 + n)), key, None) for n in range(30)]
        seen: list[int] = []

        async def write_beside() -> None:
            while not seen or seen[-1] < len(batch):
                found = await hub._store.write(lambda tx: tx.one("SELECT count(*) FROM messages"))
                assert found is not None
                seen.append(found[0])

        async with trio.open_nursery() as tasks:
            tasks.start_soon(write_beside)
            answers = await hub.send_batch(batch, ALICE)
        assert [getattr(answer, "counter", answer) for answer in answers] == list(range(30))
        assert len(set(seen)) >= 3, "it saw parts of the batch"


async def test_a_welcome_stays_held_whatever_transactions_its_batch_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_hub, "PUBLIC_OCTETS_AT_ONCE", 1)
    signed = crowd(2)
    room = Room.of(signed)
    async with running_hub(tmp_path, federation={"allow": [B]}) as hub:
        await hub.create_group(room.creation(), ALICE)
        await hub.send(room.commit("first", room.new_key()), ALICE)
        following = room.new_key()
        data = CommitData(following, None, WelcomeData(welcome_to(REF), (ProviderId(B),)))
        batch = [SendRequest(room.message("second", kind=3), room.key, data)]
        batch += [SendRequest(signed.propose(0, b"%d" % n), room.key, None) for n in range(3)]
        await hub.send_batch([*batch, room.send("used", following, epoch=1)], ALICE)
        found = await hub._store.read(lambda tx: tx.all("SELECT state FROM outgoing_welcomes"))
        assert found == [("held",)]
        await hub.send(room.send("used again", following, epoch=1), ALICE)
        found = await hub._store.read(lambda tx: tx.all("SELECT state FROM outgoing_welcomes"))
        assert found == [("due",)]


# --- joining from outside -----------------------------------------------------------------------------------------


async def test_detached_partitions_do_not_keep_anybody_from_joining(tmp_path: Path) -> None:
    room = crowd(2)
    async with running_hub(tmp_path, group={"external_joins": "open"}) as hub:
        key = await create(hub, room, joinable=True)
        junk = Room.of(room)
        for n in range(0, 256, 64):
            batch = [junk.send(f"{n + k}", junk.new_key()) for k in range(64)]
            answers = await hub.send_batch(batch, Follower(ProviderId(B)))
            assert all(isinstance(answer, SendResponse) and answer.detached for answer in answers)
        init = by_value(ExternalInit(bytes(room.suite.kem_output_size)))
        commit, _ = room.commit(Client.of(9), init)
        answer = await hub.join(ExternalJoinRequest(commit, CommitData(junk.new_key(), None, None)), ALICE)
        assert answer.partition == key.mask(32)
