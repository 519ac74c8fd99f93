from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from mimids.mls.code_points import ContentType, LeafNodeSource, ProposalType, PskType, SenderType, WireFormat
from mimids.mls.framing import MLSMessage, PrivateMessage, Sender
from mimids.mls.knowledge import (
    Claimed,
    Derived,
    Judgement,
    Knowledge,
    NotKnown,
    begin,
    epoch_of,
    judge,
    next_knowledge,
    refuse,
    state_of,
    with_group_info,
)
from mimids.mls.opening import open_group
from mimids.mls.proposals import (
    Add,
    ExternalInit,
    PreSharedKey,
    PreSharedKeyId,
    Proposal,
    Remove,
    SelfRemove,
    Unparsed,
    UpdatePath,
)
from mimids.mls.public_group import Valid
from mimids.mls.rules import verdict
from mimids.mls.rules.verdict import Invalid, Missing, RuleError, Unknown
from mimids.wire.ids import MLS10, GroupId
from tests.support.mls_makers import replace
from tests.support.signing import GROUP, Client, Room, by_reference, by_value, crowd, proposal, ref_of


def encrypted(room: Room, kind: ContentType = ContentType.COMMIT) -> MLSMessage:
    message = PrivateMessage(room.group_id, room.epoch, kind, b"", bytes(28), bytes(200))
    return MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, message)


def derived(room: Room) -> Knowledge:
    return begin(room.info(), group_id=GROUP, suite=room.suite)


def claimed(room: Room) -> Knowledge:
    return Claimed(open_group(room.info()))


def not_known(room: Room) -> NotKnown:
    return NotKnown(room.epoch, GROUP, room.suite)


def went(knowledge: Knowledge, message: MLSMessage, *info: Any) -> Knowledge:
    judgement = judge(knowledge, message)
    assert not isinstance(judgement.verdict, Invalid), judgement.verdict
    return next_knowledge(judgement, message, *info)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(RuleError) as caught:
        call(*arguments)
    return caught.value.invalid.rule.name


def test_a_group_begins_with_derived_or_unknown_state() -> None:
    room = Room.create(Client.of(1))
    assert isinstance(begin(room.info(), group_id=GROUP, suite=room.suite), Derived)
    without = begin(room.info(tree=False), room.tree.encode(), group_id=GROUP, suite=room.suite)
    assert isinstance(without, Derived)
    assert begin(None, group_id=GROUP, suite=room.suite) == NotKnown(None, GROUP, room.suite)
    assert refused(lambda: begin(room.info(), group_id=b"other", suite=room.suite)) == "group-info-contradicts"


@pytest.mark.parametrize("kind", [Derived, Claimed])
def test_public_commits_keep_what_is_known(kind: Any) -> None:
    room = crowd(4)
    knowledge: Knowledge = kind(open_group(room.info()))
    for committer in (1, 2, 0):
        message, room = room.commit(committer)
        knowledge = went(knowledge, message, *([room.info()] if committer else []))
        assert isinstance(knowledge, kind)
        group = state_of(knowledge)
        assert group is not None
        assert group.context == room.context()


@pytest.mark.parametrize("known", [derived, claimed, not_known])
def test_after_an_encrypted_commit_only_the_epoch_is_known(known: Any) -> None:
    room = crowd(4)
    following = went(known(room), encrypted(room))
    assert following == NotKnown(room.epoch + 1, GROUP, room.suite)
    assert epoch_of(following) == room.epoch + 1


@pytest.mark.parametrize("known", [derived, claimed, not_known])
def test_a_group_info_with_an_encrypted_commit_gives_claimed_state(known: Any) -> None:
    room = crowd(4)
    _, after = room.commit(1)  # what the encrypted commit did
    following = went(known(room), encrypted(room), after.info())
    assert isinstance(following, Claimed)
    message, later = after.commit(2)
    group = state_of(went(following, message))
    assert group is not None
    assert group.context == later.context()


def test_a_group_info_with_an_encrypted_commit_needs_its_tree() -> None:
    room = crowd(4)
    _, after = room.commit(1)
    judgement = judge(derived(room), encrypted(room))
    assert refused(next_knowledge, judgement, encrypted(room), after.info(tree=False)) == "ratchet-tree-needed"
    aside = next_knowledge(judgement, encrypted(room), after.info(tree=False), after.tree.encode())
    assert isinstance(aside, Claimed)
    _, same_tree = room.commit(1, by_value(Add(Client.of(20).key_package())), path=False)
    same_tree.tree = room.tree  # as after a commit without path that changes no leaf: the tree is inferred
    assert isinstance(next_knowledge(judgement, encrypted(room), same_tree.info(tree=False)), Claimed)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"epoch": 7}, "group-info-contradicts"),
        ({"group_id": GroupId(b"other")}, "group-info-contradicts"),
        ({"confirmed": bytes(31)}, "group-info-length"),
        ({"tag": b""}, "group-info-length"),
    ],
)
def test_an_invalid_claim_is_refused(changed: dict[str, Any], rule: str) -> None:
    room = crowd(4)
    _, after = room.commit(1)
    for name, value in changed.items():
        setattr(after, name, value)
    for known in (derived, claimed, not_known):
        assert refused(next_knowledge, judge(known(room), encrypted(room)), encrypted(room), after.info()) == rule
    unsigned = replace(after.info(), signature=bytes(64))
    assert refused(next_knowledge, judge(derived(room), encrypted(room)), encrypted(room), unsigned)


def test_an_unseen_covered_proposal_leads_to_unknown_state() -> None:
    room = crowd(4)
    hidden = room.propose(1, Remove(2))  # it was sent as a PrivateMessage, so it was not seen
    seen = judge(derived(room), encrypted(room, ContentType.PROPOSAL))
    assert seen.verdict == Valid()
    message, after = room.commit(0, by_reference(ref_of(hidden, room.suite)))
    judgement = judge(seen.knowledge, message)
    assert judgement.verdict == Unknown((Missing(verdict.PROPOSAL, ref_of(hidden, room.suite).hex()),))
    assert next_knowledge(judgement, message) == NotKnown(room.epoch + 1, GROUP, room.suite)
    assert isinstance(next_knowledge(judgement, message, after.info()), Claimed)


def test_a_claim_must_match_the_commit_it_came_with() -> None:
    room = crowd(4)
    hidden = room.propose(1, Remove(2))
    message, after = room.commit(0, by_reference(ref_of(hidden, room.suite)))
    for known in (derived, claimed, not_known):
        judgement = judge(known(room), message)
        assert refused(next_knowledge, judgement, message, after.info(confirmation_tag=bytes(32))) == "group-info-tag"
    after.confirmed = bytes(32)  # the transcript hash does not depend on the effect of the proposals
    judgement = judge(derived(room), message)
    assert refused(next_knowledge, judgement, message, after.info()) == "group-info-contradicts"
    assert isinstance(next_knowledge(judge(claimed(room), message), message, after.info()), NotKnown)


def test_a_group_info_that_contradicts_derived_state_is_refused() -> None:
    room = crowd(4)
    message, after = room.commit(1)
    _, sibling = room.commit(2, tag=after.tag)
    judgement = judge(derived(room), message)
    assert refused(next_knowledge, judgement, message, sibling.info()) == "group-info-contradicts"
    assert refused(next_knowledge, judgement, message, replace(after.info(), signature=b"")) == "group-info-signature"
    assert isinstance(next_knowledge(judgement, message, after.info(tree=False)), Derived)


def test_a_group_info_that_contradicts_a_claim_refuses_nothing() -> None:
    room = crowd(4)
    message, after = room.commit(1)
    _, sibling = room.commit(2, tag=after.tag)
    assert went(claimed(room), message, sibling.info()) == NotKnown(after.epoch, GROUP, room.suite)
    assert isinstance(went(claimed(room), message, after.info()), Claimed)
    wrong = replace(sibling.info(), signature=bytes(64))
    assert refused(next_knowledge, judge(claimed(room), message), message, wrong) == "group-info-signature"


def test_a_message_that_contradicts_a_claim_refuses_nothing() -> None:
    room = crowd(4)
    _, other = room.commit(1)
    _, real = room.commit(2)
    message, _ = real.commit(3)
    judgement = judge(claimed(other), message)
    assert judgement.verdict == Unknown((Missing(verdict.STATE),))
    assert judgement.knowledge == NotKnown(other.epoch, GROUP, room.suite)
    assert judgement.contradicted is not None
    assert judgement.contradicted.rule is verdict.SIGNATURE
    found = judge(derived(other), message)
    assert isinstance(found.verdict, Invalid)
    assert isinstance(found.knowledge, Derived)


def joins_twice(room: Room) -> MLSMessage:
    init = by_value(ExternalInit(bytes(32)))
    return room.commit(Client.of(30), init, init)[0]


def newcomer_by_another(room: Room) -> MLSMessage:
    sender = Sender(SenderType.NEW_MEMBER_PROPOSAL, None)
    return room.propose(sender, Add(Client.of(30).key_package()), by=Client.of(31).signer)


def of_another_group(room: Room) -> MLSMessage:
    room.group_id = GroupId(b"other")
    return room.commit(1)[0]


def with_unsigned_leaf(path: UpdatePath) -> UpdatePath:
    return replace(path, leaf_node=replace(path.leaf_node, signature=bytes(64)))


FIRM: dict[str, Callable[[Room], MLSMessage]] = {
    "wrong-epoch": lambda room: room.commit(1)[1].commit(1)[0],
    "wrong-group": of_another_group,
    "external-commit-init": joins_twice,
    "signature": newcomer_by_another,
    "self-remove-by-value": lambda room: room.commit(0, by_value(SelfRemove()))[0],
    "path-missing": lambda room: room.commit(0, path=False)[0],
    "own-remove": lambda room: room.commit(1, by_value(Remove(1)))[0],
    "key-package": lambda room: room.propose(1, Add(replace(Client.of(30).key_package(), signature=bytes(64)))),
    "confirmation-tag-length": lambda room: room.commit(1, tag=b"")[0],
    "leaf-signature": lambda room: room.commit(1, change_path=with_unsigned_leaf)[0],
    "leaf-source": lambda room: room.commit(1, change_leaf={"leaf_node_source": LeafNodeSource.UPDATE, "origin": None})[
        0
    ],
    "key-package-group": lambda room: room.propose(1, Add(Client.of(30, suite=3).key_package())),
    "psk-nonce": lambda room: room.propose(1, PreSharedKey(PreSharedKeyId(PskType.EXTERNAL, b"psk", b"short"))),
    "kem-output": lambda room: room.commit(Client.of(30), by_value(ExternalInit(b"short")))[0],
}


@pytest.mark.parametrize("rule", FIRM)
@pytest.mark.parametrize("known", [derived, claimed, not_known])
def test_rules_for_any_state_refuse_in_every_state(known: Any, rule: str) -> None:
    room = crowd(4)
    knowledge = known(room)
    found = judge(knowledge, FIRM[rule](room))
    assert isinstance(found.verdict, Invalid)
    assert found.verdict.rule.name == rule
    assert type(found.knowledge) is type(knowledge)


@pytest.mark.parametrize("known", [derived, claimed, not_known])
def test_a_refused_proposal_is_stored_in_every_state(known: Any) -> None:
    room = crowd(4)
    bad = room.propose(1, Add(replace(Client.of(30).key_package(), signature=bytes(64))))
    by_policy = room.propose(1, Remove(2))
    knowledge = judge(known(room), bad).knowledge
    knowledge = refuse(knowledge, by_policy, Invalid(verdict.Rule("banned", "x", "x"), "x", "x"))
    for refused_one, rule in ((bad, "key-package"), (by_policy, "banned")):
        found = judge(knowledge, room.commit(0, by_reference(ref_of(refused_one, room.suite)))[0])
        assert isinstance(found.verdict, Invalid)
        assert found.verdict.rule.name == rule


def test_pending_proposals_are_kept_with_the_state() -> None:
    room = crowd(4)
    knowledge = derived(room)
    message = room.propose(1, Remove(2))
    judgement = judge(knowledge, message)
    assert judgement == Judgement(Valid(ref=ref_of(message, room.suite)), judgement.knowledge)
    commit, after = room.commit(0, by_reference(ref_of(message, room.suite)))
    group = state_of(went(judgement.knowledge, commit))
    assert group is not None
    assert group.context == after.context()
    assert state_of(knowledge).pending == {}  # type: ignore[union-attr]


def test_a_group_info_gives_a_detached_partition_a_claimed_state() -> None:
    room = crowd(4)
    nothing = NotKnown()
    assert judge(nothing, room.commit(1)[0]).verdict == Unknown((Missing(verdict.STATE),))
    assert isinstance(with_group_info(nothing, room.info()), Claimed)
    assert isinstance(with_group_info(NotKnown(room.epoch, GROUP), room.info()), Claimed)
    assert refused(with_group_info, NotKnown(9, GROUP), room.info()) == "group-info-contradicts"
    assert refused(with_group_info, NotKnown(None, b"other"), room.info()) == "group-info-contradicts"


def test_a_claim_has_the_epoch_after_its_commit_also_where_no_epoch_is_known() -> None:
    """In a detached partition, a GroupInfo far ahead would otherwise refuse the right messages of the next one."""
    room = crowd(4)
    message, after = room.commit(1)
    sealed = encrypted(room)
    for sent in (message, sealed):
        for known in (NotKnown(), NotKnown(None, GROUP, room.suite), not_known(room)):
            assert isinstance(next_knowledge(judge(known, sent), sent, after.info()), Claimed)
            later = attrs.evolve(after, epoch=after.epoch + 8)
            info = later.info(confirmation_tag=after.tag)
            assert refused(next_knowledge, judge(known, sent), sent, info) == "group-info-contradicts"


def test_a_claimed_epoch_refuses_no_message_of_another() -> None:
    room = crowd(4)
    claim = with_group_info(NotKnown(None, GROUP, room.suite), room.info())
    assert epoch_of(claim) is None
    for other in (room.commit(1)[1].commit(2)[0], encrypted(attrs.evolve(room, epoch=17), ContentType.APPLICATION)):
        judgement = judge(claim, other)
        assert not isinstance(judgement.verdict, Invalid)
        assert judgement.knowledge == NotKnown(None, GROUP, room.suite)
        assert judgement.contradicted is not None
        assert judgement.contradicted.rule is verdict.WRONG_EPOCH
    message, after = room.commit(1)
    following = went(claim, message, after.info())
    assert isinstance(following, Claimed)
    assert epoch_of(following) is None


def test_a_claim_is_of_the_groups_suite_and_has_the_states_tag() -> None:
    room = crowd(4)
    other = crowd(4, suite=3)
    other.epoch = room.epoch
    assert refused(with_group_info, not_known(room), other.info()) == "group-info-contradicts"
    assert refused(with_group_info, derived(room), room.info(confirmation_tag=bytes(31) + b"x")) == "group-info-tag"
    assert with_group_info(claimed(room), room.info(confirmation_tag=bytes(31) + b"x")) == not_known(room)
    assert isinstance(with_group_info(claimed(room), room.info()), Claimed)


def left_as_mls_rs_does(room: Room) -> tuple[MLSMessage, MLSMessage, Room]:
    """Return a SelfRemove as mls-rs sends it, the commit that covers it, and the room after it."""
    leaving = room.propose(3, Proposal(ProposalType(0xF003), Unparsed(b"")))
    room.sent[ref_of(leaving, room.suite)] = (proposal(SelfRemove()), Sender(SenderType.MEMBER, 3))
    commit, after = room.commit(1, by_reference(ref_of(leaving, room.suite)))
    return leaving, commit, after


@pytest.mark.parametrize("kind", [Derived, Claimed])
def test_the_tree_after_an_unknown_proposal_is_inferred_where_it_fits_the_group_info(kind: Any) -> None:
    room = crowd(5)
    leaving, commit, after = left_as_mls_rs_does(room)
    knowledge = judge(kind(open_group(room.info())), leaving).knowledge
    judgement = judge(knowledge, commit)
    assert judgement.verdict == Unknown((Missing(verdict.PROPOSAL_TYPE, "0xf003"),))
    following = next_knowledge(judgement, commit, after.info(tree=False))
    group = state_of(following)
    assert isinstance(following, Claimed)
    assert group is not None
    assert group.context == after.context()


def test_the_tree_after_a_custom_proposal_is_inferred_too() -> None:
    room = crowd(5)
    custom = room.propose(1, b"what an application means")
    commit, after = room.commit(0, by_reference(ref_of(custom, room.suite)), by_value(Remove(4)))
    judgement = judge(judge(derived(room), custom).knowledge, commit)
    assert isinstance(next_knowledge(judgement, commit, after.info(tree=False)), Claimed)


def test_a_group_info_without_its_tree_refuses_no_public_commit() -> None:
    room = crowd(5)
    hidden = room.propose(1, Remove(2))
    commit, after = room.commit(0, by_reference(ref_of(hidden, room.suite)))
    for known in (derived, claimed, not_known):
        judgement = judge(known(room), commit)
        assert next_knowledge(judgement, commit, after.info(tree=False)) == NotKnown(after.epoch, GROUP, room.suite)


def test_an_external_commit_covers_self_removes_of_another_code_point() -> None:
    room = crowd(5)
    leaving = room.propose(3, Proposal(ProposalType(0xF003), Unparsed(b"")))
    room.sent[ref_of(leaving, room.suite)] = (proposal(SelfRemove()), Sender(SenderType.MEMBER, 3))
    items = by_value(ExternalInit(bytes(32))), by_reference(ref_of(leaving, room.suite))
    commit, after = room.commit(Client.of(30), *items)
    judgement = judge(judge(derived(room), leaving).knowledge, commit)
    assert isinstance(judgement.verdict, Unknown)
    assert isinstance(next_knowledge(judgement, commit, after.info(tree=False)), Claimed)


def test_only_commits_lead_to_the_next_epoch() -> None:
    room = crowd(3)
    message = room.propose(1, Remove(2))
    with pytest.raises(TypeError):
        next_knowledge(judge(derived(room), message), message)
