"""The visible proposals of a partition, read from the store as the MLS rules need them.

A proposal is *pending* once it was sequenced: a commit may cover it by reference. It is *refused* if the hub refused
it for its content: a commit that covers it is refused too.
"""

from __future__ import annotations

import json

import attrs

from mimids.errors import MimiError
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.mls.knowledge import Knowledge, NotKnown
from mimids.mls.proposals import Commit, Proposal, ProposalRef, SelfRemove
from mimids.mls.rules.proposal_list import Covered
from mimids.mls.rules.verdict import MEMBERSHIP_TAG_LENGTH, RULES, Invalid, Rule
from mimids.mls.suites import suite_of
from mimids.store import groups, messages, proposals
from mimids.store.engine.transaction import Tx
from mimids.store.partitions import Partition
from mimids.store.proposals import StoredProposal
from mimids.wire.declare import decode


def proposals_read(tx: Tx, partition: Partition, message: MLSMessage) -> list[StoredProposal]:
    """Return the stored proposals that judging a message looks at.

    For a commit those that it covers by reference, for a SelfRemove all SelfRemoves, for other messages none.
    """
    public = message.message
    if not isinstance(public, PublicMessage):
        return []
    content = public.content.content
    if isinstance(content, Commit):
        refs = [each.value for each in content.proposals if isinstance(each.value, bytes)]
        found = (proposals.find_proposal(tx, partition.id, ref) for ref in refs)
        return [row for row in found if row is not None]
    if isinstance(content, Proposal) and isinstance(content.body, SelfRemove):
        return proposals.self_removes_of(tx, partition.id)
    return []


def with_proposals(tx: Tx, knowledge: Knowledge, rows: list[StoredProposal]) -> Knowledge:
    """Return what is known of a partition, with these of its proposals."""
    if not rows:
        return knowledge
    pending: dict[ProposalRef, Covered] = {}
    refused: dict[ProposalRef, Invalid] = {}
    for row in rows:
        ref = ProposalRef(row.ref)
        if row.seq is None:
            refused[ref] = _decode_refusal(row.refusal)
        elif (covered := _decode_proposal(messages.body_of(tx, row.seq), ref)) is not None:
            pending[ref] = covered
    if isinstance(knowledge, NotKnown):
        return attrs.evolve(knowledge, refused=refused)
    return attrs.evolve(knowledge, group=attrs.evolve(knowledge.group, pending=pending, refused=refused))


def covered_without_state(tx: Tx, partition: Partition, message: MLSMessage) -> tuple[Covered | ProposalRef, ...]:
    """Return what a public commit covers where the state is not known.

    A reference is a hash, so it names one proposal for certain. It stays a reference if that proposal was not seen.
    """
    public = message.message
    if not isinstance(public, PublicMessage) or not isinstance(public.content.content, Commit):
        return ()
    seen = {row.ref: row for row in proposals_read(tx, partition, message) if row.seq is not None}
    found: list[Covered | ProposalRef] = []
    for each in public.content.content.proposals:
        if isinstance(each.value, Proposal):
            found.append(Covered(each.value, public.content.sender))
            continue
        row = seen.get(each.value)
        body = None if row is None or row.seq is None else messages.body_of(tx, row.seq)
        found.append(_decode_proposal(body, each.value) or each.value)
    return tuple(found)


def store_refused(tx: Tx, partition: Partition, public: PublicMessage, error: MimiError) -> None:
    """Store that a proposal was refused in a partition: a commit there must not cover it.

    Not stored for a membership tag of wrong length: the reference does not cover that tag, so the same reference may
    stand for a valid message.
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
