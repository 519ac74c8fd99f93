"""The visible proposals of a partition, read from the store as the MLS rules need them.

A proposal is *pending* after it was sequenced: a commit may cover it by reference. It is *refused* if the hub refused
it for its content: a commit that covers it is refused too.
"""

from __future__ import annotations

import json
from typing import Final

import attrs

from mimids.errors import MimiError
from mimids.mls.code_points import ProposalType
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.mls.knowledge import Knowledge, NotKnown
from mimids.mls.proposals import Add, Commit, Proposal, ProposalRef, Remove, SelfRemove
from mimids.mls.rules.proposal_list import Covered
from mimids.mls.rules.verdict import MEMBERSHIP_TAG_LENGTH, RULES, Invalid, Rule
from mimids.mls.suites import suite_of
from mimids.store import groups, messages, proposals
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.store.proposals import StoredProposal
from mimids.wire.declare import decode
from mimids.wire.ids import GROUP_ID, KeyPackageRef

PENDING_REMOVES: Final = 256  # at most this many Removes of a partition are read
SELF_REMOVES_COMPARED: Final = 64  # the newest of a partition: each message with a SelfRemove is compared with them

# The octets before the content of a member's MLSMessage, without the group id: version, wire format, epoch, sender.
_HEAD_OCTETS: Final = 2 + 2 + 8 + 1 + 4


def proposals_read(tx: Tx, partition: Partition, message: MLSMessage) -> list[StoredProposal]:
    """Return the stored proposals that are needed to judge a message.

    For a commit, these are the proposals that it covers by reference. For a SelfRemove in a known state, they are the
    earlier SelfRemoves of its sender, found among the newest proposals. For other messages, no proposals are needed.
    """
    public = message.message
    if not isinstance(public, PublicMessage):
        return []
    content = public.content.content
    if isinstance(content, Commit):
        refs = dict.fromkeys(each.value for each in content.proposals if isinstance(each.value, bytes))
        return proposals.find_proposals(tx, partition.id, list(refs))
    if isinstance(content, Proposal) and isinstance(content.body, SelfRemove) and partition.state is not None:
        head = message.encoded[: _HEAD_OCTETS + len(GROUP_ID.encode(public.group_id))]
        return proposals.self_removes_that_begin(tx, partition.id, head, among=SELF_REMOVES_COMPARED)
    return []


def with_proposals(tx: Tx, knowledge: Knowledge, rows: list[StoredProposal]) -> Knowledge:
    """Return what is known of a partition, with the given proposals added."""
    if not rows:
        return knowledge
    is_known = not isinstance(knowledge, NotKnown)
    pending: dict[ProposalRef, Covered] = {}
    refused: dict[ProposalRef, Invalid] = {}
    for row in rows:
        ref = ProposalRef(row.ref)
        if row.seq is None:
            refused[ref] = _decode_refusal(row.refusal)
        elif is_known and (covered := _decode_proposal(messages.body_of(tx, row.seq), ref)) is not None:
            pending[ref] = covered
    if isinstance(knowledge, NotKnown):
        return attrs.evolve(knowledge, refused=refused)
    return attrs.evolve(knowledge, group=attrs.evolve(knowledge.group, pending=pending, refused=refused))


def pending_removes(tx: Tx, partition: Partition) -> frozenset[int]:
    """Return the leaves that sequenced proposals of a partition remove; only the newest of these proposals are read."""
    found = set()
    for row in proposals.newest_of_type(tx, partition.id, ProposalType.REMOVE, limit=PENDING_REMOVES):
        covered = None if row.seq is None else _decode_proposal(messages.body_of(tx, row.seq), ProposalRef(row.ref))
        if covered is not None and isinstance(covered.proposal.body, Remove):
            found.add(covered.proposal.body.removed)
    return frozenset(found)


def covered_without_state(tx: Tx, partition: Partition, message: MLSMessage) -> tuple[Covered | ProposalRef, ...]:
    """Return the proposals that a public commit covers in a partition of unknown state.

    A reference is a hash, so it identifies exactly one proposal. If that proposal was not seen, the reference is
    returned instead.
    """
    public = message.message
    if not isinstance(public, PublicMessage) or not isinstance(public.content.content, Commit):
        return ()
    seen: dict[bytes, Covered | None] = {}
    for row in proposals_read(tx, partition, message):
        if row.seq is not None:
            seen[row.ref] = _decode_proposal(messages.body_of(tx, row.seq), ProposalRef(row.ref))
    return tuple(
        Covered(each.value, public.content.sender)
        if isinstance(each.value, Proposal)
        else seen.get(each.value) or each.value
        for each in public.content.content.proposals
    )


def added_references(
    tx: Tx, group: Group, partition: Partition, message: MLSMessage
) -> frozenset[KeyPackageRef] | None:
    """Return the references of the KeyPackages that a commit adds; None if they are not known for certain.

    They are not known for an encrypted commit, and for a commit that covers an unseen proposal or one of an unknown
    type.
    """
    suite = suite_of(group.cipher_suite)
    if suite is None or not isinstance(message.message, PublicMessage):
        return None
    covered = covered_without_state(tx, partition, message)
    if any(not isinstance(each, Covered) or not each.proposal.is_understood for each in covered):
        return None
    bodies = (each.proposal.body for each in covered if isinstance(each, Covered))
    return frozenset(body.key_package.ref(suite) for body in bodies if isinstance(body, Add))


def store_refused(tx: Tx, partition: Partition, public: PublicMessage, error: MimiError) -> None:
    """Store that a proposal was refused in a partition: a commit there must not cover it.

    Nothing is stored if the membership tag has a wrong length: the reference does not cover that tag, so the same
    reference may stand for a valid message.
    """
    content = public.content.content
    suite = suite_of(groups.group_by_row(tx, partition.group).cipher_suite)
    if suite is None or not isinstance(content, Proposal) or error.members.get("rule") == MEMBERSHIP_TAG_LENGTH.name:
        return
    ref = public.authenticated_content().proposal_ref(suite)
    reason = {"rule": error.members.get("rule", error.code), "section": error.members.get("section", "")}
    refusal = json.dumps({**reason, "detail": str(error)})
    proposals.add_proposal(tx, partition.id, ref, proposal_type=content.proposal_type, refusal=refusal)


def _decode_refusal(stored: str | None) -> Invalid:
    reason = json.loads(stored or "{}")
    name = str(reason.get("rule", ""))
    section, detail = str(reason.get("section", "")), str(reason.get("detail", ""))
    return Invalid(RULES.get(name) or Rule(name, section, detail), section, detail)


def _decode_proposal(body: bytes | None, ref: ProposalRef) -> Covered | None:
    if body is None:
        return None
    public = decode(MLSMessage, body).message
    if not isinstance(public, PublicMessage) or not isinstance(public.content.content, Proposal):
        return None
    return Covered(public.content.content, public.content.sender, ref)
