"""A group as a server sees it: the public state of one epoch, as a value.

Every change returns another state, sharing what it can; `checks` says which messages lead to which.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from mimids.mls.framing import AuthenticatedContent, interim_transcript_hash_input
from mimids.mls.group_info import GroupContext
from mimids.mls.identity import user_id
from mimids.mls.leaf_node import LeafNode
from mimids.mls.proposals import ProposalRef, SelfRemove
from mimids.mls.rules.parameters import Parameters
from mimids.mls.rules.proposal_list import Covered
from mimids.mls.rules.verdict import Invalid, Unknown
from mimids.mls.suites import Suite
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.wire.ids import UserId

MAX_REFUSED: Final = 1024  # references remembered as refused, in one epoch; one more is merely not known

NO_PENDING: Final[Mapping[ProposalRef, Covered]] = MappingProxyType({})
NO_REFUSED: Final[Mapping[ProposalRef, Invalid]] = MappingProxyType({})


@attrs.frozen(eq=False)
class PublicGroup:
    """The public state of one epoch; every change returns another one, sharing what it can."""

    suite: Suite
    context: GroupContext
    parameters: Parameters
    tree: RatchetTree
    confirmation_tag: bytes
    pending: Mapping[ProposalRef, Covered] = NO_PENDING
    refused: Mapping[ProposalRef, Invalid] = NO_REFUSED
    reinitialized: bool = False

    @property
    def group_id(self) -> bytes:
        """Return the group's id."""
        return self.context.group_id

    @property
    def epoch(self) -> int:
        """Return the epoch this is the state of."""
        return self.context.epoch

    @property
    def tree_hash(self) -> bytes:
        """Return the tree hash of the GroupContext."""
        return self.context.tree_hash

    @property
    def interim_transcript_hash(self) -> bytes:
        """Return the hash that the next commit's transcript goes on from (RFC 9420 sections 8.2, 11)."""
        tag = interim_transcript_hash_input(self.confirmation_tag)
        return self.suite.hash(self.context.confirmed_transcript_hash + tag)

    def transcript_after(self, commit: AuthenticatedContent) -> bytes:
        """Return the confirmed transcript hash after a commit; it does not hang on what its proposals do."""
        return self.suite.hash(self.interim_transcript_hash + commit.confirmed_transcript_hash_input())

    def members(self) -> tuple[tuple[int, LeafNode], ...]:
        """Return (leaf index, leaf node) of every member, in order."""
        return tuple(self.tree.leaves())

    def users(self) -> Mapping[UserId, tuple[int, ...]]:
        """Return each user's leaf indices; leaves whose credential names no user are left out."""
        found: dict[UserId, tuple[int, ...]] = {}
        for index, leaf in self.tree.leaves():
            user = user_id(leaf.credential)
            if user is not None:
                found[user] = (*found.get(user, ()), index)
        return found

    def self_removes(self) -> tuple[ProposalRef, ...]:
        """Return the references of the pending SelfRemoves, which a joiner from outside must cover."""
        return tuple(ref for ref, each in self.pending.items() if isinstance(each.proposal.body, SelfRemove))

    @property
    def size_estimate(self) -> int:
        """Return about how many octets of memory this state would take alone; versions share most of it."""
        proposals = 2048 * len(self.pending) + 256 * len(self.refused)
        return 4096 + 2000 * self.tree.member_count + 2 * len(self.context.encoded) + proposals

    def with_pending(self, ref: ProposalRef, proposal: Covered) -> PublicGroup:
        """Return the state after a proposal that `check` found valid; a commit may now cover it."""
        if ref in self.pending:
            return self
        return attrs.evolve(self, pending=MappingProxyType({**self.pending, ref: proposal}))

    def with_refused(self, ref: ProposalRef, why: Invalid) -> PublicGroup:
        """Return the state after a proposal was refused, for a rule here or by policy: a commit must not cover it.

        A reference that is pending stays so: it covers all of the message but the membership tag, so the same
        proposal may come once with a broken tag and once whole.
        """
        if ref in self.pending or ref in self.refused or len(self.refused) >= MAX_REFUSED:
            return self
        return attrs.evolve(self, refused=MappingProxyType({**self.refused, ref: why}))


@attrs.frozen
class Valid:
    """Valid as far as visible: a commit's next state, a proposal's reference, neither for anything else."""

    next: PublicGroup | None = None
    ref: ProposalRef | None = None


Verdict = Valid | Invalid | Unknown
