"""Policy at the hub that sequences a message, and at the provider that passes it on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from mimids.errors import MimiError, PolicyRefused, RateLimited
from mimids.mls.code_points import ContentType, WireFormat
from mimids.mls.framing import MLSMessage, PrivateMessage
from mimids.mls.proposals import Add, ExternalInit, Remove, SelfRemove
from mimids.store import bans
from mimids.store.bans import EVERY_GROUP, Ban, Mute
from mimids.values import Device, Follower
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, Counter, PartitionKey, ProviderId, UserId
from mimids.wire.messages import (
    CommitData,
    CreateGroupRequest,
    ExternalJoinRequest,
    GroupInfoRequest,
    ReceiveRequest,
    ReceiveResponse,
    SendRequest,
    SendResponse,
)
from tests.support.doubles import stopped_clock
from tests.support.federation import Room as Pretended
from tests.support.federation import device, federated, read
from tests.support.hub import ALICE as RECORDED_ALICE
from tests.support.hub import offer, running_hub
from tests.support.patience import patience
from tests.support.provider import Assembled
from tests.support.recordings import Recording, expected
from tests.support.rooms import ALICE, BANNED, MEMBER, MUTED, dictionary, sealed, sets
from tests.support.signing import Client, Room, by_reference, by_value, ref_of

A, B = ProviderId("a.example"), ProviderId("b.example")
BOB = UserId(b"mimi://b.example/u/bob")
ANNA = UserId(b"mimi://a.example/u/anna")
JOBS = ("delivery", "outgoing_welcomes")


def info_of(room: Room) -> MLSMessage:
    return MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info())


class SignedGroup:
    """A group with real signatures at its hub: Alice creates it, and her first commit adds the others."""

    def __init__(self, hub: Assembled, roles: dict[UserId, int], *others: str) -> None:
        self.hub = hub
        self.alice = device(hub)
        self.roles = roles
        self.key = Pretended.new_key()
        self.room = Room.create(Client.of(1, "alice"), dictionary(roles))
        self.others = [Client.of(10 + at, name) for at, name in enumerate(others)]

    async def begin(self) -> None:
        await self.hub.services.hub.create_group(
            CreateGroupRequest(
                self.room.group_id, MLS10, self.room.suite.code, self.key, info_of(self.room), None, None
            ),
            self.alice,
        )
        adds = [by_value(Add(each.key_package())) for each in self.others]
        self.room, self.key = await self.commit(self.room.commit(0, *adds))

    async def commit(self, made: tuple[MLSMessage, Room], *, private: bool = False) -> tuple[Room, PartitionKey]:
        """Send a commit as Alice with its GroupInfo; return the next room and the key of its partition."""
        message, after = made
        if private:
            message = sealed(self.room, ContentType.COMMIT)
        following = Pretended.new_key()
        await self.hub.services.hub.send(
            SendRequest(message, self.key, CommitData(following, info_of(after), None)), self.alice
        )
        return after, following

    async def send(self, message: MLSMessage, sender: Device | Follower) -> SendResponse:
        is_commit = message.content_type is ContentType.COMMIT
        data = CommitData(Pretended.new_key(), None, None) if is_commit else None
        return await self.hub.services.hub.send(SendRequest(message, self.key, data), sender)

    async def refused(self, message: MLSMessage, sender: Device | Follower) -> str:
        """Return the rule that refuses a message."""
        with pytest.raises(PolicyRefused) as refusal:
            await self.send(message, sender)
        assert refusal.value.members["section"]
        return str(refusal.value.members["rule"])


async def operator(of: Assembled, decides: Callable[..., object], *what: Any) -> None:
    await of.services.store.write(lambda tx: decides(tx, *what))


def anna(hub: Assembled) -> Device:
    return device(hub, "anna", 2)


# --- forks ----------------------------------------------------------------------------------------------------------


async def test_one_fork_bans_a_user_and_the_other_does_not(tmp_path: Path) -> None:
    """The draft's own example (DS draft section 4)."""
    recording = Recording("policy")
    verdicts: dict[str, str] = {}
    async with running_hub(tmp_path) as hub:
        await hub.create_group(recording.creation(), RECORDED_ALICE)
        for recorded in recording.messages():
            try:
                await offer(hub, recorded)
                verdicts[recorded.line["name"]] = "sequenced"
            except MimiError as error:
                verdicts[recorded.line["name"]] = str(error.members.get("rule", error.code))
            assert (verdicts[recorded.line["name"]] == "sequenced") == (expected(recorded.line) == "accept")
    assert verdicts["A_alice_adds_carol_d2"] == "banned-user-added"
    assert verdicts["B_bob_adds_carol_d2"] == "sequenced"
    assert verdicts["A_carol_d2_external_commit"] == "banned-user-joins"
    assert verdicts["B_carol_resync"] == "sequenced"
    assert verdicts["A_bob_covers_refused_add"] == "banned-user-added"


# --- the hub --------------------------------------------------------------------------------------------------------


async def test_a_banned_local_user_may_leave_and_a_refused_proposal_must_not_be_covered(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        group = SignedGroup(hub, {ALICE: MEMBER, ANNA: MEMBER}, "anna")
        await group.begin()
        group.room, group.key = await group.commit(group.room.commit(0, by_value(sets({ALICE: MEMBER, ANNA: BANNED}))))
        who = anna(hub)
        adding = group.room.propose(1, Add(Client.of(20, "carol").key_package()))
        assert await group.refused(adding, who) == "banned-sender"
        assert await group.refused(sealed(group.room), who) == "banned-sender"
        assert await group.refused(group.room.commit(1)[0], who) == "banned-sender"
        covering = group.room.commit(0, by_reference(ref_of(adding, group.room.suite)))[0]
        assert await group.refused(covering, group.alice) == "banned-sender"
        leaving = group.room.propose(1, SelfRemove())
        assert (await group.send(leaving, who)).counter == 0
        removed = group.room.commit(0, by_reference(ref_of(leaving, group.room.suite)))[0]
        await group.send(removed, group.alice)


async def test_a_proposal_passed_on_by_a_banned_user_is_refused_and_accepted_from_its_author(
    tmp_path: Path,
) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        group = SignedGroup(hub, {ALICE: MEMBER, ANNA: MEMBER}, "anna")
        await group.begin()
        group.room, group.key = await group.commit(group.room.commit(0, by_value(sets({ALICE: MEMBER, ANNA: BANNED}))))
        alices = group.room.propose(0, Add(Client.of(20, "carol").key_package()))
        assert await group.refused(alices, anna(hub)) == "banned-sender"
        covering = group.room.commit(0, by_reference(ref_of(alices, group.room.suite)))[0]
        await group.send(covering, group.alice)  # not refused for what a third person did


async def test_a_banned_reader_gets_handshakes_only_in_that_branch_and_everything_in_others(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        group = SignedGroup(hub, {ALICE: MEMBER, ANNA: MEMBER}, "anna")
        await group.begin()
        before, member_in = group.room, group.key
        await group.send(sealed(before), group.alice)
        banning = before.commit(0, by_value(sets({ALICE: MEMBER, ANNA: BANNED})))
        group.room, group.key = await group.commit(banning)
        await group.send(sealed(group.room), group.alice)
        await group.send(group.room.commit(0)[0], group.alice)
        kinds: dict[tuple[str, int], list[ContentType | None]] = {}
        for name, key in (("before", member_in), ("after", group.key)):
            for reader in (group.alice, anna(hub)):
                kinds[name, reader.row] = await kinds_read(hub, reader, key)
        application, commit = ContentType.APPLICATION, ContentType.COMMIT
        assert kinds["before", 1] == kinds["before", 2] == [application, commit]
        assert kinds["after", 1] == [application, commit]
        assert kinds["after", 2] == [commit]


async def kinds_read(at: Assembled, reader: Device, key: PartitionKey) -> list[ContentType | None]:
    answer = await at.services.hub_router.hub(A).receive(reader, ReceiveRequest(key, Counter(0)))
    return [each.message.content_type for each in decode(ReceiveResponse, answer).epoch.messages]


async def test_bans_and_mutes_of_the_operator_end_when_they_are_to(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, _):
        group = SignedGroup(hub, {}, "anna")
        await group.begin()
        who, now = anna(hub), clock.now()
        await operator(hub, bans.put_mute, Mute(ANNA, group.room.group_id, "", now, None))
        assert await group.refused(sealed(group.room), who) == "hub-muted-sender"
        await operator(hub, bans.put_ban, Ban(ANNA, "spam", now, type(now)(now + 10_000)))
        assert await group.refused(sealed(group.room), who) == "hub-banned-sender"
        adding = group.room.commit(0, by_value(Add(Client.of(20, "anna").key_package())))[0]
        assert await group.refused(adding, group.alice) == "hub-banned-user-added"
        assert await group.refused(adding, Follower(B)) == "hub-banned-user-added"
        with pytest.raises(PolicyRefused):
            await hub.services.hub_router.hub(A).group_info(who, GroupInfoRequest(group.room.group_id))
        await group.send(group.room.propose(1, Remove(1)), who)
        clock.advance(11)
        await group.send(adding, group.alice)
        assert await group.refused(sealed(group.room), who) == "hub-muted-sender"
        await operator(hub, bans.remove_mute, ANNA, group.room.group_id)
        await group.send(sealed(group.room), who)
        await operator(hub, bans.put_mute, Mute(ANNA, EVERY_GROUP, "", now, None))
        assert await group.refused(_other(group.room), who) == "hub-muted-sender"


@pytest.mark.parametrize(("banned", "rule"), [(ANNA, "hub-banned-sender"), (BOB, "hub-banned-user-added")])
async def test_what_a_ban_of_the_hub_refused_may_be_covered_once_the_ban_has_ended(
    banned: UserId, rule: str, tmp_path: Path
) -> None:
    """Bans of the hub concern people and moments; only a rule of the group itself refuses for a whole epoch."""
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, _):
        group = SignedGroup(hub, {}, "anna")
        await group.begin()
        now = clock.now()
        await operator(hub, bans.put_ban, Ban(banned, "", now, type(now)(now + 10_000)))
        proposal = group.room.propose(1, Add(Client.of(30, "bob@b.example").key_package()))
        covering = group.room.commit(0, by_reference(ref_of(proposal, group.room.suite)))[0]
        if banned == ANNA:
            assert await group.refused(proposal, anna(hub)) == rule
        else:
            await group.send(proposal, anna(hub))
            assert await group.refused(covering, group.alice) == rule
        clock.advance(11)
        await group.send(covering, group.alice)


def _other(room: Room) -> MLSMessage:
    """Return another encrypted message; the same one would be a repeat."""
    message = PrivateMessage(room.group_id, room.epoch, ContentType.APPLICATION, b"", bytes(28), bytes(201))
    return MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, message)


async def test_a_repeat_gets_its_first_answer_even_after_a_ban(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        group = SignedGroup(hub, {}, "anna")
        await group.begin()
        who = anna(hub)
        first = await group.send(sealed(group.room), who)
        await operator(hub, bans.put_ban, Ban(ANNA, "", hub.services.clock.now(), None))
        assert await group.send(sealed(group.room), who) == first


async def test_a_hub_ban_needs_no_state_and_reads_references_too(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        group = SignedGroup(hub, {}, "anna")
        await group.begin()
        lost, key = await group.commit(group.room.commit(0), private=True)
        await hub.services.store.write(lambda tx: _forget_state(tx))
        group.room, group.key = lost, key
        await operator(hub, bans.put_ban, Ban(BOB, "", hub.services.clock.now(), None))
        bob = Client.of(30, "bob@b.example")
        by_val = group.room.commit(0, by_value(Add(bob.key_package())))[0]
        assert await group.refused(by_val, group.alice) == "hub-banned-user-added"
        proposal = group.room.propose(0, Add(bob.key_package()))
        await group.send(proposal, group.alice)
        by_ref = group.room.commit(0, by_reference(ref_of(proposal, group.room.suite)))[0]
        assert await group.refused(by_ref, group.alice) == "hub-banned-user-added"


def _forget_state(tx: Any) -> None:
    tx.execute("UPDATE partitions SET knowledge = 'unknown', root_hash = NULL, group_context = NULL")


async def test_a_banned_user_cannot_join_from_outside(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=(), group={"external_joins": "open"}) as (hub, follower):
        group = SignedGroup(hub, {ALICE: MEMBER, BOB: BANNED}, "anna")
        await group.begin()
        message, _ = group.room.commit(Client.of(30, "bob@b.example"), by_value(ExternalInit(bytes(32))))
        request = ExternalJoinRequest(message, CommitData(Pretended.new_key(), None, None))
        for ask in (
            lambda: hub.services.hub.join(request, Follower(B)),
            lambda: follower.services.hub_router.hub(A).join(device(follower, "bob"), request),
        ):
            with pytest.raises(PolicyRefused) as refusal:
                await ask()
            assert refusal.value.members["rule"] == "banned-user-joins"


# --- the follower ---------------------------------------------------------------------------------------------------


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    with patience():
        while not await look():  # noqa: ASYNC110  # what is waited for is a row
            await trio.sleep(0.01)


async def knows(follower: Assembled, key: PartitionKey) -> None:
    """Wait until a follower knows the state of a partition."""

    def look(tx: Any) -> bool:
        sql = "SELECT knowledge FROM partitions WHERE masked_key = ?"
        return tx.one(sql, (key.mask(32),)) in (("claimed",), ("derived",))

    await until(lambda: follower.services.store.read(look))


async def test_encrypted_handshakes_are_refused_by_the_sender_s_own_provider(tmp_path: Path) -> None:
    """With encrypted handshakes the hub accepts what it cannot see (DS draft section 4)."""
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        group = SignedGroup(hub, {ALICE: MEMBER, BOB: MEMBER}, "bob@b.example")
        await group.begin()
        bob = device(follower, "bob")
        for role, rule in ((MUTED, "muted-sender"), (BANNED, "banned-sender"), (MEMBER, None)):
            made = group.room.commit(0, by_value(sets({ALICE: MEMBER, BOB: role})))
            group.room, group.key = await group.commit(made, private=True)
            await group.send(sealed(group.room, ContentType.PROPOSAL), group.alice)
            await kinds_read(follower, bob, group.key)
            await knows(follower, group.key)
            request = SendRequest(sealed(group.room), group.key, None)
            if rule is None:
                await follower.services.hub_router.hub(A).send(bob, request)
                continue
            with pytest.raises(PolicyRefused) as refusal:
                await follower.services.hub_router.hub(A).send(bob, request)
            assert refusal.value.members["rule"] == rule
            await hub.services.hub.send(request, Follower(B))  # the hub does not know that it is Bob


async def test_a_follower_refuses_nothing_while_the_state_is_unknown(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        group = SignedGroup(hub, {ALICE: MEMBER, BOB: MUTED}, "bob@b.example")
        await group.begin()
        bob = device(follower, "bob")
        await follower.services.hub_router.hub(A).send(
            bob, SendRequest(sealed(group.room), group.key, None)
        )  # nothing known yet
        await kinds_read(follower, bob, group.key)
        await knows(follower, group.key)
        with pytest.raises(PolicyRefused):
            await follower.services.hub_router.hub(A).send(bob, SendRequest(_other(group.room), group.key, None))
        again = SendRequest(sealed(group.room), group.key, None)
        assert await follower.services.hub_router.hub(A).send(bob, again)  # a repeat is answered as before
        await follower.services.store.write(lambda tx: _forget_state(tx))
        await follower.services.hub_router.hub(A).send(bob, SendRequest(_other(group.room), group.key, None))


# --- rates ----------------------------------------------------------------------------------------------------------

RATES = {
    "device_sends_per_second": 1,
    "device_sends_burst": 3,
    "user_sends_per_second": 1,
    "user_sends_burst": 5,
    "device_joins_burst": 1,
    "provider_sends_per_second": 1,
    "provider_sends_burst": 4,
}


async def test_devices_users_and_providers_have_a_rate_each(tmp_path: Path) -> None:
    clock, room = stopped_clock(), Pretended()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=(), limits=RATES) as (hub, _):
        phone, tablet, other = device(hub), device(hub, row=2), device(hub, "anna", 3)
        await hub.services.hub.create_group(room.creation(), phone)
        own = hub.services.hub_router.hub(A)
        results = await own.send_batch(phone, [room.send(f"phone {number}") for number in range(4)])
        assert [isinstance(each, bytes) for each in results] == [False, False, False, True]
        results = await own.send_batch(tablet, [room.send(f"tablet {number}") for number in range(3)])
        # The rate of the user, which all its devices share, is used up.
        assert [isinstance(each, bytes) for each in results] == [False, False, True]
        await own.send(other, room.send("somebody else is not concerned"))
        follower = Follower(B)
        outcomes = await hub.services.hub.send_batch([room.send(f"b {number}") for number in range(6)], follower)
        assert [isinstance(each, RateLimited) for each in outcomes] == [False] * 4 + [True] * 2
        with pytest.raises(RateLimited) as limited:
            await own.send(phone, room.send("too soon"))
        assert limited.value.members == {"limit": "device_sends_per_second", "retry_after": 1}
        with pytest.raises(RateLimited):
            await hub.services.hub.send(room.send("b too soon"), follower)
        clock.advance(1)
        await own.send(phone, room.send("a second later"))
        await hub.services.hub.send(room.send("b a second later"), follower)
        assert len(await read(hub, phone, A, room.key)) == 12


async def test_joins_and_fetches_count_against_rates_too(tmp_path: Path) -> None:
    limits = {**RATES, "user_fetches_burst": 1, "user_fetches_per_minute": 60}
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=(), limits=limits) as (hub, _):
        group = SignedGroup(hub, {}, "anna")
        await group.begin()
        request = ExternalJoinRequest(group.room.commit(0)[0], CommitData(Pretended.new_key(), None, None))
        with pytest.raises(MimiError, match="new_member_commit"):
            await hub.services.hub_router.hub(A).join(anna(hub), request)
        with pytest.raises(RateLimited) as limited:
            await hub.services.hub_router.hub(A).join(anna(hub), request)
        assert limited.value.members == {"limit": "device_joins_per_hour", "retry_after": 60}
        hub.services.gate.count_fetch(anna(hub))
        with pytest.raises(RateLimited):
            hub.services.gate.count_fetch(device(hub, "anna", 7))
        hub.services.gate.count_fetch(group.alice)
