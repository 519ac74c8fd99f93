"""The hub against a model of dicts and lists; with many senders at once; with senders that cancel at any step.

The file is long because it has the model of the whole hub, and the tests that compare the hub with it.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mimids.config import parse
from mimids.ds.groups import branches
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.sequencing import Outcome
from mimids.ds.groups.states import States
from mimids.ds.notifier import Notifier
from mimids.errors import (
    BranchTerminated,
    CommitSuperseded,
    Malformed,
    MimiError,
    PartitionExists,
    TooLarge,
    UnknownPartition,
)
from mimids.mls import framing
from mimids.mls.code_points import SenderType, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import Add, ExternalInit, Remove
from mimids.store import partitions
from mimids.store.engine.access import open_store
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import connect
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Device, DeviceRow, Follower, Milliseconds, Sender
from mimids.wire.base64url import base64url
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, Counter, PartitionKey, ProviderId, local_user_id
from mimids.wire.messages import (
    CommitData,
    CreateGroupRequest,
    ExternalJoinRequest,
    ExternalProposalRequest,
    ReceiveRequest,
    ReceiveResponse,
    SendRequest,
    SendResponse,
)
from tests.support import signing
from tests.support.doubles import stopped_clock
from tests.support.federation import COMMIT, Room
from tests.support.hub import running_hub
from tests.support.mls_makers import replace
from tests.support.one_connection import OneConnection
from tests.support.recordings import Recording

A = ProviderId("a.example")
ALICE = Device(A, local_user_id(A, "alice"), DeviceRow(1), "1")
SENDERS: tuple[Sender, ...] = (ALICE, Follower(ProviderId("b.example")), Follower(ProviderId("c.example")))
NEVER = Milliseconds(0)


@attrs.define
class Model:
    """What a hub is to clients: for each key a list; the tree of keys; which of them were ended, and by which."""

    lists: dict[PartitionKey, list[bytes]] = attrs.field(factory=dict)
    parent: dict[PartitionKey, PartitionKey | None] = attrs.field(factory=dict)  # None: where the group began
    ended: dict[PartitionKey, PartitionKey] = attrs.field(factory=dict)

    def winner(self, key: PartitionKey) -> PartitionKey | None:
        """Return the open partition to which the commit of an epoch leads, in a linear group."""
        return next((each for each, parent in self.parent.items() if parent == key and each not in self.ended), None)

    def may_undo(self, key: PartitionKey) -> bool:
        """Tell whether a linear group has no branch in the place of this one."""
        beside = [each for each, parent in self.parent.items() if parent == self.parent[key] and each != key]
        return all(self.ended.get(each) == each for each in beside)

    def below(self, key: PartitionKey) -> list[PartitionKey]:
        return [key, *(each for child, parent in self.parent.items() if parent == key for each in self.below(child))]

    def end(self, key: PartitionKey, by: PartitionKey) -> None:
        for each in self.below(key):
            self.ended.setdefault(each, by)

    def undo(self, key: PartitionKey) -> None:
        if self.ended.get(key) == key:
            self.ended = {each: by for each, by in self.ended.items() if by != key}
            if (above := self.parent[key]) in self.ended and above is not None:
                self.end(key, self.ended[above])


class HubAndModel(RuleBasedStateMachine):
    """Sends, repeats, forks, detached partitions, joins, terminations and restarts, in any order."""

    linear = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.file = Path(self.directory.name) / "db"
        migrate(self.file)
        self.model = Model()
        self.detached: set[PartitionKey] = set()
        self.known: dict[PartitionKey, signing.Room] = {}  # the group's state in each attached partition
        self.answers: list[tuple[Any, Sender, SendResponse]] = []
        self.opened: dict[PartitionKey, list[tuple[int, PartitionKey]]] = {}  # by the commits of each partition
        self.numbers = iter(range(1, 1_000_000))
        self.words = Room("room")
        self.open()

    def open(self) -> None:
        self.connection = connect(self.file, synchronous="NORMAL")
        self.connection.execute("PRAGMA synchronous=OFF")
        store: Any = OneConnection(self.connection)
        self.store: Store = store
        limits = {"device_detached_partitions": 0, "provider_detached_partitions": 0, "device_branches": 0}
        config = parse({"provider": A, "data_dir": self.directory.name, "limits": limits}, self.file.parent)
        self.hub = LocalHub(config, self.store, stopped_clock(), MlsJudge(States()), Notifier())

    def teardown(self) -> None:
        for key in self.model.lists:
            assert self.read(key) == self.model.lists[key]
            assert self.read(key, SENDERS[1]) == self.model.lists[key]
        self.connection.close()
        self.directory.cleanup()

    # --- helping ------------------------------------------------------------------------------------------------

    def read(self, key: PartitionKey, reader: Sender = ALICE) -> list[bytes]:
        answer = trio.run(self.hub.receive, ReceiveRequest(key, Counter(0)), reader)
        return [each.message.encoded for each in decode(ReceiveResponse, answer).epoch.messages]

    def offer(self, request: Any, sender: Sender) -> SendResponse | MimiError:
        ask: Callable[[Any, Sender], Awaitable[SendResponse]] = self.hub.send
        if isinstance(request, ExternalJoinRequest):
            ask = self.hub.join
        try:
            return trio.run(ask, request, sender)
        except MimiError as error:
            return error

    def accepted(self, request: Any, sender: Sender, key: PartitionKey) -> None:
        """Offer what the model takes into its list of `key`."""
        commits = [child for child, parent in self.model.parent.items() if parent == key]
        answer = self.offer(request, sender)
        assert isinstance(answer, SendResponse), answer
        here = self.model.lists.setdefault(key, [])
        assert answer.counter == len(here)
        assert answer.partition == key.mask(32)
        assert answer.detached == (key in self.detached)
        assert set(answer.earlier_commits) == {each.mask(32) for each in commits}
        here.append(request.message.encoded)
        if request.commit_data is not None:
            self.opened.setdefault(key, []).append((answer.counter, request.commit_data.next_partition_key))
        self.answers.append((request, sender, answer))

    def superseded(self, request: Any, sender: Sender, key: PartitionKey) -> bool:
        """Tell whether the commit of a linear group comes too late; offer it then, and check its refusal."""
        winner = self.model.winner(key) if self.linear else None
        if winner is None:
            return False
        refusal = self.offer(request, sender)
        assert isinstance(refusal, CommitSuperseded)
        won = next(each for each in self.opened[key] if each[1] == winner)
        assert refusal.members == {"counter": won[0], "next_masked_key": base64url(winner.mask(32))}
        return True

    def drawn(self, data: st.DataObject) -> PartitionKey:
        return data.draw(st.sampled_from(list(self.known)))

    def word(self, epoch: int) -> MLSMessage:
        return self.words.message(f"{next(self.numbers)}", epoch=epoch)

    # --- what happens -------------------------------------------------------------------------------------------

    @initialize()
    def create(self) -> None:
        room = signing.Room.create(signing.Client.of(1))
        key = Room.new_key()
        info = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info())
        trio.run(
            partial(self.hub.create_group, linear=self.linear),
            CreateGroupRequest(room.group_id, MLS10, room.suite.code, key, info, None, None),
            ALICE,
        )
        self.model.lists[key], self.model.parent[key], self.known[key] = [], None, room

    @rule(data=st.data(), sender=st.sampled_from(SENDERS))
    def send(self, data: st.DataObject, sender: Sender) -> None:
        key = self.drawn(data)
        request = SendRequest(self.word(self.known[key].epoch), key, None)
        if key in self.model.ended:
            assert isinstance(self.offer(request, sender), BranchTerminated)
        else:
            self.accepted(request, sender, key)

    @rule(data=st.data())
    def send_of_another_epoch(self, data: st.DataObject) -> None:
        key = self.drawn(data)
        request = SendRequest(self.word(self.known[key].epoch + 1), key, None)
        assert isinstance(self.offer(request, ALICE), MimiError)

    @rule(data=st.data(), sender=st.sampled_from(SENDERS))
    def send_to_nowhere(self, data: st.DataObject, sender: Sender) -> None:
        key = data.draw(st.sampled_from([*self.detached, Room.new_key()]))
        request = SendRequest(self.word(99), key, None)
        if self.linear:
            assert isinstance(self.offer(request, sender), UnknownPartition)
            return
        self.detached.add(key)
        self.accepted(request, sender, key)

    @rule(data=st.data(), sender=st.sampled_from(SENDERS))
    def commit(self, data: st.DataObject, sender: Sender) -> None:
        """Commit to a new partition, or to one that others sent to before: it is attached then."""
        key = self.drawn(data)
        following = data.draw(st.sampled_from([Room.new_key(), *self.detached]))
        message, room = self.known[key].commit(0)
        request = SendRequest(message, key, CommitData(following, None, None))
        if key in self.model.ended:
            assert isinstance(self.offer(request, sender), BranchTerminated)
            return
        if self.superseded(request, sender, key):
            return
        self.accepted(request, sender, key)
        self.detached.discard(following)
        self.model.lists.setdefault(following, [])
        self.model.parent[following], self.known[following] = key, room

    @rule(data=st.data())
    def commit_to_what_a_commit_leads_to_already(self, data: st.DataObject) -> None:
        key, following = self.drawn(data), self.drawn(data)
        message, _ = self.known[key].commit(0)
        request = SendRequest(message, key, CommitData(following, None, None))
        if key not in self.model.ended and self.superseded(request, ALICE, key):
            return
        refusal = self.offer(request, ALICE)
        assert isinstance(refusal, BranchTerminated if key in self.model.ended else PartitionExists)

    @precondition(lambda self: len(self.known) < 40)
    @rule(data=st.data(), sender=st.sampled_from(SENDERS[:1]))
    def join(self, data: st.DataObject, sender: Sender) -> None:
        key, following = self.drawn(data), Room.new_key()
        here = self.known[key]
        newcomer = signing.Client.of(2 + next(self.numbers) % 250)
        if any(client.signer.public == newcomer.signer.public for client in here.clients.values()):
            return
        message, room = here.commit(newcomer, signing.by_value(ExternalInit(bytes(32))))
        request = ExternalJoinRequest(message, CommitData(following, None, None))
        if key in self.model.ended:
            assert isinstance(self.offer(request, sender), MimiError)
            return
        if self.superseded(request, sender, key):
            return
        self.accepted(request, sender, key)
        self.model.lists[following], self.model.parent[following], self.known[following] = [], key, room

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        request, sender, before = data.draw(st.sampled_from(self.answers))
        now = self.offer(request, sender)
        assert isinstance(now, SendResponse)
        assert replace(now, detached=before.detached) == before

    @rule(data=st.data())
    def terminate(self, data: st.DataObject) -> None:
        key = self.drawn(data)
        self.on_partition(key, lambda tx, partition: branches.terminate(tx, partition, "why", NEVER))
        self.model.end(key, key)

    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        key = self.drawn(data)
        if self.linear and not self.model.may_undo(key):
            with pytest.raises(Malformed):
                self.on_partition(key, branches.undo_termination)
            return
        self.on_partition(key, branches.undo_termination)
        self.model.undo(key)

    def on_partition(self, key: PartitionKey, work: Callable[[Tx, partitions.Partition], object]) -> None:
        tx = Tx(self.connection)
        found = partitions.find_partition(tx, 1, key.masks())
        assert found is not None
        work(tx, found)

    @rule(data=st.data(), reader=st.sampled_from(SENDERS))
    def receive(self, data: st.DataObject, reader: Sender) -> None:
        key = data.draw(st.sampled_from(list(self.model.lists)))
        assert self.read(key, reader) == self.model.lists[key]

    @rule()
    def ask_for_nothing(self) -> None:
        with pytest.raises(UnknownPartition):
            self.read(Room.new_key())

    @rule()
    def restart(self) -> None:
        self.connection.close()
        self.open()


HubAndModel.TestCase.settings = settings(stateful_step_count=40, max_examples=40, deadline=None)
TestHubAndModel = HubAndModel.TestCase


class LinearHubAndModel(HubAndModel):
    """The same in a linear group: each epoch has one commit, until its branch is terminated."""

    linear = True


LinearHubAndModel.TestCase.settings = HubAndModel.TestCase.settings
TestLinearHubAndModel = LinearHubAndModel.TestCase


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("epoch", [(1 << 63) - 2, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
async def test_epochs_near_the_largest_storable_value_are_handled(epoch: int, known: bool, tmp_path: Path) -> None:
    room, newcomer = signing.Room.create(signing.Client.of(1)), signing.Client.of(2)
    room.epoch, room.confirmed = epoch, bytes(32)
    info = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info()) if known else None
    key, apart = Room.new_key(), Room.new_key()
    commit, _ = room.commit(0)
    join, _ = room.commit(newcomer, signing.by_value(ExternalInit(bytes(32))))
    proposal = room.propose(framing.Sender(SenderType.EXTERNAL, 0), Remove(0), by=newcomer.signer)
    async with running_hub(tmp_path) as hub:
        creation = CreateGroupRequest(room.group_id, MLS10, room.suite.code, key, info, None, None)
        await hub.create_group(creation, ALICE)
        await hub.send(Room().commit("in a partition apart", Room.new_key(), apart), ALICE)
        for ask, request in (
            (hub.propose, ExternalProposalRequest(proposal, None)),
            (hub.send, SendRequest(commit, key, CommitData(apart, None, None))),
            (hub.join, ExternalJoinRequest(join, CommitData(Room.new_key(), None, None))),
        ):
            with suppress(MimiError):
                await cast("Any", ask)(request, ALICE)


async def test_a_provider_that_proposes_from_outside_does_not_follow_the_partition(tmp_path: Path) -> None:
    room, newcomer, stranger = signing.Room.create(signing.Client.of(1)), signing.Client.of(2), SENDERS[1]
    info, key = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info()), Room.new_key()
    add = room.propose(
        framing.Sender(SenderType.NEW_MEMBER_PROPOSAL, None), Add(newcomer.key_package()), by=newcomer.signer
    )
    async with running_hub(tmp_path, group={"external_joins": "open"}) as hub:
        creation = CreateGroupRequest(room.group_id, MLS10, room.suite.code, key, info, None, None)
        await hub.create_group(creation, ALICE)
        assert (await hub.propose(ExternalProposalRequest(add, None), stranger)).counter == 0
        followed = await hub._store.read(lambda tx: tx.all("SELECT * FROM follows"))
        assert followed == []


async def test_what_a_commit_attaches_is_no_longer_detached_later_in_the_same_batch(tmp_path: Path) -> None:
    room, apart, below = Room(), Room.new_key(), Room.new_key()
    async with running_hub(tmp_path, limits={"device_detached_partitions": 2}) as hub:
        await hub.create_group(room.creation(), ALICE)
        answers = await hub.send_batch(
            [
                SendRequest(room.message("on", epoch=1, kind=COMMIT), apart, CommitData(below, None, None)),
                room.send("below", below, epoch=2),
                room.commit("to what is apart", apart),
                room.send("attached", apart, epoch=1),
                room.send("attached too", below, epoch=2),
            ],
            ALICE,
        )
        found = [(each.counter, each.detached) for each in answers if isinstance(each, SendResponse)]
        assert found == [(0, 1), (0, 1), (0, 0), (1, 0), (1, 0)]


async def test_a_refused_message_leaves_no_detached_partition_behind(tmp_path: Path) -> None:
    room, key = Room(), Room.new_key()
    async with running_hub(tmp_path, limits={"message_bytes": 1000}) as hub:
        await hub.create_group(room.creation(), ALICE)
        large = room.send("x" * 1000, key)
        with pytest.raises(TooLarge):
            await hub.send(large, ALICE)
        assert await hub._store.read(lambda tx: tx.all("SELECT count(*) FROM partitions")) == [(1,)]
        _, answer, _ = await hub.send_batch([large, room.send("fits", key), large], ALICE)
        assert isinstance(answer, SendResponse)
        assert (answer.counter, answer.detached) == (0, 1)
        assert (await hub.send(room.send("fits too", key), ALICE)).counter == 1


# --- batches ----------------------------------------------------------------------------------------------------


def mixture(dice: random.Random, info: MLSMessage) -> tuple[list[Room], list[SendRequest]]:
    """Return two groups, the second that of `info`, and what may be in a batch for them.

    That is mostly messages like the one before, and among them all that is not.
    """
    rooms = [Room("one"), Room("two")]
    rooms[1].group_id = info.group_id or rooms[1].group_id
    keys = [rooms[0].key, rooms[1].key, Room.new_key(), Room.new_key()]
    leads = [(keys[0], Room.new_key()), (keys[0], keys[2]), (keys[1], Room.new_key()), (keys[3], Room.new_key())]
    keys += [following for _, following in leads]
    requests: list[SendRequest] = []
    odds = ("repeat", "epoch", "group", "size", "framing", "commit", "no message")
    for odd in dice.sample(odds, 5 * len(odds), counts=[5] * len(odds)):
        room = dice.choice(rooms)
        key = dice.choice((room.key, dice.choice(keys)))
        for _ in range(dice.randrange(12)):
            requests.append(room.send(f"{dice.randrange(500)}", key, epoch=int(key not in keys[:4])))
        if odd == "repeat" and requests:
            requests.append(dice.choice(requests))
        elif odd == "epoch":
            requests.append(rooms[1].send("of another epoch", epoch=7))
        elif odd == "group":
            requests.append(Room("nowhere").send("to a group that there is not", key))
        elif odd == "size":
            requests.append(room.send("x" * 1000, key))
        elif odd == "framing":
            message = room.message(f"{dice.randrange(500)}").message
            assert isinstance(message, framing.PrivateMessage)
            short = replace(message, encrypted_sender_data=bytes(27))
            requests.append(SendRequest(MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, short), key, None))
        elif odd == "commit":
            committed, following = dice.choice(leads)
            requests.append(room.commit("commit", following, committed))
        elif odd == "no message":
            requests.append(SendRequest(info, rooms[1].key, None))
    return rooms, requests


@pytest.mark.parametrize("sender", SENDERS[:2], ids=["device", "follower"])
@pytest.mark.parametrize("seed", range(10))
async def test_a_batch_gets_the_answers_that_its_messages_would_get_one_by_one(
    seed: int, sender: Sender, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dice, known = random.Random(seed), signing.Room.create(signing.Client.of(1))
    info = MLSMessage(MLS10, WireFormat.GROUP_INFO, known.info())
    rooms, requests = mixture(dice, info)
    limits = {"message_bytes": 500, "provider_sends_per_second": 0}
    async with (
        running_hub(tmp_path_factory.mktemp("singly"), limits=limits) as plain,
        running_hub(tmp_path_factory.mktemp("together"), limits=limits) as batched,
    ):
        for creation in (rooms[0].creation(), replace(rooms[1].creation(), group_info=info)):
            await plain.create_group(creation, ALICE)
            await batched.create_group(creation, ALICE)
        singly = [outcome for each in requests for outcome in await plain.send_batch([each], sender)]
        together: list[Outcome] = []
        while len(together) < len(requests):
            some = requests[len(together) : len(together) + dice.randint(1, 100)]
            together += await batched.send_batch(some, sender)
        assert list(map(answer_or_code, together)) == list(map(answer_or_code, singly))
        refusals = {each.code for each in singly if isinstance(each, MimiError)}
        assert refusals >= {"wrong-epoch", "too-large", "invalid-message", "malformed"}
        assert await batched._store.read(stored) == await plain._store.read(stored)


def answer_or_code(outcome: Outcome) -> SendResponse | str:
    return outcome.code if isinstance(outcome, MimiError) else outcome


def stored(tx: Tx) -> list[tuple[object, ...]]:
    return tx.all(
        "SELECT partition, counter, kind, digest, digest_key, body, next_masked_key FROM messages ORDER BY 1, 2"
    )


# --- many at once -------------------------------------------------------------------------------------------------


async def test_two_hundred_senders_leave_no_gap_and_every_reader_sees_the_same_order(tmp_path: Path) -> None:
    room, dice = Room(), random.Random(3)
    told: dict[int, str] = {}
    live: list[bytes] = []
    async with running_hub(tmp_path) as hub:
        await hub.create_group(room.creation(), ALICE)

        async def talk(number: int) -> None:
            sender: Sender = SENDERS[number % 3]
            for turn in range(5):
                for _ in range(dice.randrange(3)):
                    await trio.lowlevel.checkpoint()
                text = f"{number} {turn}"
                answer = await hub.send(room.send(text), sender)
                assert answer.counter not in told
                told[answer.counter] = text

        async def listen() -> None:
            while len(live) < 1000:
                request = ReceiveRequest(room.key, Counter(len(live)))
                answer = decode(ReceiveResponse, await hub.receive(request, SENDERS[1], wait_seconds=30))
                live.extend(each.message.encoded for each in answer.epoch.messages)

        with trio.fail_after(60):
            async with trio.open_nursery() as talking:
                talking.start_soon(listen)
                for number in range(200):
                    talking.start_soon(talk, number)
        assert sorted(told) == list(range(1000))
        expected = [room.message(told[counter]).encoded for counter in range(1000)]
        assert live == expected
        for reader in SENDERS:
            answer = await hub.receive(ReceiveRequest(room.key, Counter(0)), reader)
            assert [each.message.encoded for each in decode(ReceiveResponse, answer).epoch.messages] == expected
        for number in range(200):
            mine = [told[counter] for counter in range(1000) if told[counter].startswith(f"{number} ")]
            assert mine == [f"{number} {turn}" for turn in range(5)], "each sender's own order is kept"


# --- hanging up ---------------------------------------------------------------------------------------------------


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when its task is about to take its n-th step."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, step: int) -> None:
        self._task, self._scope, self._left = task, scope, step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


async def cancelled_at(step: int, ask: Callable[[], Awaitable[object]]) -> bool:
    """Ask, and hang up at a step; False if it was over before."""
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(trio.lowlevel.current_task(), scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await ask()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


def counted(tx: Tx) -> tuple[int, ...]:
    tables = ("messages", "partitions", "welcomes", "outgoing_welcomes", "follows", "proposals")
    counts = [tx.all(f"SELECT count(*) FROM {table}")[0][0] for table in tables]  # noqa: S608
    return (*counts, tx.all("SELECT sum(next_counter) FROM partitions")[0][0])


# Longer than 40 lines: one story, in which each step needs the one before.
@pytest.mark.parametrize("sender", SENDERS[:2], ids=["device", "follower"])
async def test_a_send_that_is_cancelled_at_any_step_is_stored_whole_or_not_at_all(
    tmp_path: Path, sender: Sender
) -> None:
    recording = Recording("public")
    everything = list(recording.messages())
    commit = next(each for each in everything if getattr(each.next_key, "mask", None) and _welcomes(each.request))
    assert isinstance(commit.request, SendRequest)
    request = commit.request
    outcomes: set[tuple[int, ...]] = set()
    step = 0
    while True:
        step += 1
        database = tmp_path / f"{step}"
        migrate(database)
        allowed = {"allow": ["b.example", "c.example"]}
        config = parse({"provider": A, "data_dir": str(tmp_path), "federation": allowed}, tmp_path)
        async with open_store(database) as store, trio.open_nursery() as jobs:
            await jobs.start(store.run)
            hub = LocalHub(config, store, stopped_clock(), MlsJudge(States()), Notifier())
            await hub.create_group(recording.creation(), ALICE)
            for earlier in everything[: everything.index(commit)]:
                if isinstance(earlier.request, SendRequest):
                    with suppress(MimiError):
                        await hub.send(earlier.request, ALICE)
            before = await store.read(counted)
            again = await cancelled_at(step, lambda hub=hub: hub.send(request, sender))  # type: ignore[misc]
            await store.write(lambda tx: None)  # what was handed to the writer is over now
            after = await store.read(counted)
            outcomes.add(tuple(b - a for a, b in zip(before, after, strict=True)))
            answer = await hub.send(request, sender)
            assert await hub.send(request, sender) == answer
            whole = await store.read(counted)
            difference = tuple(b - a for a, b in zip(before, whole, strict=True))
            assert difference[:3] == (1, 1, 1)
            assert difference[3]
            assert outcomes <= {difference, (0,) * len(difference)}
            jobs.cancel_scope.cancel()
        if not again:
            break
    assert step >= 2
    assert len(outcomes) == 2, "it was cancelled before and after the point of no return"


def _welcomes(request: Any) -> bool:
    data = getattr(request, "commit_data", None)
    return data is not None and data.welcome_data is not None
