"""The policy after a commit, as far as the proposals that the commit covers show it."""

from __future__ import annotations

import pytest

from mimids.mls.code_points import ComponentId, ProposalType, SenderType
from mimids.mls.framing import Sender
from mimids.mls.opening import open_group
from mimids.mls.proposals import AppDataUpdate, Proposal, ProposalRef
from mimids.mls.rules.proposal_list import Covered
from mimids.policy.room import room_after
from tests.support.rooms import BANNED, BOB, CAROL, MEMBER, changes, room, sets
from tests.support.signing import proposal

ROLES = {BOB: MEMBER, CAROL: MEMBER}
JOINER, MEMBER_0 = Sender(SenderType.NEW_MEMBER_COMMIT, None), Sender(SenderType.MEMBER, 0)
OTHER_SELF_REMOVE = Covered(Proposal(ProposalType(0xF003), b""), MEMBER_0, ProposalRef(bytes(32)))
BAN = Covered(proposal(changes(ROLES, CAROL, BANNED)), MEMBER_0)
OTHER_COMPONENT = Covered(
    proposal(AppDataUpdate(ComponentId(0xFF00), BAN.proposal.body.op, b"data")),  # type: ignore[union-attr]
    MEMBER_0,
)


@pytest.mark.parametrize("before", [ProposalRef(bytes(32)), OTHER_SELF_REMOVE, OTHER_COMPONENT])
def test_what_changes_no_policy_hides_no_change_after_it(before: Covered | ProposalRef) -> None:
    group = open_group(room(ROLES, BOB).info())
    after = room_after(group, [before, BAN], joins=True)
    assert after is not None
    assert (after.bans(CAROL), after.bans(BOB)) == (True, False)


@pytest.mark.parametrize("unknown", [ProposalRef(bytes(32)), OTHER_SELF_REMOVE])
def test_a_member_may_cover_what_changes_the_policy_in_an_unknown_way(unknown: Covered | ProposalRef) -> None:
    group = open_group(room(ROLES, BOB).info())
    assert room_after(group, [unknown, BAN], joins=False) is None


def test_an_unknown_proposal_by_value_may_change_the_policy_also_when_somebody_joins() -> None:
    group = open_group(room(ROLES, BOB).info())
    assert room_after(group, [Covered(Proposal(ProposalType(0xF003), b""), JOINER), BAN], joins=True) is None


def test_whole_policies_come_before_single_changes() -> None:
    group = open_group(room(ROLES, BOB).info())
    nobody = Covered(proposal(sets({BOB: MEMBER, CAROL: MEMBER})), MEMBER_0)
    after = room_after(group, [BAN, nobody], joins=False)
    assert after is not None
    assert after.bans(CAROL)
