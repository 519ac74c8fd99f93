"""What a provider answers to a restored hub, within which bounds, and answers that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.ds.following import recovery_answers
from mimids.ds.following.recovery_answers import AGAIN_SECONDS
from mimids.ds.ports import PeerAnswer
from mimids.errors import MethodNotAllowed, RateLimited, Recovering
from mimids.testing.clock import MovableClock
from mimids.values import Follower
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, Counter, GroupId, MaskedPartitionKey, ProviderId
from mimids.wire.messages import (
    HeldGroupsRequest,
    HeldGroupsResponse,
    KnownPartition,
    PushedEpoch,
    PushRequest,
    PushResponse,
    RecoverRequest,
    RecoverResponse,
)
from tests.support.doubles import Called, bound_hits, stopped_clock
from tests.support.federation import Room, device, federated, read, wait_stored
from tests.support.followers import epoch
from tests.support.provider import Assembled
from tests.support.restoring import recovering
from tests.support.stored import rows, until
from tests.support.welcomes import invite, reaches

A, B = map(ProviderId, ("a.example", "b.example"))
ROOM, OTHER = Room(), Room("other")
NO_GROUPS = encode(HeldGroupsResponse(()))


def recovered(*epochs: PushedEpoch) -> bytes:
    return encode(RecoverResponse(MLS10, CipherSuite(1), epochs))


def in_order(*names: bytes) -> bytes:
    return encode(HeldGroupsResponse(tuple(map(GroupId, names))))


# --- answers that make no sense -----------------------------------------------------------------------------------

# By path, what a follower of the group answers; an empty push stands for a provider that has no /ds/v1/recover.
NONSENSE: dict[str, dict[str, bytes]] = {
    "groups that cannot be decoded": {"/ds/v1/recover/groups": b"\x40"},
    "groups in no order": {"/ds/v1/recover/groups": in_order(b"b", b"a")},
    "a group twice": {"/ds/v1/recover/groups": in_order(b"a", b"a")},
    "a group without a name": {"/ds/v1/recover/groups": in_order(b"")},
    "messages that cannot be decoded": {"/ds/v1/recover": b"nonsense"},
    "messages with more after them": {"/ds/v1/recover": recovered(epoch(ROOM, ROOM.key, ["new"], 1)) + b"x"},
    "messages of another group": {"/ds/v1/recover": recovered(epoch(OTHER, OTHER.key, ["new"]))},
    "another group beside the one": {
        "/ds/v1/recover": recovered(epoch(ROOM, ROOM.key, ["new"], 1), epoch(OTHER, OTHER.key, ["new"]))
    },
    "messages that we have": {"/ds/v1/recover": recovered(epoch(ROOM, ROOM.key, ["0"], 0))},
    "no messages at our counter": {"/ds/v1/recover": recovered(epoch(ROOM, ROOM.key, [], 1))},
    "counters that cannot be decoded": {"/ds/v1/push": b"\x40"},
    "too few counters": {"/ds/v1/push": encode(PushResponse(()))},
    "too many counters": {"/ds/v1/push": encode(PushResponse((Counter(7), Counter(7))))},
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_an_answer_that_makes_no_sense_is_logged_and_asked_for_again(what: str, tmp_path: Path) -> None:
    """Nothing of it is stored, and the group stays held: the provider must answer."""
    answers = {"/ds/v1/recover/groups": NO_GROUPS, **NONSENSE[what]}
    wrong = list(answers)[-1]
    asked: list[str] = []

    async def peer(called: Called) -> PeerAnswer:
        asked.append(called.path)
        if called.path not in answers:
            raise MethodNotAllowed
        return PeerAnswer(answers[called.path])

    async with recovering(tmp_path, ROOM, peer, follows=True) as a:
        await until(lambda: _came(asked, wrong, 2))
        assert await read(a, device(a), A, ROOM.key) == ["0"]
        assert await rows(a, "SELECT group_id FROM groups") == [(ROOM.group_id,)]
        results = {line["result"] for line in a.log.lines if line["event"].startswith("asked another provider")}
        assert "peer-failed" in results
        if wrong != "/ds/v1/recover/groups":
            with pytest.raises(Recovering):
                await a.services.hub.send(ROOM.send("too early"), device(a))


async def test_the_suite_of_a_group_that_the_backup_lacks_is_learned_from_the_answer(tmp_path: Path) -> None:
    async def peer(called: Called) -> PeerAnswer:
        if called.path == "/ds/v1/recover/groups":
            return PeerAnswer(in_order(OTHER.group_id))
        known = decode(RecoverRequest, called.body).known
        epochs = () if known else (epoch(OTHER, OTHER.key, ["0"]),)
        return PeerAnswer(encode(RecoverResponse(MLS10, CipherSuite(3), epochs)))

    async with recovering(tmp_path, ROOM, peer) as a:
        await until(lambda: _is_free(a))
        found = await rows(a, "SELECT group_id, version, cipher_suite FROM groups ORDER BY id")
        assert found == [(ROOM.group_id, 1, 1), (OTHER.group_id, 1, 3)]


async def _came(asked: list[str], path: str, times: int) -> bool:
    return asked.count(path) >= times


async def test_the_provider_of_many_partitions_is_asked_for_their_counters_in_parts(tmp_path: Path) -> None:
    pushed: list[int] = []

    async def peer(called: Called) -> PeerAnswer:
        if called.path != "/ds/v1/push":
            raise MethodNotAllowed
        epochs = decode(PushRequest, called.body).epochs
        pushed.append(len(epochs))
        return PeerAnswer(encode(PushResponse(tuple(Counter(each.counter) for each in epochs))))

    async with recovering(tmp_path, ROOM, peer, follows=True) as a:
        await until(lambda: _is_free(a))
        assert pushed == [1]


async def _is_free(running: Assembled) -> bool:
    return await rows(running, "SELECT count(*) FROM recoveries WHERE answered = 0") == [(0,)]


# --- our answers --------------------------------------------------------------------------------------------------


async def test_groups_are_named_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_answers, "GROUPS_IN_AN_ANSWER", 2)
    async with federated(tmp_path, A, B, jobs_of=()) as (a, b):
        rooms = [Room(f"room {n}") for n in range(3)]
        for room in rooms:
            await a.services.hub.create_group(room.creation(), device(a))
            await b.services.hub_router.hub(A).send(device(b, "bob"), room.send("0"))
        names = sorted(room.group_id for room in rooms)
        answers = b.services.recovery_answers
        found = []
        for after in (b"", names[1], names[2]):
            page = await answers.groups_of(Follower(A), HeldGroupsRequest(GroupId(after)))
            found.append(list(page.group_ids))
        assert found == [names[:2], names[2:], []]


async def test_a_hub_gets_what_it_lacks_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with federated(tmp_path, A, B) as (a, b):
        room, tip = Room(), Room.new_key()
        bob, hub = device(b, "bob"), b.services.hub_router.hub(A)
        await a.services.hub.create_group(room.creation(), device(a))
        for request in (room.send("0"), room.commit("on", tip), room.send("1", tip, epoch=1)):
            await hub.send(bob, request)
        await wait_stored(b, A, bob, room.key, 2)
        await wait_stored(b, A, bob, tip, 1)

        async def beyond(*known: tuple[MaskedPartitionKey, int]) -> list[tuple[MaskedPartitionKey, int, int]]:
            request = RecoverRequest(room.group_id, tuple(KnownPartition(key, Counter(at)) for key, at in known))
            answer = await b.services.recovery_answers.messages_beyond(Follower(A), request)
            return [(each.masked_partition_key, each.counter, len(each.epoch.messages)) for each in answer.epochs]

        first, second = room.key.mask(32), tip.mask(32)
        assert await beyond() == [(first, 0, 2), (second, 0, 1)]
        assert await beyond((first, 1)) == [(first, 1, 1), (second, 0, 1)]
        assert await beyond((first, 2)) == [(second, 0, 1)]
        assert await beyond((first, 3), (second, 1)) == []
        monkeypatch.setattr(recovery_answers, "EPOCHS_IN_AN_ANSWER", 1)
        assert await beyond() == [(first, 0, 2)]


async def test_welcomes_are_sent_again_once_in_ten_minutes_to_each_provider(tmp_path: Path) -> None:
    clock: MovableClock = stopped_clock()
    async with federated(tmp_path, A, B, "c.example", clock=clock, jobs_of=()) as (a, _, _):
        answers = a.services.recovery_answers
        await invite(a, Room())
        await a.services.store.write(lambda tx: tx.execute("UPDATE outgoing_welcomes SET state = 'delivered'"))
        await answers.send_welcomes_again(Follower(B))
        await reaches(a, "due")
        clock.advance(AGAIN_SECONDS - 0.001)
        with pytest.raises(RateLimited) as refused:
            await answers.send_welcomes_again(Follower(B))
        assert refused.value.retry_after == 1
        assert bound_hits(a.services.telemetry, "welcomes-again") == 1
        await answers.send_welcomes_again(Follower(ProviderId("c.example")))
        clock.advance(0.001)
        await answers.send_welcomes_again(Follower(B))
