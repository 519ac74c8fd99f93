"""Every rule with each kind of knowledge: it refuses if the fact is certain, and returns None if it is not.

The file is long because it has all tests of one module, which share the helpers at its top.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from itertools import permutations

import attrs
import pytest

from mimids.mls.code_points import ComponentId, ContentType, ExtensionType, ProposalType
from mimids.mls.components import (
    AppDataDictionary,
    ComponentData,
    ParticipantList,
    Role,
    RolesList,
    UserRolePair,
)
from mimids.mls.framing import MLSMessage
from mimids.mls.knowledge import Claimed, Derived, Knowledge, NotKnown, judge, next_knowledge, state_of
from mimids.mls.leaf_node import Extension
from mimids.mls.opening import open_group
from mimids.mls.proposals import (
    Add,
    AppDataUpdate,
    ExternalInit,
    Proposal,
    ProposalOrRef,
    ProposalRef,
    Remove,
    SelfRemove,
    Unparsed,
)
from mimids.mls.public_group import PublicGroup
from mimids.mls.rules.checks import check, covered_proposals, record
from mimids.policy import rules as table
from mimids.policy.rules import RULES, Case, MessageRule, PolicyRule, ReaderRule, SenderRule, Terms, refusals, withheld
from mimids.policy.verdict import Certainty, Found, Refusal
from mimids.values import Device, Follower
from mimids.wire.declare import encode
from mimids.wire.ids import UserId
from tests.support.rooms import (
    ALICE,
    BANNED,
    BOB,
    CAROL,
    FOLLOWER,
    MEMBER,
    MUTED,
    ROLES,
    changes,
    client,
    device,
    dictionary,
    room,
    sealed,
    sets,
)
from tests.support.signing import GROUP, Client, Room, by_reference, by_value, ref_of

Known = Callable[[Room], Knowledge]


def derived(of: Room) -> Knowledge:
    return Derived(open_group(of.info()))


def claimed(of: Room) -> Knowledge:
    return Claimed(open_group(of.info()))


def unknown(of: Room) -> Knowledge:
    return NotKnown(of.epoch, GROUP, of.suite)


def case(known: Knowledge, message: MLSMessage, terms: Terms = Terms()) -> Case:  # noqa: B008  # it is frozen
    """Return the case of a message in a state."""
    judgement = judge(known, message)
    is_commit = message.content_type is ContentType.COMMIT
    ahead = next_knowledge(judgement, message) if is_commit else None
    group = state_of(judgement.knowledge)
    covered = covered_proposals(group or empty_group(), message)
    return Case(message, judgement.knowledge, ahead, covered, terms)


def empty_group() -> PublicGroup:
    """Return a state without pending proposals, in which only a commit's own proposals are covered."""
    return open_group(Room.create(client(ALICE, 1)).info())


def fired(given: Case, sender: Device | Follower = FOLLOWER) -> list[str]:
    return [each.rule for each in refusals(given, sender)]


def unseen() -> ProposalOrRef:
    return by_reference(ProposalRef(bytes(32)))


def banning_carol() -> Room:
    return room({ALICE: MEMBER, BOB: MEMBER, CAROL: BANNED}, BOB)


def add_carol(seed: int = 30) -> ProposalOrRef:
    return by_value(Add(client(CAROL, seed).key_package()))


# --- commits that add -----------------------------------------------------------------------------------------------

STATES: list[tuple[Known, bool]] = [(derived, True), (claimed, True), (unknown, False)]


@pytest.mark.parametrize("spelling", ["%63arol", "car%6Fl", "c%61rol"])
def test_a_ban_holds_for_every_spelling_of_a_user(spelling: str) -> None:
    here = banning_carol()
    added = by_value(Add(Client.of(31, f"{spelling}@a.example").key_package()))
    assert fired(case(derived(here), here.commit(1, added)[0])) == ["banned-user-added"]
    other = UserId(f"mimi://a.example/u/{spelling}".encode())
    listed = room({ALICE: MEMBER, BOB: MEMBER, other: BANNED}, BOB)
    assert fired(case(derived(listed), listed.commit(1, add_carol())[0])) == ["banned-user-added"]


def test_a_self_remove_of_another_code_point_lifts_no_ban() -> None:
    here = banning_carol()
    leaving = here.propose(1, Proposal(ProposalType(0xF003), Unparsed(b"")))
    group = open_group(here.info())
    group = record(group, leaving, check(group, leaving))
    items = by_value(ExternalInit(bytes(32))), by_reference(ref_of(leaving, here.suite))
    message, _ = here.commit(client(CAROL, 30), *items)
    judgement = judge(Derived(group), message)
    given = Case(
        message, Derived(group), next_knowledge(judgement, message), covered_proposals(group, message), Terms()
    )
    assert fired(given) == ["banned-user-joins"]


@pytest.mark.parametrize(("known", "certain"), STATES)
def test_a_commit_that_adds_a_banned_user_is_refused_where_the_ban_is_known(known: Known, certain: bool) -> None:
    here = banning_carol()
    message, _ = here.commit(1, add_carol())
    assert fired(case(known(here), message)) == (["banned-user-added"] if certain else [])


@pytest.mark.parametrize(("known", "certain"), STATES)
def test_a_proposal_covered_by_reference_is_checked_like_one_by_value(known: Known, certain: bool) -> None:
    here = banning_carol()
    proposal = here.propose(1, Add(client(CAROL, 30).key_package()))
    (ref,) = here.sent
    knowledge = judge(known(here), proposal).knowledge
    assert fired(case(known(here), proposal)) == []  # a proposal by itself is not refused
    message, _ = here.commit(0, by_reference(ref))
    assert fired(case(knowledge, message)) == (["banned-user-added"] if certain else [])


@pytest.mark.parametrize(("known", "certain"), STATES)
def test_an_external_commit_of_a_banned_user_is_refused(known: Known, certain: bool) -> None:
    here = banning_carol()
    message, _ = here.commit(client(CAROL, 30), by_value(ExternalInit(bytes(32))))
    assert fired(case(known(here), message)) == (["banned-user-joins"] if certain else [])
    message, _ = here.commit(client(BOB, 31), by_value(ExternalInit(bytes(32))))
    assert fired(case(known(here), message)) == []


@pytest.mark.parametrize("known", [derived, claimed])
def test_banning_and_adding_in_one_commit_is_refused_and_unbanning_and_adding_is_not(known: Known) -> None:
    members = {ALICE: MEMBER, BOB: MEMBER, CAROL: MEMBER}
    here = room(members, BOB)
    bans: list[ProposalOrRef] = [by_value(sets({**members, CAROL: BANNED})), by_value(changes(members, CAROL, BANNED))]
    for ban in bans:
        assert fired(case(known(here), here.commit(0, ban, add_carol())[0])) == ["banned-user-added"]
        assert fired(case(known(here), here.commit(0, ban)[0])) == []
    roles = {**members, CAROL: BANNED}
    here = room(roles, BOB)
    lifts: list[ProposalOrRef] = [by_value(sets(members)), by_value(changes(roles, CAROL, MEMBER))]
    for lift in lifts:
        assert fired(case(known(here), here.commit(0, lift, add_carol())[0])) == []


@pytest.mark.parametrize("known", [derived, claimed])
def test_an_unseen_proposal_could_lift_the_ban_so_nothing_is_refused(known: Known) -> None:
    here = banning_carol()
    message, _ = here.commit(0, add_carol(), unseen())
    assert fired(case(known(here), message)) == []
    message, _ = here.commit(0, add_carol(), by_value(b"what nobody knows"))
    assert fired(case(known(here), message)) == []


@pytest.mark.parametrize("known", [derived, claimed])
def test_unseen_proposals_of_an_external_commit_cannot_lift_a_ban(known: Known) -> None:
    here = banning_carol()
    message, _ = here.commit(client(CAROL, 30), by_value(ExternalInit(bytes(32))), unseen())
    given = case(known(here), message)
    assert isinstance(given.ahead, NotKnown)
    assert fired(given) == ["banned-user-joins"]


@pytest.mark.parametrize("known", [derived, claimed])
def test_an_update_of_an_unknown_component_changes_no_role(known: Known) -> None:
    here = banning_carol()
    other = AppDataUpdate(typing.cast("typing.Any", 0xFF00), typing.cast("typing.Any", 1), b"data")
    message, _ = here.commit(0, by_value(other), add_carol())
    given = case(known(here), message)
    assert isinstance(given.ahead, NotKnown)
    assert fired(given) == ["banned-user-added"]
    free, banned = ({ALICE: MEMBER, BOB: MEMBER, CAROL: role} for role in (MEMBER, BANNED))
    for before, role, wanted in ((free, BANNED, ["banned-user-added"]), (banned, MEMBER, [])):
        here = room(before, BOB)
        message, _ = here.commit(0, by_value(other), by_value(changes(before, CAROL, role)), add_carol())
        assert fired(case(known(here), message)) == wanted


def test_a_claimed_state_that_a_message_contradicts_is_not_used() -> None:
    here, other = banning_carol(), room({ALICE: MEMBER, BOB: MEMBER, CAROL: MEMBER}, BOB)
    message, _ = other.commit(1, add_carol())  # signed in a state without the ban
    given = case(claimed(here), message)
    assert isinstance(given.here, NotKnown)
    assert fired(given) == []


@pytest.mark.parametrize(
    "policy",
    [
        dictionary({CAROL: BANNED}, None),
        dictionary({CAROL: BANNED}, RolesList((Role(BANNED, b"guest", b"", (0x0100,), 0, None, 0, None, ()),))),
        dictionary({CAROL: BANNED}, RolesList((*ROLES.roles, Role(BANNED, b"banned", b"", (), 0, None, 0, None, ())))),
        dictionary(None),
        dictionary({BOB: BANNED}),
        dictionary({CAROL: 77}),
        attrs.evolve(typing.cast("typing.Any", dictionary({CAROL: BANNED})), extension_data=b"\0"),
    ],
    ids=["no roles", "role 1 is no ban", "role 1 twice", "no list", "not listed", "no such role", "nothing"],
)
def test_an_ambiguous_policy_bans_and_mutes_nobody(policy: typing.Any) -> None:
    here = Room.create(client(ALICE, 1), policy)
    message, after = here.commit(0, by_value(Add(client(CAROL, 30).key_package())))
    assert fired(case(derived(here), message), device(ALICE)) == []
    assert fired(case(derived(after), sealed(after)), device(CAROL)) == []
    assert withheld(derived(after), Terms(), device(CAROL)) is None


def test_a_user_with_two_roles_counts_as_without_role() -> None:
    both = encode_list((UserRolePair(CAROL, BANNED), UserRolePair(CAROL, MEMBER)))
    here = Room.create(client(ALICE, 1), both)
    assert fired(case(derived(here), here.commit(0, add_carol())[0])) == []


def encode_list(pairs: tuple[UserRolePair, ...]) -> typing.Any:
    data = (
        ComponentData(ComponentId.PARTICIPANT_LIST, encode(ParticipantList(pairs))),
        ComponentData(ComponentId.ROLES_LIST, encode(ROLES)),
    )
    return Extension(ExtensionType.APP_DATA_DICTIONARY, encode(AppDataDictionary(data)))


# --- the hub's own terms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [derived, claimed, unknown])
def test_a_ban_of_the_hub_needs_no_state(known: Known) -> None:
    here = room({}, BOB)
    terms = Terms(banned=frozenset({CAROL}))
    message, _ = here.commit(0, add_carol())
    assert fired(case(known(here), message, terms)) == ["hub-banned-user-added"]
    message, _ = here.commit(client(CAROL, 30), by_value(ExternalInit(bytes(32))))
    assert fired(case(known(here), message, terms)) == ["hub-banned-user-joins"]
    assert fired(case(known(here), here.propose(0, Add(client(CAROL, 30).key_package())), terms)) == []
    assert fired(case(known(here), sealed(here, ContentType.COMMIT), terms)) == []  # the server cannot see whom it adds


# --- senders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("known", "certain"), STATES)
def test_a_muted_user_of_ours_sends_no_application_messages(known: Known, certain: bool) -> None:
    here = room({ALICE: MEMBER, BOB: MUTED}, BOB)
    assert fired(case(known(here), sealed(here)), device(BOB)) == (["muted-sender"] if certain else [])
    assert fired(case(known(here), sealed(here)), device(ALICE)) == []
    assert fired(case(known(here), sealed(here)), device(CAROL)) == []  # absent from the list
    assert fired(case(known(here), sealed(here, ContentType.COMMIT)), device(BOB)) == []
    assert fired(case(known(here), here.commit(1)[0]), device(BOB)) == []
    assert fired(case(known(here), sealed(here)), FOLLOWER) == []  # the sender is not known


@pytest.mark.parametrize("known", [derived, claimed, unknown])
def test_a_mute_of_the_hub_needs_no_state(known: Known) -> None:
    here = room({}, BOB)
    terms = Terms(muted=frozenset({BOB}))
    assert fired(case(known(here), sealed(here), terms), device(BOB)) == ["hub-muted-sender"]
    assert fired(case(known(here), sealed(here, ContentType.PROPOSAL), terms), device(BOB)) == []
    assert fired(case(known(here), sealed(here), terms), FOLLOWER) == []


@pytest.mark.parametrize(("known", "certain"), STATES)
def test_our_banned_user_may_only_leave(known: Known, certain: bool) -> None:
    here = room({ALICE: MEMBER, BOB: BANNED}, BOB, CAROL)
    no = ["banned-sender"] if certain else []
    bob, carol = 1, 2
    for message in (
        here.propose(bob, Add(client(CAROL, 40).key_package())),
        here.propose(bob, Remove(carol)) if certain else here.commit(bob)[0],
        here.commit(bob)[0],
        here.commit(bob, by_value(Remove(carol)))[0],
    ):
        assert fired(case(known(here), message), device(BOB)) == no
    leaving = [
        here.propose(bob, SelfRemove()),
        here.propose(bob, Remove(bob)),
        sealed(here, ContentType.PROPOSAL),  # the user may be leaving by it
        sealed(here, ContentType.COMMIT),
    ]
    for message in leaving:
        assert fired(case(known(here), message), device(BOB)) == []
        assert fired(case(known(here), message, Terms(banned=frozenset({BOB}))), device(BOB)) == []
    mutes = ["muted-sender"] if certain else []
    assert fired(case(known(here), sealed(here)), device(BOB)) == no + mutes
    assert fired(case(known(here), sealed(here)), FOLLOWER) == []


@pytest.mark.parametrize("known", [derived, claimed, unknown])
def test_a_user_whom_the_hub_bans_may_only_leave(known: Known) -> None:
    here = room({}, BOB)
    terms = Terms(banned=frozenset({BOB}))
    for message in (sealed(here), here.commit(1)[0], here.propose(1, Add(client(CAROL, 40).key_package()))):
        assert fired(case(known(here), message, terms), device(BOB)) == ["hub-banned-sender"]
        assert fired(case(known(here), message, terms), FOLLOWER) == []


def test_a_banned_user_may_remove_a_leaf_whose_owner_is_unknown() -> None:
    here = room({ALICE: MEMBER, BOB: BANNED}, BOB)
    terms = Terms(banned=frozenset({BOB}))
    message = here.propose(1, Remove(0))
    assert fired(case(derived(here), message, terms), device(BOB)) == ["banned-sender", "hub-banned-sender"]
    assert fired(case(unknown(here), message, terms), device(BOB)) == []


# --- readers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("known", "certain"), STATES)
def test_a_banned_reader_gets_no_application_messages(known: Known, certain: bool) -> None:
    here = room({ALICE: MEMBER, BOB: BANNED}, BOB)
    found = withheld(known(here), Terms(), device(BOB))
    assert (None if found is None else found.rule) == ("banned-reader" if certain else None)
    assert withheld(known(here), Terms(), device(ALICE)) is None
    by_hub = withheld(known(here), Terms(banned=frozenset({ALICE})), device(ALICE))
    assert by_hub is not None
    assert by_hub.rule == "hub-banned-reader"


# --- the table ------------------------------------------------------------------------------------------------------


def test_every_refusal_states_its_facts_and_their_certainty() -> None:
    here = banning_carol()
    message, _ = here.commit(1, add_carol())
    for known, certainty in ((derived, Certainty.DERIVED), (claimed, Certainty.CLAIMED)):
        (refusal,) = refusals(case(known(here), message), FOLLOWER)
        assert [fact.certainty for fact in refusal.facts] == [Certainty.SIGNED, certainty]
        assert "carol" in str(refusal.facts[0])
        assert "carol" in refusal.facts[0].text
        assert 'role 1, "banned"' in refusal.facts[1].text
        assert refusal.section


def test_each_rule_reads_only_the_facts_that_its_row_lists() -> None:
    here = room({ALICE: MEMBER, BOB: BANNED, CAROL: BANNED}, BOB)
    terms = Terms(frozenset({BOB, CAROL}), frozenset({BOB}))
    external = here.commit(client(CAROL, 30), by_value(ExternalInit(bytes(32))))[0]
    found: dict[str, Refusal] = {}
    for known in (derived, claimed):
        for message in (sealed(here), here.commit(1, add_carol())[0], external):
            found |= {each.rule: each for each in refusals(case(known(here), message, terms), device(BOB))}
        for each in (withheld(known(here), Terms(), device(BOB)), withheld(known(here), terms, device(ALICE))):
            found |= {} if each is None else {each.rule: each}
        by_hub = withheld(unknown(here), terms, device(BOB))
        assert by_hub is not None
        found[by_hub.rule] = by_hub
        for rule in RULES:
            facts = [fact.certainty for fact in found[rule.name].facts]
            assert len(facts) == len(rule.needs)
            assert all(fact in need.certain for fact, need in zip(facts, rule.needs, strict=True))


def test_the_order_of_rules_does_not_decide_whether_a_message_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = room({ALICE: MEMBER, BOB: BANNED}, BOB)
    terms = Terms(frozenset({BOB, CAROL}), frozenset({BOB}))
    given = [case(derived(here), each, terms) for each in (sealed(here), here.commit(1, add_carol())[0])]
    usual = [set(fired(each, device(BOB))) for each in given]
    assert all(len(each) > 1 for each in usual)
    for order in permutations(RULES[:6]):
        monkeypatch.setattr(table, "RULES", (*order, *RULES[6:]))
        assert [set(fired(each, device(BOB))) for each in given] == usual


def test_names_are_unique_and_every_row_says_what_it_needs() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.section
        assert rule.text
        assert rule.needs


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_can_only_refuse_and_gets_no_remote_sender(rule: PolicyRule) -> None:
    """No value accepts a message, and no argument can name another provider's user."""
    assert isinstance(rule, MessageRule | SenderRule | ReaderRule)
    types = typing.get_type_hints(rule.check)
    assert types.pop("return") == Found
    wanted = {MessageRule: [Case], SenderRule: [Case, Device], ReaderRule: [Knowledge, Terms, Device]}[type(rule)]
    assert list(types.values()) == wanted
    assert Follower not in types.values()


def test_judge_returns_a_refusal_or_none() -> None:
    assert inspect.signature(table.judge).return_annotation == "Refusal | None"
    assert {field.name for field in attrs.fields(Refusal)} == {"rule", "section", "detail", "facts", "lasting"}


def test_bans_and_mutes_of_a_hub_never_last_for_an_epoch() -> None:
    of_hub = [rule for rule in RULES if rule.name.startswith("hub-")]
    assert of_hub
    assert not any(rule.lasting for rule in of_hub)
