"""Judging messages by the MLS rules, in the state of their partition (semantics: public-group-state).

A message is judged in the transaction that sequences it. Objects that may take long to judge (a GroupInfo, a tree, a
large commit) are judged earlier by `MlsJudge.prepare`: on a snapshot, in a worker thread, off the event loop. The
result is cached under everything that it depends on: the message, the state, and the proposals that were read. So the
transaction finds the result if nothing changed in between, and judges again if something did.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from functools import partial
from threading import Lock
from typing import Final, cast

import attrs
import trio

from mimids.ds.groups.states import States, state_key
from mimids.ds.groups.submission import Submission
from mimids.ds.groups.visible_proposals import covered_without_state, proposals_read, with_proposals
from mimids.ds.lru import LeastRecentlyUsed
from mimids.errors import (
    GroupInfoMismatch,
    InvalidMessage,
    MimiError,
    PolicyRefused,
    RatchetTreeNeeded,
    WrongBranch,
)
from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.knowledge import (
    Judgement,
    Knowledge,
    NotKnown,
    begin,
    epoch_of,
    judge,
    next_knowledge,
    state_of,
    with_group_info,
)
from mimids.mls.proposals import Proposal, ProposalRef
from mimids.mls.public_group import Valid
from mimids.mls.rules.checks import covered_proposals, signature_fits
from mimids.mls.rules.proposal_list import Covered
from mimids.mls.rules.verdict import (
    BLANK_SENDER,
    RULES,
    SIGNATURE,
    TREE_NEEDED,
    UNKNOWN_SUITE,
    Invalid,
    RuleError,
)
from mimids.mls.suites import Suite, suite_of
from mimids.store import groups, messages, partitions, providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import CreateGroupRequest, GroupInfoResponse

LONG_OCTETS: Final = 16 * 1024  # a commit or GroupInfo above this is judged off the event loop (architecture: tasks)
LONG_WORKERS: Final = 2
MANY_MESSAGES: Final = (
    32  # PublicMessages in a batch; a longer batch is judged in a worker thread, this many messages at a time
)
CACHED_RESULTS: Final = 1024
SPARSE_LEAVES: Final = 1 << 15  # a tree with at most this many leaves may be arbitrarily sparse
LEAVES_OF_A_MEMBER: Final = 64  # for each member of a larger tree, at most: each blank leaf costs an octet in answers
OTHER_BRANCHES: Final = 16  # other branches, at most, whose GroupContext is tried to verify a signature
BRANCH_TRIES: Final = 8  # verifications in one transaction, and one more for each message

JudgementKey = tuple[object, ...]  # everything that a judgement depends on; if it is empty, the judgement is not cached


@attrs.frozen
class Judged:
    """A message that breaks no rule in the known state of its partition, with its verdict."""

    message: MLSMessage
    before: Knowledge
    judgement: Judgement
    key: JudgementKey

    @property
    def proposal(self) -> tuple[ProposalRef, int] | None:
        """Return reference and type of a visible proposal; None for other messages."""
        public = self.message.message
        suite = _suite_of(self.before)
        if suite is None or not isinstance(public, PublicMessage) or not isinstance(public.content.content, Proposal):
            return None
        verdict = self.judgement.verdict
        known = verdict.ref if isinstance(verdict, Valid) else None
        ref = known or public.authenticated_content().proposal_ref(suite)
        return ref, public.content.content.proposal_type

    @property
    def contradicts_claim(self) -> bool:
        """Tell whether the message breaks a rule in the claimed state, so that the state becomes unknown."""
        return self.judgement.contradicted is not None


@attrs.frozen
class OpenedGroup:
    """What is known of a group that is created."""

    epoch: int | None
    knowledge: Knowledge


@attrs.define
class BranchTries:
    """How many more signatures one transaction may verify in branches other than the message's own.

    These verifications tell `WrongBranch` from `InvalidMessage`. Without this bound, a batch of junk signatures would
    cost `OTHER_BRANCHES` verifications for each of its messages.
    """

    left: int = BRANCH_TRIES


class MlsJudge:
    """Judges messages and GroupInfos; keeps the results that took long to find."""

    def __init__(self, states: States) -> None:
        self.states = states
        self._results: LeastRecentlyUsed[JudgementKey, object] = LeastRecentlyUsed(CACHED_RESULTS)
        self._lock = Lock()  # the threads of the writer, the readers and the workers use the cache
        self._workers = trio.CapacityLimiter(LONG_WORKERS)

    # --- within a transaction -----------------------------------------------------------------------------------

    def judge(self, tx: Tx, group: Group, partition: Partition, message: MLSMessage, tries: BranchTries) -> Judged:
        """Judge a message in its partition; `tries` are the tries that the transaction has left.

        Raises `InvalidMessage`, `WrongBranch` if the message was signed for another branch, and `PolicyRefused` for
        a commit that covers a proposal which policy refused.
        """
        knowledge, key = self._knowledge_for(tx, group, partition, message)
        judged = Judged(message, knowledge, self._judgement(knowledge, key, message), key)
        verdict = judged.judgement.verdict
        if isinstance(verdict, Invalid):
            if verdict.rule in (SIGNATURE, BLANK_SENDER) and self._fits_elsewhere(tx, group, partition, message, tries):
                raise WrongBranch
            raise invalid_message(verdict)
        return judged

    def after_commit(self, judged: Judged, group_info: MLSMessage | None) -> Knowledge:
        """Return what is known of the partition that a commit opens.

        Raises `RatchetTreeNeeded` and `GroupInfoMismatch` for the GroupInfo that comes with the commit.
        """
        info = None if group_info is None else _group_info(group_info)
        key = ("after", *judged.key, None if group_info is None else messages.digest_of(group_info.encoded))
        found = self._cached(key)
        if found is None:
            try:
                found = next_knowledge(judged.judgement, judged.message, info)
                if info is not None:
                    _check_density(found)
            except RuleError as error:
                found = error.invalid
            self._cache(key, found)
        if isinstance(found, Invalid):
            raise _group_info_refused(found)
        return cast("Knowledge", found)

    def claimed(self, group: Group, epoch: int | None, opening: GroupInfoResponse) -> Knowledge:
        """Verify an opening by itself and return the state that it claims; raises as `after_commit` does."""
        key = ("claimed", group.id, epoch, hashlib.sha256(encode(opening)).digest())
        found = self._cached(key)
        if found is None:
            unknown = NotKnown(epoch, group.group_id, suite_of(group.cipher_suite))
            try:
                found = with_group_info(unknown, _group_info(opening.group_info), opening.ratchet_tree)
                _check_density(found)
            except RuleError as error:
                found = error.invalid
            self._cache(key, found)
        if isinstance(found, Invalid):
            raise _group_info_refused(found)
        return cast("Knowledge", found)

    def signature_fits(self, tx: Tx, group: Group, partition: Partition, message: MLSMessage) -> bool:
        """Tell whether a message was signed in the state of this partition; False if the state is not known."""
        state = state_of(self.states.knowledge(tx, group, partition))
        return state is not None and signature_fits(state, message)

    def _knowledge_for(
        self, tx: Tx, group: Group, partition: Partition, message: MLSMessage
    ) -> tuple[Knowledge, JudgementKey]:
        """Return the knowledge and proposals by which a message is judged, and the judgement's key in the cache."""
        knowledge = self.states.knowledge(tx, group, partition)
        if isinstance(message.message, PrivateMessage) and message.content_type is not ContentType.COMMIT:
            return knowledge, ()  # such a message is judged quickly, whatever its size, without proposals
        digest = messages.digest_of(message.encoded)
        rows = proposals_read(tx, partition, message)
        state = None if partition.state is None else (partition.state.derived, *state_key(partition.state))
        key = (state, partition.epoch, group.id, digest, tuple((row.ref, row.seq, row.refusal) for row in rows))
        return with_proposals(tx, knowledge, rows), key

    def _judgement(self, knowledge: Knowledge, key: JudgementKey, message: MLSMessage) -> Judgement:
        found = self._cached(key) if key else None
        if found is None:
            found = judge(knowledge, message)
            if key and _is_long(message):
                self._cache(key, found)
        return cast("Judgement", found)

    def _fits_elsewhere(self, tx: Tx, group: Group, here: Partition, message: MLSMessage, tries: BranchTries) -> bool:
        tries.left += 1
        for other in partitions.partitions_of_epoch(tx, group.id, message.epoch or 0, limit=OTHER_BRANCHES + 1):
            if other.id == here.id or other.state is None:
                continue
            if not tries.left:
                return False
            tries.left -= 1
            if self.signature_fits(tx, group, other, message):
                return True
        return False

    # --- before the transaction ---------------------------------------------------------------------------------

    async def prepare(self, store: Store, hub: ProviderId, submissions: Sequence[Submission]) -> None:
        """Load the states of the messages' partitions; in a worker thread, judge the messages that may take long.

        If there are many messages, all are judged here, so that the writer does not verify their signatures while other
        writes wait.
        """
        public = [each for each in submissions if isinstance(each.message.message, PublicMessage)]
        are_many = len(public) > MANY_MESSAGES
        for start in range(0, len(public), MANY_MESSAGES):
            some = public[start : start + MANY_MESSAGES]
            found = await store.read(partial(self._load, hub, some, all_long=are_many))
            if found:
                await trio.to_thread.run_sync(self._judge_ahead, found, limiter=self._workers)

    def _load(
        self, hub: ProviderId, submissions: Sequence[Submission], tx: Tx, *, all_long: bool
    ) -> list[tuple[Submission, Knowledge, JudgementKey]]:
        """Load the states of messages into the cache; return those that take long to judge (all, if `all_long`)."""
        row = providers.provider_row(tx, hub) or 0
        loaded: set[PartitionKey] = set()
        found = []
        for each in submissions:
            long = all_long or _takes_long(each)
            if each.partition_key in loaded and not long:
                continue  # the state is in the cache by now
            group = groups.find_group(tx, row, each.message.group_id or GroupId(b""))
            if group is not None:
                for partition in self._partitions_of(tx, group, each):
                    knowledge, key = self._knowledge_for(tx, group, partition, each.message)
                    if long:
                        found.append((each, knowledge, key))
            if each.partition_key is not None:
                loaded.add(each.partition_key)
        return found

    def _partitions_of(self, tx: Tx, group: Group, submission: Submission) -> list[Partition]:
        """Return the partitions to which a message may be sequenced: by its key or, without a key, by its epoch."""
        if submission.partition_key is None:
            found = partitions.partitions_of_epoch(tx, group.id, submission.message.epoch or 0, limit=OTHER_BRANCHES)
            return [partition for partition in found if partition.state is not None]
        partition = partitions.find_partition(tx, group.hub, submission.partition_key.masks())
        return [partition] if partition is not None and partition.group == group.id else []

    def _judge_ahead(self, found: Sequence[tuple[Submission, Knowledge, JudgementKey]]) -> None:
        for submission, knowledge, key in found:
            message, data = submission.message, submission.commit_data
            judgement = self._judgement(knowledge, key, message)
            self._cache(key, judgement)
            if message.content_type is ContentType.COMMIT and not isinstance(judgement.verdict, Invalid):
                with contextlib.suppress(MimiError):  # raised again when the commit is sequenced
                    judged = Judged(message, knowledge, judgement, key)
                    self.after_commit(judged, None if data is None else data.group_info)

    async def prepare_claim(self, group: Group, epoch: int | None, opening: GroupInfoResponse) -> None:
        """Verify an opening in a worker thread; `claimed` then finds the result."""

        def verify() -> None:
            with contextlib.suppress(MimiError):
                self.claimed(group, epoch, opening)

        await trio.to_thread.run_sync(verify, limiter=self._workers)

    async def open_creation(self, request: CreateGroupRequest) -> OpenedGroup:
        """Return what is known of a group that is created; raises as `after_commit` does."""
        suite = suite_of(request.cipher_suite)
        if suite is None or request.version != MLS10:
            raise InvalidMessage(UNKNOWN_SUITE.text, rule=UNKNOWN_SUITE.name, section=UNKNOWN_SUITE.section)
        info = None if request.group_info is None else _group_info(request.group_info)
        start = partial(begin, info, request.ratchet_tree, group_id=request.group_id, suite=suite)
        try:
            knowledge = await trio.to_thread.run_sync(start, limiter=self._workers) if info else start()
            _check_density(knowledge)
        except RuleError as error:
            raise _group_info_refused(error.invalid) from None
        return OpenedGroup(epoch_of(knowledge), knowledge)

    # --- the cache of results -----------------------------------------------------------------------------------

    def _cached(self, key: JudgementKey) -> object | None:
        with self._lock:
            return self._results.get(key)

    def _cache(self, key: JudgementKey, result: object) -> None:
        with self._lock:
            self._results.put(key, result)


def covered_by(tx: Tx, partition: Partition, judged: Judged) -> tuple[Covered | ProposalRef, ...]:
    """Return the proposals that a public commit covers; a proposal that was not seen is given by its reference."""
    state = state_of(judged.before)
    if state is not None:
        return covered_proposals(state, judged.message)
    return covered_without_state(tx, partition, judged.message)


def invalid_message(invalid: Invalid) -> MimiError:
    """Return the refusal for a broken rule: `PolicyRefused` if a commit covers a proposal that policy refused."""
    kind = InvalidMessage if invalid.rule.name in RULES else PolicyRefused
    return kind(invalid.detail, rule=invalid.rule.name, section=invalid.section)


def _group_info_refused(invalid: Invalid) -> MimiError:
    kind = RatchetTreeNeeded if invalid.rule is TREE_NEEDED else GroupInfoMismatch
    return kind(invalid.detail, rule=invalid.rule.name, section=invalid.section)


def _check_density(knowledge: Knowledge) -> None:
    """Raise `GroupInfoMismatch` if the tree of a GroupInfo has far more leaves than members."""
    state = state_of(knowledge)
    if state is None or state.tree.leaf_count <= SPARSE_LEAVES:
        return
    if state.tree.member_count * LEAVES_OF_A_MEMBER < state.tree.leaf_count:
        most = LEAVES_OF_A_MEMBER - 1
        raise GroupInfoMismatch(f"the tree is too sparse: more than {most} of {LEAVES_OF_A_MEMBER} leaves are blank")


def _group_info(message: MLSMessage) -> GroupInfo:
    if not isinstance(message.message, GroupInfo):
        raise GroupInfoMismatch("group_info is not a GroupInfo")
    return message.message


def _is_long(message: MLSMessage) -> bool:
    return len(message.encoded) > LONG_OCTETS


def _takes_long(submission: Submission) -> bool:
    has_group_info = submission.commit_data is not None and submission.commit_data.group_info is not None
    return has_group_info or _is_long(submission.message)


def _suite_of(knowledge: Knowledge) -> Suite | None:
    return knowledge.suite if isinstance(knowledge, NotKnown) else knowledge.group.suite
