"""The Welcome and the GroupInfo of a commit: which are refused, and what a repeat of the commit may bring.

(semantics: welcomes-and-leaving, sequencing)

The file is long because its tests share the rooms and Welcomes that the helpers at its top make.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.groups import branches
from mimids.ds.groups.hub import LocalHub
from mimids.ds.notifier import OUTGOING
from mimids.errors import (
    BranchTerminated,
    CommitDataDiffers,
    GroupExists,
    GroupInfoMismatch,
    MimiError,
    TooLarge,
    WelcomeMismatch,
)
from mimids.mls.code_points import ProposalOrRefType, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.proposals import Add, ExternalInit, Proposal, ProposalOrRef, ProposalRef, Unparsed
from mimids.mls.welcome import Welcome
from mimids.store import partitions, welcomes
from mimids.values import Device, DeviceRow, Follower, Milliseconds
from mimids.wire.ids import MLS10, CipherSuite, KeyPackageRef, PartitionKey, ProviderId, local_user_id
from mimids.wire.messages import (
    CommitData,
    CreateGroupRequest,
    ExternalJoinRequest,
    SendRequest,
    SendResponse,
    WelcomeData,
)
from tests.support import signing
from tests.support.federation import COMMIT, Room
from tests.support.hub import ALICE, A, create, everything, running_hub
from tests.support.mls_makers import replace
from tests.support.welcomes import welcome_to

B, C = ProviderId("b.example"), ProviderId("c.example")
FEDERATION = {"federation": {"allow": [B, C]}}
BOB, CAROL, DAVE = (signing.Client.of(seed) for seed in (2, 3, 4))
LAPTOP = Device(A, local_user_id(A, "alice"), DeviceRow(2), "2")
OTHER_REF = KeyPackageRef(b"of another KeyPackage".ljust(32, b"."))


def new_room() -> signing.Room:
    return signing.Room.create(signing.Client.of(1))


def ref_of(package: KeyPackageIn) -> KeyPackageRef:
    return package.ref(signing.Client.of(1).suite)


def welcome_data(*refs: KeyPackageRef, to: Sequence[ProviderId] = (), mark: bytes = b"info") -> WelcomeData:
    """Return a Welcome for these references; another `mark` makes another Welcome."""
    message = welcome_to(*refs)
    assert isinstance(message.message, Welcome)
    marked = MLSMessage(MLS10, WireFormat.WELCOME, replace(message.message, encrypted_group_info=mark))
    return WelcomeData(marked, tuple(to) or (A,) * len(refs))


def adding(*packages: KeyPackageIn) -> list[ProposalOrRef]:
    return [signing.by_value(Add(package)) for package in packages]


async def waiting(hub: LocalHub) -> list[tuple[str, str, int]]:
    """Return provider, state and octets of references of the outgoing Welcomes, oldest first."""
    return await hub._store.read(
        lambda tx: tx.all(
            "SELECT p.domain, o.state, length(o.refs) / 33 FROM outgoing_welcomes o JOIN providers p"
            " ON p.id = o.provider ORDER BY o.id"
        )
    )


async def settle(hub: LocalHub, state: str) -> None:
    await hub._store.write(lambda tx: tx.execute("UPDATE outgoing_welcomes SET state = ?", (state,)))


async def refused(hub: LocalHub, request: SendRequest, kind: type[MimiError], sender: Any = ALICE) -> MimiError:
    """Send a request that must be refused; check that nothing was written."""
    before = await everything(hub)
    with pytest.raises(kind) as caught:
        await hub.send(request, sender)
    assert await everything(hub) == before
    return caught.value


async def test_only_a_welcome_wakes_the_job_that_sends_welcomes(tmp_path: Path) -> None:
    room, package = new_room(), BOB.key_package()
    async with running_hub(tmp_path) as hub:
        key = await create(hub, room)
        message, _ = room.commit(0, *adding(package))
        data = CommitData(Room.new_key(), None, None)
        with hub._notifier.listen(OUTGOING) as waiter:
            await hub.send(SendRequest(message, key, data), ALICE)
            assert not waiter.heard
            welcome = welcome_data(ref_of(package))
            await hub.send(SendRequest(message, key, replace(data, welcome_data=welcome)), ALICE)
            assert waiter.heard == {OUTGOING}


# --- Welcomes that cannot fit ---------------------------------------------------------------------------------


def garbled(data: WelcomeData) -> dict[str, WelcomeData]:
    welcome = data.welcome.message
    assert isinstance(welcome, Welcome)
    suite = MLSMessage(MLS10, WireFormat.WELCOME, replace(welcome, cipher_suite=CipherSuite(2)))
    return {
        "not a Welcome": replace(data, welcome=Room().message("no Welcome")),
        "another suite": replace(data, welcome=suite),
        "a provider too few": replace(data, service_providers=data.service_providers[1:]),
        "a provider too many": replace(data, service_providers=(*data.service_providers, A)),
    }


@pytest.mark.parametrize("fault", ["not a Welcome", "another suite", "a provider too few", "a provider too many"])
@pytest.mark.parametrize("way", ["public commit", "encrypted commit", "creation", "repeat", "repeated creation"])
async def test_a_welcome_of_wrong_form_is_a_mismatch_and_nothing_is_written(
    way: str, fault: str, tmp_path: Path
) -> None:
    room, words, package = new_room(), Room(), BOB.key_package()
    data = garbled(welcome_data(ref_of(package)))[fault]
    async with running_hub(tmp_path, **FEDERATION) as hub:
        key = await create(hub, room)
        message, _ = room.commit(0, *adding(package))
        if way == "encrypted commit":
            words.group_id = room.group_id
            message = words.message("a commit", kind=COMMIT)
        request = SendRequest(message, key, CommitData(Room.new_key(), None, data))
        creation = replace(Room("another").creation(), welcome_data=data)
        if way == "repeat":
            await hub.send(SendRequest(message, key, replace(request.commit_data, welcome_data=None)), ALICE)
        if way == "repeated creation":
            await hub.create_group(replace(creation, welcome_data=None), ALICE)
        if "creation" not in way:
            await refused(hub, request, WelcomeMismatch)
            return
        before = await everything(hub)
        with pytest.raises(WelcomeMismatch):
            await hub.create_group(creation, ALICE)
        assert await everything(hub) == before


@pytest.mark.parametrize("added", [(), (BOB,), (BOB, CAROL)], ids=["nobody", "bob", "two"])
@pytest.mark.parametrize("by", ["value", "reference"])
async def test_a_welcome_for_a_key_package_that_the_commit_does_not_add_is_a_mismatch(
    by: str, added: tuple[signing.Client, ...], tmp_path: Path
) -> None:
    room, packages = new_room(), [each.key_package() for each in added]
    stranger = ref_of(DAVE.key_package())
    async with running_hub(tmp_path) as hub:
        key = await create(hub, room)
        items = adding(*packages)
        if by == "reference":
            proposals = [room.propose(0, Add(package)) for package in packages]
            for proposal in proposals:
                await hub.send(SendRequest(proposal, key, None), ALICE)
            items = [signing.by_reference(signing.ref_of(each, room.suite)) for each in proposals]
        message, _ = room.commit(0, *items)
        refs = [ref_of(package) for package in packages]
        data = CommitData(Room.new_key(), None, welcome_data(*refs, stranger))
        error = await refused(hub, SendRequest(message, key, data), WelcomeMismatch)
        assert error.members["secret"] == len(refs)
        await hub.send(SendRequest(message, key, replace(data, welcome_data=welcome_data(*refs))), ALICE)
        assert await waiting(hub) == [(A, "due", len(refs))][: len(refs)]


async def test_a_welcome_of_another_commit_is_a_mismatch_also_in_a_batch(tmp_path: Path) -> None:
    room, bob, carol = new_room(), BOB.key_package(), CAROL.key_package()
    async with running_hub(tmp_path) as hub:
        key = await create(hub, room)
        first, _ = room.commit(0, *adding(bob))
        second, _ = room.commit(0, *adding(carol))
        batch = [
            SendRequest(first, key, CommitData(Room.new_key(), None, welcome_data(ref_of(carol)))),
            SendRequest(second, key, CommitData(Room.new_key(), None, welcome_data(ref_of(carol)))),
        ]
        wrong, right = await hub.send_batch(batch, ALICE)
        assert isinstance(wrong, WelcomeMismatch)
        assert isinstance(right, SendResponse)
        assert await waiting(hub) == [(A, "due", 1)]


def unseen(room: signing.Room) -> list[ProposalOrRef]:
    return [signing.by_reference(ProposalRef(bytes(32)))]


def unknown_type(room: signing.Room) -> list[ProposalOrRef]:
    return [signing.by_value(b"of an unknown type")]


def unknown_layout(room: signing.Room) -> list[ProposalOrRef]:
    unknown = signing.proposal(b"").proposal_type
    return [ProposalOrRef(ProposalOrRefType.PROPOSAL, Proposal(unknown, Unparsed(b"\xff\xff")))]


@pytest.mark.parametrize("covered", [unseen, unknown_type, unknown_layout])
async def test_where_the_adds_are_not_certain_no_welcome_is_a_mismatch(
    covered: Callable[[signing.Room], list[ProposalOrRef]], tmp_path: Path
) -> None:
    room, bob = new_room(), BOB.key_package()
    async with running_hub(tmp_path) as hub:
        key = await create(hub, room)
        message, _ = room.commit(0, *adding(bob), *covered(room))
        data = CommitData(Room.new_key(), None, welcome_data(ref_of(bob), OTHER_REF))
        await hub.send(SendRequest(message, key, data), ALICE)
        assert await waiting(hub) == [(A, "due", 2)]


async def test_a_welcome_of_an_encrypted_commit_is_never_a_mismatch(tmp_path: Path) -> None:
    room = Room()
    async with running_hub(tmp_path) as hub:
        await hub.create_group(room.creation(), ALICE)
        data = CommitData(room.new_key(), None, welcome_data(OTHER_REF))
        await hub.send(SendRequest(room.message("a commit", kind=COMMIT), room.key, data), ALICE)
        assert await waiting(hub) == [(A, "due", 1)]


async def test_a_provider_that_the_credential_does_not_name_is_no_mismatch(tmp_path: Path) -> None:
    room, bob = new_room(), BOB.key_package()  # at a.example, by the credential
    async with running_hub(tmp_path, **FEDERATION) as hub:
        key = await create(hub, room)
        message, _ = room.commit(0, *adding(bob))
        data = CommitData(Room.new_key(), None, welcome_data(ref_of(bob), to=[C]))
        await hub.send(SendRequest(message, key, data), ALICE)
        assert await waiting(hub) == [(C, "due", 1)]


@pytest.mark.parametrize("way", ["join", "send"])
async def test_an_external_commit_with_a_welcome_is_a_mismatch(way: str, tmp_path: Path) -> None:
    room = new_room()
    async with running_hub(tmp_path) as hub:
        key = await create(hub, room)
        message, _ = room.commit(DAVE, signing.by_value(ExternalInit(bytes(32))))
        data = CommitData(Room.new_key(), None, welcome_data(ref_of(BOB.key_package())))
        if way == "send":
            await refused(hub, SendRequest(message, key, data), WelcomeMismatch)
        else:
            before = await everything(hub)
            with pytest.raises(WelcomeMismatch):
                await hub.join(ExternalJoinRequest(message, data), ALICE)
            assert await everything(hub) == before


# --- repeats ---------------------------------------------------------------------------------------------------


class Invitation:
    """A public commit that adds Bob and Carol, and what may come with it."""

    def __init__(self, key: PartitionKey, room: signing.Room) -> None:
        self.bob, self.carol = ref_of(bob := BOB.key_package()), ref_of(carol := CAROL.key_package())
        self.message, after = room.commit(0, *adding(bob, carol))
        self.info = MLSMessage(MLS10, WireFormat.GROUP_INFO, after.info())
        self.key, self.following = key, Room.new_key()
        self.after = after

    def request(self, welcome: WelcomeData | None = None, info: MLSMessage | None = None) -> SendRequest:
        return SendRequest(self.message, self.key, CommitData(self.following, info, welcome))


async def invite(hub: LocalHub) -> Invitation:
    room = new_room()
    return Invitation(await create(hub, room), room)


async def test_a_repeat_with_other_commit_data_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    async with running_hub(tmp_path, **FEDERATION) as hub:
        it = await invite(hub)
        both = welcome_data(it.bob, it.carol, to=[A, B])
        first = await hub.send(it.request(both, it.info), ALICE)
        other_info = MLSMessage(MLS10, WireFormat.GROUP_INFO, it.after.info(tree=False))
        for welcome, info in (
            (welcome_data(it.bob, it.carol, to=[A, B], mark=b"other"), it.info),
            (welcome_data(it.carol, mark=b"other"), None),
            (welcome_data(it.bob, it.carol, to=[B, A]), it.info),  # both wait to be sent
            (both, other_info),
        ):
            await refused(hub, it.request(welcome, info), CommitDataDiffers)
        other_key = SendRequest(it.message, it.key, CommitData(Room.new_key(), it.info, both))
        await refused(hub, other_key, CommitDataDiffers)
        before = await everything(hub)
        for again in (it.request(both, it.info), it.request(None, it.info), it.request(both), it.request()):
            assert await hub.send(again, ALICE) == first
        assert await everything(hub) == before


@pytest.mark.parametrize("state", ["held", "due", "offered", "delivered"])
async def test_another_welcome_is_refused_while_the_first_is_in_force(state: str, tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        it = await invite(hub)
        await hub.send(it.request(welcome_data(it.bob)), ALICE)
        await settle(hub, state)
        await refused(hub, it.request(welcome_data(it.bob, mark=b"other")), CommitDataDiffers)


@pytest.mark.parametrize("state", ["refused", "expired", "cancelled"])
@pytest.mark.parametrize("mark", [b"info", b"other"])
async def test_a_welcome_that_was_not_delivered_is_sent_again_without_a_new_commit(
    mark: bytes, state: str, tmp_path: Path
) -> None:
    async with running_hub(tmp_path, **FEDERATION) as hub:
        it = await invite(hub)
        first = await hub.send(it.request(welcome_data(it.bob, it.carol, to=[B, C])), ALICE)
        await settle(hub, state)
        again = welcome_data(it.bob, it.carol, to=[C, B], mark=mark)  # they were swapped
        for _ in range(2):
            assert await hub.send(it.request(again), ALICE) == first
            assert sorted(await waiting(hub)) == [(B, "due", 1), (C, "due", 1)]


async def test_of_a_welcome_that_was_delivered_in_part_the_rest_is_sent_again(tmp_path: Path) -> None:
    async with running_hub(tmp_path, **FEDERATION) as hub:
        it = await invite(hub)
        await hub.send(it.request(welcome_data(it.bob, it.carol, to=[A, B])), ALICE)
        await settle(hub, "delivered")
        await hub._store.write(
            lambda tx: tx.execute("UPDATE outgoing_welcomes SET state = 'refused' WHERE provider > 1")
        )
        await hub.send(it.request(welcome_data(it.bob, it.carol, to=[A, C])), ALICE)
        assert await waiting(hub) == [(A, "delivered", 1), (C, "due", 1)]


@pytest.mark.parametrize("sender", [ALICE, Follower(C)], ids=["a device", "a provider"])
async def test_a_repeat_supplies_the_welcome_that_was_missing(sender: Any, tmp_path: Path) -> None:
    async with running_hub(tmp_path, **FEDERATION) as hub:
        it = await invite(hub)
        first = await hub.send(it.request(), sender)
        assert await waiting(hub) == []
        for welcome, then in (
            (welcome_data(it.bob), [(A, "due", 1)]),  # for one of two Adds
            (welcome_data(it.carol, to=[B], mark=b"other"), [(A, "due", 1), (B, "due", 1)]),
        ):
            assert await hub.send(it.request(welcome), sender) == first
            assert await waiting(hub) == then
        await refused(hub, it.request(welcome_data(OTHER_REF)), WelcomeMismatch, sender)


async def test_a_repeat_in_the_same_batch_supplies_what_was_missing(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        it = await invite(hub)
        batch = [it.request(), it.request(welcome_data(it.bob), it.info), it.request(welcome_data(it.bob, mark=b"x"))]
        first, second, third = await hub.send_batch(batch, ALICE)
        assert first == second
        assert isinstance(third, CommitDataDiffers)
        assert await waiting(hub) == [(A, "due", 1)]
        stored = await hub._store.read(lambda tx: partitions.group_info_of(tx, 2))
        assert stored == it.info.encoded


async def test_a_repeat_supplies_the_welcome_of_an_encrypted_commit(tmp_path: Path) -> None:
    room = Room()
    async with running_hub(tmp_path) as hub:
        await hub.create_group(room.creation(), ALICE)
        message, following = room.message("a commit", kind=COMMIT), room.new_key()
        for welcome in (None, welcome_data(OTHER_REF), welcome_data(KeyPackageRef(bytes(32)), mark=b"other")):
            await hub.send(SendRequest(message, room.key, CommitData(following, None, welcome)), ALICE)
        assert await waiting(hub) == [(A, "due", 1)] * 2


@pytest.mark.parametrize("used", [False, True])
async def test_a_welcome_supplied_for_a_later_commit_is_held_like_one_that_came_with_it(
    used: bool, tmp_path: Path
) -> None:
    room = Room()
    async with running_hub(tmp_path) as hub:
        await hub.create_group(room.creation(), ALICE)
        await hub.send(room.commit("the first", room.new_key()), ALICE)
        later = room.commit("the second", following := room.new_key())
        await hub.send(later, ALICE)
        if used:
            await hub.send(room.send("used", following, epoch=0), ALICE)
        data = CommitData(following, None, welcome_data(OTHER_REF))
        await hub.send(replace(later, commit_data=data), ALICE)
        assert await waiting(hub) == [(A, "due" if used else "held", 1)]
        if not used:
            await hub.send(room.send("used now", following, epoch=0), ALICE)
            assert await waiting(hub) == [(A, "due", 1)]


async def test_a_repeat_supplies_the_group_info_that_was_missing(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        it = await invite(hub)
        first = await hub.send(it.request(), ALICE)
        other = MLSMessage(MLS10, WireFormat.GROUP_INFO, new_room().info())
        await refused(hub, it.request(info=other), GroupInfoMismatch)
        assert await hub.send(it.request(info=it.info), ALICE) == first
        found = await hub._store.read(
            lambda tx: tx.all("SELECT group_info FROM partitions UNION ALL SELECT group_info FROM messages")
        )
        assert [row[0] for row in found][1:] == [it.info.encoded] * 2
        await refused(hub, it.request(info=other), CommitDataDiffers)


async def test_a_group_info_supplied_after_an_encrypted_commit_makes_the_state_known(tmp_path: Path) -> None:
    room, words = new_room(), Room()
    words.group_id = room.group_id
    async with running_hub(tmp_path) as hub:
        key, following = await create(hub, room), Room.new_key()
        message = words.message("a commit", kind=COMMIT)
        _, after = room.commit(0)
        info = MLSMessage(MLS10, WireFormat.GROUP_INFO, after.info())
        await hub.send(SendRequest(message, key, CommitData(following, None, None)), ALICE)
        await hub.send(SendRequest(message, key, CommitData(following, info, None)), ALICE)
        states = await hub._store.read(lambda tx: tx.all("SELECT knowledge FROM partitions ORDER BY id"))
        assert states == [("derived",), ("claimed",)]


@pytest.mark.parametrize("committer", [ALICE, Follower(C)], ids=["of a device", "of a provider"])
@pytest.mark.parametrize("sender", [LAPTOP, Follower(B)], ids=["another device", "another provider"])
async def test_only_the_sender_of_a_commit_supplies_what_it_lacked(committer: Any, sender: Any, tmp_path: Path) -> None:
    async with running_hub(tmp_path, **FEDERATION) as hub:
        it = await invite(hub)
        first = await hub.send(it.request(), committer)
        assert await hub.send(it.request(), sender) == first
        await refused(hub, it.request(welcome_data(it.bob)), CommitDataDiffers, sender)
        await refused(hub, it.request(info=it.info), CommitDataDiffers, sender)
        await hub.send(it.request(welcome_data(it.bob), it.info), committer)
        assert await hub.send(it.request(welcome_data(it.bob), it.info), sender) == first


async def test_what_is_supplied_has_the_limits_of_what_comes_with_a_commit(tmp_path: Path) -> None:
    async with running_hub(tmp_path, limits={"welcome_bytes": 1000, "group_info_bytes": 5000}) as hub:
        it = await invite(hub)
        await hub.send(it.request(), ALICE)
        await refused(hub, it.request(welcome_data(it.bob, mark=bytes(1000))), TooLarge)


async def test_no_welcome_is_supplied_for_a_terminated_branch(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        it = await invite(hub)
        first = await hub.send(it.request(welcome_data(it.bob)), ALICE)

        def end(tx: Any) -> None:
            branches.terminate(tx, partitions.partition_by_row(tx, 2), "ended", Milliseconds(1))

        await hub._store.write(end)
        await refused(hub, it.request(welcome_data(it.carol, mark=b"other")), BranchTerminated)
        assert await hub.send(it.request(welcome_data(it.bob), it.info), ALICE) == first
        assert await waiting(hub) == [(A, "cancelled", 1)]


async def test_a_repeat_after_retention_gets_its_first_answer(tmp_path: Path) -> None:
    """Retention deletes bodies and GroupInfos; the repeat does not bring them back."""
    async with running_hub(tmp_path) as hub:
        it = await invite(hub)
        first = await hub.send(it.request(info=it.info), ALICE)
        await hub._store.write(lambda tx: tx.execute("UPDATE messages SET body = NULL, group_info = NULL"))
        before = await everything(hub)
        assert await hub.send(it.request(info=it.info), ALICE) == first
        assert await everything(hub) == before


async def test_references_of_the_welcomes_of_one_commit_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mimids.ds.groups import welcome_rows

    monkeypatch.setattr(welcome_rows, "SECRETS", 3)
    room = Room()
    async with running_hub(tmp_path) as hub:
        await hub.create_group(room.creation(), ALICE)
        message, following = room.message("a commit", kind=COMMIT), room.new_key()
        codes = []
        for n in range(5):
            data = CommitData(following, None, welcome_data(KeyPackageRef(bytes([n]) * 32), mark=b"%d" % n))
            (answer,) = await hub.send_batch([SendRequest(message, room.key, data)], ALICE)
            codes.append(answer.code if isinstance(answer, MimiError) else None)
        assert codes == [None, None, None, "too-many", "too-many"]
        assert len(await waiting(hub)) == 3


async def test_the_welcome_of_a_creation_is_supplied_and_sent_again_by_a_repeat(tmp_path: Path) -> None:
    creation = Room().creation()
    async with running_hub(tmp_path, **FEDERATION) as hub:
        await hub.create_group(creation, ALICE)
        await hub.create_group(replace(creation, welcome_data=welcome_data(OTHER_REF, to=[B])), ALICE)
        assert await waiting(hub) == [(B, "due", 1)]
        for changed, sender in (
            ({"welcome_data": welcome_data(OTHER_REF, to=[C])}, ALICE),
            ({"welcome_data": welcome_data(OTHER_REF, to=[B], mark=b"other")}, ALICE),
            ({"partition_key": PartitionKey(secrets.token_bytes(16))}, ALICE),
            ({"cipher_suite": CipherSuite(3)}, ALICE),
            ({"group_info": MLSMessage(MLS10, WireFormat.GROUP_INFO, new_room().info())}, ALICE),
            ({"welcome_data": welcome_data(OTHER_REF, KeyPackageRef(bytes(32)), to=[B, B])}, LAPTOP),
        ):
            before = await everything(hub)
            repeat: CreateGroupRequest = replace(creation, **{"welcome_data": welcome_data(OTHER_REF), **changed})
            with pytest.raises((GroupExists, GroupInfoMismatch)):
                await hub.create_group(repeat, sender)
            assert await everything(hub) == before
        await settle(hub, "refused")
        await hub.create_group(replace(creation, welcome_data=welcome_data(OTHER_REF, to=[C])), ALICE)
        assert await waiting(hub) == [(C, "due", 1)]


async def test_a_held_welcome_that_the_quota_dropped_is_supplied_again(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        it = await invite(hub)
        await hub.send(it.request(welcome_data(it.bob)), ALICE)
        await settle(hub, "held")
        await hub._store.write(lambda tx: welcomes.drop_held(tx, 2))
        assert await waiting(hub) == []
        await hub.send(it.request(welcome_data(it.bob)), ALICE)
        assert await waiting(hub) == [(A, "due", 1)]
