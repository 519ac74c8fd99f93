"""Joins and external proposals that are refused: each by its own problem, and nothing is written.

(semantics: joining-from-outside)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from mimids.ds.groups import branches
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.outsiders import Outsiders
from mimids.ds.groups.sequencing import refused_proposals
from mimids.ds.groups.states import States
from mimids.errors import (
    BranchTerminated,
    InvalidMessage,
    Malformed,
    MimiError,
    PartitionExists,
    UnknownGroup,
    WelcomeMismatch,
    WrongEpoch,
)
from mimids.mls import framing
from mimids.mls.code_points import CredentialType, SenderType, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.leaf_node import Credential
from mimids.mls.proposals import Add, ExternalInit, Remove
from mimids.store import partitions
from mimids.values import Follower, Milliseconds
from mimids.wire.ids import MLS10, GroupId, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    ExternalJoinRequest,
    ExternalProposalRequest,
    SendRequest,
    WelcomeData,
)
from tests.support import signing
from tests.support.federation import COMMIT, PROPOSAL, Room
from tests.support.hub import ALICE, A, create, everything, running_hub
from tests.support.mls_makers import replace
from tests.support.welcomes import REF, welcome_to

JOINER, PROPOSER = signing.Client.of(2), signing.Client.of(3)
MEMBER = framing.Sender(SenderType.MEMBER, 0)
NEW_MEMBER = framing.Sender(SenderType.NEW_MEMBER_PROPOSAL, None)
BY_COMMIT = framing.Sender(SenderType.NEW_MEMBER_COMMIT, None)
OTHER_GROUP = GroupId(b"mimi://a.example/g/another")


@attrs.frozen
class Open:
    """A hub with two groups that may be joined: `room`, and another one."""

    hub: LocalHub
    room: signing.Room
    key: PartitionKey
    other_key: PartitionKey

    def words(self) -> Room:
        room = Room()
        room.group_id = self.room.group_id
        return room

    def external_commit(self, **changed: Any) -> MLSMessage:
        message, _ = self.room.commit(JOINER, signing.by_value(ExternalInit(bytes(32))))
        return _changed(message, **changed)

    def external_add(self, **changed: Any) -> MLSMessage:
        message = self.room.propose(NEW_MEMBER, Add(PROPOSER.key_package()), by=PROPOSER.signer)
        return _changed(message, **changed)


def _changed(message: MLSMessage, **changed: Any) -> MLSMessage:
    """Return the message with other fields in its FramedContent; the signature does not cover them."""
    public = message.message
    assert isinstance(public, framing.PublicMessage)
    return signing.public(replace(public, content=replace(public.content, **changed)))


def _data(following: PartitionKey | None = None, **more: Any) -> CommitData:
    return replace(CommitData(following or Room.new_key(), None, None), **more)


JOINS: dict[str, tuple[type[MimiError], Callable[[Open], ExternalJoinRequest]]] = {
    "an encrypted commit": (
        Malformed,
        lambda at: ExternalJoinRequest(at.words().message("a commit", kind=COMMIT), _data()),
    ),
    "a GroupInfo": (
        Malformed,
        lambda at: ExternalJoinRequest(MLSMessage(MLS10, WireFormat.GROUP_INFO, at.room.info()), _data()),
    ),
    "a Welcome": (Malformed, lambda at: ExternalJoinRequest(welcome_to(REF), _data())),
    "a commit of a member": (Malformed, lambda at: ExternalJoinRequest(at.room.commit(0)[0], _data())),
    "a proposal from outside": (Malformed, lambda at: ExternalJoinRequest(at.external_add(), _data())),
    "a proposal of sender new_member_commit": (
        InvalidMessage,
        lambda at: ExternalJoinRequest(at.external_add(sender=BY_COMMIT), _data()),
    ),
    "no ExternalInit": (InvalidMessage, lambda at: ExternalJoinRequest(at.room.commit(JOINER)[0], _data())),
    "an Add beside the ExternalInit": (
        InvalidMessage,
        lambda at: ExternalJoinRequest(
            at.room.commit(
                JOINER, signing.by_value(ExternalInit(bytes(32))), signing.by_value(Add(PROPOSER.key_package()))
            )[0],
            _data(),
        ),
    ),
    "a Welcome with it": (
        WelcomeMismatch,
        lambda at: ExternalJoinRequest(
            at.external_commit(), _data(welcome_data=WelcomeData(welcome_to(REF), (ProviderId(A),)))
        ),
    ),
    "a Welcome for nobody with it": (
        WelcomeMismatch,
        lambda at: ExternalJoinRequest(at.external_commit(), _data(welcome_data=WelcomeData(welcome_to(), ()))),
    ),
    "a group that is unknown": (
        UnknownGroup,
        lambda at: ExternalJoinRequest(at.external_commit(group_id=GroupId(b"nowhere")), _data()),
    ),
    "another group": (
        InvalidMessage,
        lambda at: ExternalJoinRequest(at.external_commit(group_id=OTHER_GROUP), _data()),
    ),
    "an epoch that has no partition": (
        WrongEpoch,
        lambda at: ExternalJoinRequest(at.external_commit(epoch=7), _data()),
    ),
    "a signature that the state does not verify": (
        InvalidMessage,
        lambda at: ExternalJoinRequest(at.external_commit(authenticated_data=b"changed"), _data()),
    ),
    "the key of another group": (
        PartitionExists,
        lambda at: ExternalJoinRequest(at.external_commit(), _data(at.other_key)),
    ),
    "the key of its own partition": (
        PartitionExists,
        lambda at: ExternalJoinRequest(at.external_commit(), _data(at.key)),
    ),
}

PROPOSALS: dict[str, tuple[type[MimiError], Callable[[Open], ExternalProposalRequest]]] = {
    "an encrypted proposal": (
        Malformed,
        lambda at: ExternalProposalRequest(at.words().message("a proposal", kind=PROPOSAL), None),
    ),
    "a GroupInfo": (
        Malformed,
        lambda at: ExternalProposalRequest(MLSMessage(MLS10, WireFormat.GROUP_INFO, at.room.info()), None),
    ),
    "a commit of a member": (Malformed, lambda at: ExternalProposalRequest(at.room.commit(0)[0], None)),
    "an external commit": (Malformed, lambda at: ExternalProposalRequest(at.external_commit(), None)),
    "a proposal of a member": (
        Malformed,
        lambda at: ExternalProposalRequest(at.room.propose(0, Remove(0)), at.key.mask(32)),
    ),
    "a group that is unknown": (
        UnknownGroup,
        lambda at: ExternalProposalRequest(at.external_add(group_id=GroupId(b"nowhere")), None),
    ),
    "a partition of another group": (
        UnknownGroup,
        lambda at: ExternalProposalRequest(at.external_add(), at.other_key.mask(32)),
    ),
    "a partition that is unknown": (
        UnknownGroup,
        lambda at: ExternalProposalRequest(at.external_add(), MaskedPartitionKey(bytes(32))),
    ),
    "another epoch": (WrongEpoch, lambda at: ExternalProposalRequest(at.external_add(epoch=1), None)),
    "another epoch in the named partition": (
        WrongEpoch,
        lambda at: ExternalProposalRequest(at.external_add(epoch=1), at.key.mask(32)),
    ),
}


async def opened(hub: LocalHub) -> Open:
    room = signing.Room.create(signing.Client.of(1))
    other = signing.Room.create(signing.Client.of(4))
    other.group_id = OTHER_GROUP
    return Open(hub, room, await create(hub, room), await create(hub, other))


async def refused(hub: LocalHub, kind: type[MimiError], ask: Callable[[], Awaitable[object]]) -> None:
    """Ask for something that must be refused by exactly this problem, and write nothing."""
    before = await everything(hub)
    with pytest.raises(kind):
        await ask()
    assert await everything(hub) == before


@pytest.mark.parametrize("fault", JOINS)
async def test_a_join_that_is_wrong_is_refused_and_nothing_is_written(fault: str, tmp_path: Path) -> None:
    kind, request = JOINS[fault]
    async with running_hub(tmp_path, group={"external_joins": "open"}) as hub:
        at = await opened(hub)
        await refused(hub, kind, lambda: hub.join(request(at), ALICE))
        answer = await hub.join(ExternalJoinRequest(at.external_commit(), _data()), ALICE)
        assert (answer.counter, answer.partition) == (0, at.key.mask(32))


@pytest.mark.parametrize("fits", [True, False])
async def test_a_join_goes_to_the_state_that_verifies_it_or_else_to_an_unknown_one(fits: bool, tmp_path: Path) -> None:
    async with running_hub(tmp_path, group={"external_joins": "open"}) as hub:
        at = await opened(hub)
        newer = MaskedPartitionKey(bytes(32))

        def forget_the_older_state(tx: Any) -> None:
            older = partitions.partition_by_row(tx, 1)
            row = partitions.add_partition(tx, group=older.group, hub=1, masked_key=newer, epoch=0, now=Milliseconds(1))
            partitions.set_state(tx, row, older.state)
            partitions.set_state(tx, 1, None)

        await hub._store.write(forget_the_older_state)
        commit = at.external_commit() if fits else at.external_commit(authenticated_data=b"changed")
        answer = await hub.join(ExternalJoinRequest(commit, _data()), ALICE)
        assert answer.partition == (newer if fits else at.key.mask(32))


@pytest.mark.parametrize("fault", PROPOSALS)
async def test_an_external_proposal_that_is_wrong_is_refused_and_nothing_is_written(fault: str, tmp_path: Path) -> None:
    kind, request = PROPOSALS[fault]
    async with running_hub(tmp_path, group={"external_joins": "open"}) as hub:
        at = await opened(hub)
        await refused(hub, kind, lambda: hub.propose(request(at), ALICE))
        for number, partition in enumerate((None, at.key.mask(32))):
            answer = await hub.propose(ExternalProposalRequest(at.external_add(), partition), ALICE)
            assert (answer.counter, answer.partition) == (number, at.key.mask(32))


async def test_no_commit_may_cover_a_proposal_from_outside_that_was_refused(tmp_path: Path) -> None:
    async with running_hub(tmp_path, group={"external_joins": "open"}) as hub:
        at = await opened(hub)
        unsigned = replace(PROPOSER.key_package(), signature=bytes(64))
        proposal = at.room.propose(NEW_MEMBER, Add(unsigned), by=PROPOSER.signer)
        with pytest.raises(InvalidMessage):
            await hub.propose(ExternalProposalRequest(proposal, None), ALICE)
        commit, _ = at.room.commit(0, signing.by_reference(signing.ref_of(proposal, at.room.suite)))
        with pytest.raises(InvalidMessage):
            await hub.send(SendRequest(commit, at.key, _data()), ALICE)


async def test_of_refused_proposals_a_bounded_number_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refused_proposals, "REFUSED_PROPOSALS_KEPT", 2)
    async with running_hub(tmp_path) as hub:
        at = await opened(hub)
        wrong = [SendRequest(at.room.propose(0, Remove(leaf)), at.key, None) for leaf in (7, 8, 9)]
        for outcome in await hub.send_batch(wrong, ALICE):
            assert isinstance(outcome, InvalidMessage)
        assert await hub._store.read(lambda tx: tx.all("SELECT count(*) FROM proposals")) == [(2,)]


@pytest.mark.parametrize("ask", ["join", "propose", "propose by name"])
async def test_nothing_from_outside_gets_into_a_terminated_branch(ask: str, tmp_path: Path) -> None:
    async with running_hub(tmp_path, group={"external_joins": "open"}) as hub:
        at = await opened(hub)

        def end(tx: Any) -> None:
            branches.terminate(tx, partitions.partition_by_row(tx, 1), "ended", Milliseconds(1))

        await hub._store.write(end)
        if ask == "join":
            await refused(
                hub, BranchTerminated, lambda: hub.join(ExternalJoinRequest(at.external_commit(), _data()), ALICE)
            )
            return
        named = at.key.mask(32) if ask == "propose by name" else None
        kind = UnknownGroup if named is None else BranchTerminated  # there is no open branch to choose
        request = ExternalProposalRequest(at.external_add(), named)
        await refused(hub, kind, lambda: hub.propose(request, ALICE))


@pytest.mark.parametrize("identity", ["mimi://b.example/u/bob", "MIMI://B.example/u/bob", "mimi://b.example/u/b%6Fb"])
def test_a_provider_passes_on_no_join_of_another_providers_user_in_any_spelling(identity: str) -> None:
    joiner = signing.Client.of(5, credential=Credential(CredentialType.BASIC, identity.encode()))
    room = signing.Room.create(signing.Client.of(1))
    outsiders = Outsiders("followers", States())
    commit, _ = room.commit(joiner, signing.by_value(ExternalInit(bytes(32))))
    for message in (commit, room.propose(NEW_MEMBER, Add(joiner.key_package()), by=joiner.signer)):
        assert outsiders.may_send_for(message, Follower(ProviderId("b.example")))
        assert not outsiders.may_send_for(message, Follower(ProviderId("c.example")))
