"""The public state of a group in one epoch, as an immutable value.

Each change returns a new state that shares the unchanged parts; `rules.checks` decides which message leads to which
state.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from mimids.mls.framing import AuthenticatedContent, interim_transcript_hash_input
from mimids.mls.group_info import GroupContext
from mimids.mls.identity import user_of
from mimids.mls.leaf_node import LeafNode
from mimids.mls.proposals import ProposalRef, SelfRemove
from mimids.mls.rules.parameters import Parameters
from mimids.mls.rules.proposal_list import Covered
from mimids.mls.rules.verdict import Invalid, Unknown
from mimids.mls.suites import Suite
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.wire.ids import UserId

MAX_REFUSED: Final = 1024  # refused references stored in one epoch; further ones count as unseen proposals

NO_PENDING: Final[Mapping[ProposalRef, Covered]] = MappingProxyType({})
NO_REFUSED: Final[Mapping[ProposalRef, Invalid]] = MappingProxyType({})


@attrs.frozen(eq=False)
class PublicGroup:
    """The public state of one epoch; each change returns a new state that shares the unchanged parts."""

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
        """Return the epoch of this state."""
        return self.context.epoch

    @property
    def tree_hash(self) -> bytes:
        """Return the tree hash of the GroupContext."""
        return self.context.tree_hash

    @property
    def interim_transcript_hash(self) -> bytes:
        """Return the interim transcript hash, from which the next commit's hash follows (RFC 9420 sections 8.2, 11)."""
        tag = interim_transcript_hash_input(self.confirmation_tag)
        return self.suite.hash(self.context.confirmed_transcript_hash + tag)

    def transcript_after(self, commit: AuthenticatedContent) -> bytes:
        """Return the confirmed transcript hash after a commit; the effect of its proposals does not matter."""
        return self.suite.hash(self.interim_transcript_hash + commit.confirmed_transcript_hash_input())

    def members(self) -> tuple[tuple[int, LeafNode], ...]:
        """Return (leaf index, leaf node) of every member, in order."""
        return tuple(self.tree.leaves())

    def users(self) -> Mapping[UserId, tuple[int, ...]]:
        """Return each user's leaf indices, without leaves whose credential names no user."""
        found: dict[UserId, tuple[int, ...]] = {}
        for index, leaf in self.tree.leaves():
            user = user_of(leaf.credential)
            if user is not None:
                found[user] = (*found.get(user, ()), index)
        return found

    def self_removes(self) -> tuple[ProposalRef, ...]:
        """Return the references of the pending SelfRemoves, which an external commit must cover."""
        return tuple(ref for ref, each in self.pending.items() if isinstance(each.proposal.body, SelfRemove))

    @property
    def size_estimate(self) -> int:
        """Return roughly how many octets of memory this state alone would need; epochs share most of them."""
        proposals = 2048 * len(self.pending) + 256 * len(self.refused)
        return 4096 + 2000 * self.tree.member_count + 2 * len(self.context.encoded) + proposals

    def with_pending(self, ref: ProposalRef, proposal: Covered) -> PublicGroup:
        """Return the state with a valid proposal added, which a commit may now cover."""
        if ref in self.pending:
            return self
        return attrs.evolve(self, pending=MappingProxyType({**self.pending, ref: proposal}))

    def with_refused(self, ref: ProposalRef, why: Invalid) -> PublicGroup:
        """Return the state in which a proposal is refused, by a rule of MLS or by policy: a commit must not cover it.

        A pending proposal stays pending: the reference does not cover the membership tag, so the same proposal may
        arrive once with a wrong tag and once with the right one.
        """
        if ref in self.pending or ref in self.refused or len(self.refused) >= MAX_REFUSED:
            return self
        return attrs.evolve(self, refused=MappingProxyType({**self.refused, ref: why}))


@attrs.frozen
class Valid:
    """Nothing visible is wrong. `next` is the state after a commit, `ref` the reference of a proposal, else None."""

    next: PublicGroup | None = None
    ref: ProposalRef | None = None


Verdict = Valid | Invalid | Unknown
