"""Judging messages by the MLS rules, in the state of their partition (semantics: public-group-state).

Judging happens in the transaction that sequences the message. What may take long (a GroupInfo, a tree, a large commit)
is judged before that, by `MlsJudge.prepare`: on a snapshot, in a worker thread, off the event loop. Its result is
cached by everything it depends on: message, state, and the proposals that it reads. So the transaction finds the
result if nothing changed in between, and judges again if something did.
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
from mimids.mls.framing import MLSMessage, PublicMessage
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
CACHED_RESULTS: Final = 1024
OTHER_BRANCHES: Final = 16  # whose GroupContext a signature is tried against

JudgementKey = tuple[object, ...]  # everything that a judgement depends on


@attrs.frozen
class Judged:
    """A message that is not invalid in its partition, and what was found about it."""

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
        """Tell whether the message breaks a rule if the claimed state is true; then the state becomes unknown."""
        return self.judgement.contradicted is not None


@attrs.frozen
class OpenedGroup:
    """What is known of a group that is created."""

    epoch: int | None
    knowledge: Knowledge


class MlsJudge:
    """Judges messages and GroupInfos; keeps the results that took long to find."""

    def __init__(self, states: States) -> None:
        self.states = states
        self._results: LeastRecentlyUsed[JudgementKey, object] = LeastRecentlyUsed(CACHED_RESULTS)
        self._lock = Lock()  # for the threads of the writer, the readers and the workers
        self._workers = trio.CapacityLimiter(LONG_WORKERS)

    # --- within a transaction -----------------------------------------------------------------------------------

    def judge(self, tx: Tx, group: Group, partition: Partition, message: MLSMessage) -> Judged:
        """Judge a message in its partition.

        Raises `InvalidMessage`, `WrongBranch` if the message was signed for another branch, and `PolicyRefused` for
        a commit that covers a proposal which policy refused.
        """
        knowledge, key = self._knowledge_for(tx, group, partition, message)
        judged = Judged(message, knowledge, self._judgement(knowledge, key, message), key)
        verdict = judged.judgement.verdict
        if isinstance(verdict, Invalid):
            if verdict.rule in (SIGNATURE, BLANK_SENDER) and self._fits_elsewhere(tx, group, partition, message):
                raise WrongBranch
            raise invalid_message(verdict)
        return judged

    def after_commit(self, judged: Judged, group_info: MLSMessage | None) -> Knowledge:
        """Return what is known of the partition that a commit opens.

        Raises `RatchetTreeNeeded` and `GroupInfoMismatch` for the GroupInfo that is sent along.
        """
        info = None if group_info is None else _group_info(group_info)
        key = ("after", *judged.key, None if group_info is None else messages.digest_of(group_info.encoded))
        found = self._cached(key)
        if found is None:
            try:
                found = next_knowledge(judged.judgement, judged.message, info)
            except RuleError as error:
                found = error.invalid
            self._cache(key, found)
        if isinstance(found, Invalid):
            raise _group_info_refused(found)
        return cast("Knowledge", found)

    def claimed(self, group: Group, epoch: int | None, opening: GroupInfoResponse) -> Knowledge:
        """Return the state that an opening claims, once it verifies in itself; raises as `after_commit` does."""
        key = ("claimed", group.id, epoch, hashlib.sha256(encode(opening)).digest())
        found = self._cached(key)
        if found is None:
            unknown = NotKnown(epoch, group.group_id, suite_of(group.cipher_suite))
            try:
                found = with_group_info(unknown, _group_info(opening.group_info), opening.ratchet_tree)
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
        """Return the knowledge and proposals that a message is judged by, and the judgement's key in the cache."""
        knowledge = self.states.knowledge(tx, group, partition)
        digest = messages.digest_of(message.encoded)
        rows = proposals_read(tx, partition, message)
        state = None if partition.state is None else (partition.state.derived, *state_key(partition.state))
        key = (state, partition.epoch, group.id, digest, tuple((row.ref, row.seq, row.refusal) for row in rows))
        return with_proposals(tx, knowledge, rows), key

    def _judgement(self, knowledge: Knowledge, key: JudgementKey, message: MLSMessage) -> Judgement:
        found = self._cached(key)
        if found is None:
            found = judge(knowledge, message)
            if _is_long(message):
                self._cache(key, found)
        return cast("Judgement", found)

    def _fits_elsewhere(self, tx: Tx, group: Group, here: Partition, message: MLSMessage) -> bool:
        others = partitions.partitions_of_epoch(tx, group.id, message.epoch or 0)[: OTHER_BRANCHES + 1]
        return any(self.signature_fits(tx, group, other, message) for other in others if other.id != here.id)

    # --- before the transaction ---------------------------------------------------------------------------------

    async def prepare(self, store: Store, hub: ProviderId, submissions: Sequence[Submission]) -> None:
        """Load the states that messages will be judged by, and judge in a worker thread what may take long."""
        public = [each for each in submissions if isinstance(each.message.message, PublicMessage)]
        if not public:
            return
        for each, knowledge, key in await store.read(partial(self._load, hub, public)):
            group_info = None if each.commit_data is None else each.commit_data.group_info
            await trio.to_thread.run_sync(
                self._judge_ahead, each.message, knowledge, key, group_info, limiter=self._workers
            )

    def _load(
        self, hub: ProviderId, submissions: Sequence[Submission], tx: Tx
    ) -> list[tuple[Submission, Knowledge, JudgementKey]]:
        """Load the states of these messages into the cache; return the messages that take long to judge."""
        row = providers.provider_row(tx, hub) or 0
        loaded: set[PartitionKey] = set()
        found = []
        for each in submissions:
            long = _takes_long(each)
            if each.partition_key in loaded and not long:
                continue  # its state is in the cache by now
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
        """Return the partitions that a message may be sequenced to: of its key, or of its epoch if it names none."""
        if submission.partition_key is None:
            found = partitions.partitions_of_epoch(tx, group.id, submission.message.epoch or 0)
            return [partition for partition in found[:OTHER_BRANCHES] if partition.state is not None]
        partition = partitions.find_partition(tx, group.hub, submission.partition_key.masks())
        return [partition] if partition is not None and partition.group == group.id else []

    def _judge_ahead(
        self, message: MLSMessage, knowledge: Knowledge, key: JudgementKey, group_info: MLSMessage | None
    ) -> None:
        judgement = self._judgement(knowledge, key, message)
        self._cache(key, judgement)
        if message.content_type is ContentType.COMMIT and not isinstance(judgement.verdict, Invalid):
            with contextlib.suppress(MimiError):  # raised again when the commit is sequenced
                self.after_commit(Judged(message, knowledge, judgement, key), group_info)

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
    """Return what a public commit covers; a reference stays a reference if its proposal was not seen."""
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
