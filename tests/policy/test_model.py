"""Random histories with forks: a message is refused exactly if a model of ten lines says that a fact is certain."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from mimids.mls.code_points import AppDataUpdateOperation, ComponentId, ContentType
from mimids.mls.framing import MLSMessage
from mimids.mls.knowledge import Derived, Knowledge, NotKnown, judge, next_knowledge, state_of, with_group_info
from mimids.mls.opening import open_group
from mimids.mls.proposals import Add, AppDataUpdate, Commit, ExternalInit, Proposal, ProposalOrRef
from mimids.mls.rules.checks import covered_proposals
from mimids.mls.rules.proposal_list import Covered
from mimids.mls.rules.verdict import Invalid
from mimids.policy.rules import Case, Terms
from mimids.policy.rules import judge as judge_policy
from mimids.values import Sender
from mimids.wire.ids import UserId
from tests.support.rooms import (
    ALICE,
    BANNED,
    BOB,
    CAROL,
    FOLLOWER,
    MEMBER,
    MUTED,
    changes,
    client,
    device,
    dictionary,
    room,
    sealed,
    sets,
)
from tests.support.signing import Room, by_reference, by_value

USERS = (ALICE, BOB, CAROL)
FRAMED = st.sampled_from(("by value", "by reference", "unseen"))
Roles = Mapping[UserId, int]


@attrs.frozen
class Branch:
    """One partition: its true state, and what the server under test knows of it."""

    room: Room = attrs.field(repr=False)
    roles: Roles
    knowledge: Knowledge = attrs.field(repr=False)
    known: bool  # in the model


def certain(
    *,
    known_before: bool,
    known_after: bool,
    before: Roles,
    after: Roles,
    added: tuple[UserId, ...],  # as far as visible
    hub_bans: frozenset[UserId],
    local_sender: UserId | None,
    application: bool,
) -> bool:
    """The model: return whether a fact against a message is certain in its fork."""
    adds = any(user in hub_bans or (known_after and after[user] == BANNED) for user in added)
    role = before[local_sender] if local_sender is not None and known_before else None
    banned = role == BANNED or local_sender in hub_bans
    return adds or banned or (application and role == MUTED)


class Histories(RuleBasedStateMachine):
    """Commits of all kinds in all branches, application messages of all users, bans by the hub."""

    branches = Bundle("branches")

    def __init__(self) -> None:
        super().__init__()
        self.seeds = itertools.count(30)
        self.hub_bans: frozenset[UserId] = frozenset()

    @initialize(target=branches)
    def found(self) -> Branch:
        roles = dict.fromkeys(USERS, MEMBER)
        here = room(roles, BOB)
        return Branch(here, roles, Derived(open_group(here.info())), known=True)

    @rule(user=st.sampled_from(USERS[1:]), ends=st.booleans())
    def hub_bans_or_not(self, user: UserId, ends: bool) -> None:
        self.hub_bans = self.hub_bans - {user} if ends else self.hub_bans | {user}

    @rule(branch=branches, user=st.sampled_from(USERS), local=st.booleans())
    def send_application(self, branch: Branch, user: UserId, local: bool) -> None:
        self.check(branch, branch, sealed(branch.room), local=user if local else None, application=True)

    # Longer than 40 lines: a commit is made part by part, and then checked.
    @rule(
        target=branches,
        branch=branches,
        gives=st.none() | st.tuples(st.sampled_from(USERS[1:]), st.sampled_from((BANNED, MUTED, MEMBER))),
        how=st.sampled_from(("whole", "update")),
        adds=st.none() | st.sampled_from(USERS[1:]),
        giving=FRAMED,
        adding=FRAMED,
        more=st.booleans(),
        local=st.booleans(),
    )
    def commit(
        self,
        branch: Branch,
        gives: tuple[UserId, int] | None,
        how: str,
        adds: UserId | None,
        giving: str,
        adding: str,
        more: bool,
        local: bool,
    ) -> Branch:
        """Alice commits: perhaps another role for a user, an Add, and an update of an unknown component."""
        here = attrs.evolve(branch.room, sent=dict(branch.room.sent))
        knowledge, bodies, roles = branch.knowledge, list[tuple[Any, str]](), dict(branch.roles)
        if gives is not None:
            roles[gives[0]] = gives[1]
            bodies.append((sets(roles) if how == "whole" else changes(branch.roles, *gives), giving))
        if adds is not None:
            bodies.append((Add(client(adds, next(self.seeds)).key_package()), adding))
        items: list[ProposalOrRef] = []
        for body, framed in bodies:
            if framed == "by value":
                items.append(by_value(body))
                continue
            before = set(here.sent)
            proposal = here.propose(0, body)
            (ref,) = set(here.sent) - before
            items.append(by_reference(ref))
            if framed == "by reference":
                knowledge = judge(knowledge, proposal).knowledge
        if more:  # it changes the state after it, but no role
            items.append(by_value(AppDataUpdate(ComponentId(0xFF00), AppDataUpdateOperation.UPDATE, b"data")))
        message, after = here.commit(0, *items)
        after.extensions = (dictionary(roles),)
        seen = all(framed != "unseen" for _, framed in bodies)
        # Without a state, references are not resolved.
        visible = (adds,) if adds and (adding == "by value" or (adding == "by reference" and branch.known)) else ()
        following = Branch(after, roles, knowledge, known=branch.known and seen)
        refused, leads_to = self.check(
            attrs.evolve(branch, knowledge=knowledge), following, message, added=visible, local=ALICE if local else None
        )
        if refused or more:  # no client here could sign in the state after it
            return branch
        return attrs.evolve(following, knowledge=leads_to)

    @rule(target=branches, branch=branches, user=st.sampled_from(USERS[1:]))
    def join(self, branch: Branch, user: UserId) -> Branch:
        message, after = branch.room.commit(client(user, next(self.seeds)), by_value(ExternalInit(bytes(32))))
        following = Branch(after, branch.roles, branch.knowledge, known=branch.known)
        refused, leads_to = self.check(branch, following, message, added=(user,))
        return branch if refused else attrs.evolve(following, knowledge=leads_to)

    @rule(target=branches, branch=branches, user=st.sampled_from(USERS[1:]), claims=st.booleans())
    def commit_encrypted(self, branch: Branch, user: UserId, claims: bool) -> Branch:
        """Ban a user in an encrypted commit; if it carries a GroupInfo, the state after it is claimed."""
        roles = {**branch.roles, user: BANNED}
        _, after = branch.room.commit(0, by_value(sets(roles)))
        message = sealed(branch.room, ContentType.COMMIT)
        refused, leads_to = self.check(branch, Branch(after, roles, branch.knowledge, known=False), message)
        assert not refused
        if claims:
            leads_to = with_group_info(leads_to, after.info())
        return Branch(after, roles, leads_to, known=claims)

    def check(
        self,
        branch: Branch,
        following: Branch,
        message: MLSMessage,
        *,
        added: tuple[UserId, ...] = (),
        local: UserId | None = None,
        application: bool = False,
    ) -> tuple[bool, Knowledge]:
        """Compare with the model; return whether the message was refused, and what is known of the state after it."""
        judgement = judge(branch.knowledge, message)
        assert not isinstance(judgement.verdict, Invalid), judgement.verdict
        assert judgement.contradicted is None, judgement.contradicted
        leads_to = judgement.knowledge if application else next_knowledge(judgement, message)
        group = state_of(judgement.knowledge)
        covered = _by_value(message) if group is None else covered_proposals(group, message)
        terms = Terms(banned=self.hub_bans)
        case = Case(message, judgement.knowledge, None if application else leads_to, covered, terms)
        sender: Sender = FOLLOWER if local is None else device(local)
        expected = certain(
            known_before=branch.known,
            known_after=following.known,
            before=branch.roles,
            after=following.roles,
            added=added,
            hub_bans=self.hub_bans,
            local_sender=local,
            application=application,
        )
        assert (judge_policy(case, sender) is not None) == expected
        assert isinstance(branch.knowledge, NotKnown) == (not branch.known)
        return expected, leads_to


def _by_value(message: MLSMessage) -> tuple[Covered, ...]:
    content: Any = getattr(message.message, "content", None)
    if content is None or not isinstance(content.content, Commit):
        return ()
    values = (each.value for each in content.content.proposals)
    return tuple(Covered(value, content.sender) for value in values if isinstance(value, Proposal))


Histories.TestCase.settings = settings(max_examples=300, stateful_step_count=20, deadline=None)
TestHistories = Histories.TestCase
