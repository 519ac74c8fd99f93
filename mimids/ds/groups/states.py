"""What is known of each partition's group state: kept in the store, hot in a bounded cache, judged by.

(semantics: public-group-state)

The rows are the truth: a tree as content-addressed nodes, a GroupContext, a confirmation tag, the proposals of the
partition. The cache is keyed by that content, so it can hold nothing stale. `prepare` does what may take long (a
GroupInfo, a tree, a large commit) on a snapshot and off the event loop; the transaction then finds the judgement under
the same content, and judges again where the state moved meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache, partial
from threading import Lock
from typing import Final, cast

import attrs
import trio

from mimids.ds.groups.submission import Submission
from mimids.errors import (
    GroupInfoMismatch,
    InvalidMessage,
    MimiError,
    PolicyRefused,
    RatchetTreeNeeded,
    WrongBranch,
)
from mimids.mls.code_points import ContentType, ExtensionType
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.identity import provider_of
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
    state_of,
    with_group_info,
)
from mimids.mls.leaf_node import extension_data
from mimids.mls.opening import restore_group
from mimids.mls.proposals import Commit, Proposal, ProposalRef, SelfRemove
from mimids.mls.public_group import NO_PENDING, NO_REFUSED, PublicGroup, Valid
from mimids.mls.rules.checks import covered_proposals, signature_fits
from mimids.mls.rules.proposal_list import Covered
from mimids.mls.rules.verdict import (
    BLANK_SENDER,
    MEMBERSHIP_TAG_LENGTH,
    RULES,
    SIGNATURE,
    TREE_NEEDED,
    UNKNOWN_SUITE,
    Invalid,
    Rule,
    RuleError,
)
from mimids.mls.suites import Suite, suite_of
from mimids.mls.tree.rows import NodeRow, all_nodes, changed_nodes, load
from mimids.store import groups, messages, partitions, proposals, providers, trees
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition, StoredState
from mimids.store.proposals import StoredProposal
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, GroupId, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import CreateGroupRequest, GroupInfoResponse, RatchetTree

LONG_OCTETS: Final = 16 * 1024  # a commit or GroupInfo above this is judged off the event loop (architecture: tasks)
LONG_WORKERS: Final = 2
CACHED_OCTETS: Final = 64 * 1024 * 1024  # of states, by their own estimate
CACHED_JUDGEMENTS: Final = 1024
OTHER_BRANCHES: Final = 16  # whose GroupContext a signature is tried against

StateKey = tuple[bytes, bytes, bytes, bool]  # root hash, SHA-256 of the GroupContext, confirmation tag, reinitialized


def refused(invalid: Invalid) -> MimiError:
    """Return the refusal that a broken rule is; what covers a proposal that policy refused is refused by policy."""
    kind = InvalidMessage if invalid.rule.name in RULES else PolicyRefused
    return kind(invalid.detail, rule=invalid.rule.name, section=invalid.section)


@attrs.frozen
class Judged:
    """A message and what was found of it in its partition; only what is not invalid."""

    message: MLSMessage
    before: Knowledge
    judgement: Judgement
    key: tuple[object, ...]  # what the judgement depends on

    @property
    def proposal(self) -> tuple[ProposalRef, int] | None:
        """Return reference and type of a visible proposal."""
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
        """Tell whether the message cannot be right if the claimed state is: then the state is not known any more."""
        return self.judgement.contradicted is not None


@attrs.frozen
class OpenedGroup:
    """What is known of a group that is created."""

    epoch: int | None
    knowledge: Knowledge


class States:
    """Loads, keeps and judges by the states of partitions."""

    def __init__(self) -> None:
        self._hot: OrderedDict[StateKey, PublicGroup] = OrderedDict()
        self._hot_octets = 0
        self._providers: OrderedDict[StateKey, frozenset[ProviderId]] = OrderedDict()
        self._memo: OrderedDict[tuple[object, ...], object] = OrderedDict()
        self._caching = Lock()  # the writer's thread, the readers' and the workers' come here
        self._long = trio.CapacityLimiter(LONG_WORKERS)

    # --- judging ------------------------------------------------------------------------------------------------

    def judge(self, tx: Tx, group: Group, partition: Partition, message: MLSMessage) -> Judged:
        """Judge a message in its partition; raise `InvalidMessage`, or `WrongBranch` where another fork signed it."""
        knowledge, key = self._knowledge_for(tx, group, partition, message)
        judged = Judged(message, knowledge, self._judgement(knowledge, key, message), key)
        verdict = judged.judgement.verdict
        if isinstance(verdict, Invalid):
            if verdict.rule in (SIGNATURE, BLANK_SENDER) and self._fits_elsewhere(tx, group, partition, message):
                raise WrongBranch
            raise refused(verdict)
        return judged

    def after_commit(self, judged: Judged, group_info: MLSMessage | None) -> Knowledge:
        """Return what is known of the partition that a commit opens.

        Raises `RatchetTreeNeeded` and `GroupInfoMismatch` for the GroupInfo that is sent along.
        """
        info = None if group_info is None else _group_info(group_info)
        key = ("after", *judged.key, None if group_info is None else hashlib.sha256(group_info.encoded).digest())
        found = self._memo.get(key)
        if found is None:
            try:
                found = next_knowledge(judged.judgement, judged.message, info)
            except RuleError as error:
                found = error.invalid
            self._remember(key, found)
        if isinstance(found, Invalid):
            raise _group_info_refused(found)
        return cast("Knowledge", found)

    def claimed(self, group: Group, epoch: int | None, opening: GroupInfoResponse) -> Knowledge:
        """Return the state that an opening claims, verified in itself; raises as `after_commit` does."""
        key = ("claimed", group.id, epoch, hashlib.sha256(encode(opening)).digest())
        found = self._memo.get(key)
        if found is None:
            unknown = NotKnown(epoch, group.group_id, suite_of(group.cipher_suite))
            try:
                found = with_group_info(unknown, _group_info(opening.group_info), opening.ratchet_tree)
            except RuleError as error:
                found = error.invalid
            self._remember(key, found)
        if isinstance(found, Invalid):
            raise _group_info_refused(found)
        return cast("Knowledge", found)

    def covered(self, tx: Tx, partition: Partition, judged: Judged) -> tuple[Covered | ProposalRef, ...]:
        """Return what a public commit covers; a reference stays bare where its proposal was not seen.

        Also where the state is not known: a reference is a hash, so it says for certain what was covered.
        """
        state = state_of(judged.before)
        if state is not None:
            return covered_proposals(state, judged.message)
        public = judged.message.message
        if not isinstance(public, PublicMessage) or not isinstance(public.content.content, Commit):
            return ()
        seen = {row.ref: row for row in _proposals_read(tx, partition, judged.message) if row.seq is not None}
        found: list[Covered | ProposalRef] = []
        for each in public.content.content.proposals:
            if isinstance(each.value, Proposal):
                found.append(Covered(each.value, public.content.sender))
                continue
            row = seen.get(each.value)
            body = None if row is None or row.seq is None else messages.body_of(tx, row.seq)
            found.append(_covered(body, each.value) or each.value)
        return tuple(found)

    def signature_fits(self, tx: Tx, group: Group, partition: Partition, message: MLSMessage) -> bool:
        """Tell whether a message was signed in this partition's state, if that is known."""
        state = state_of(self.knowledge(tx, group, partition))
        return state is not None and signature_fits(state, message)

    def note_refused(self, tx: Tx, partition: Partition, public: PublicMessage, error: MimiError) -> None:
        """Remember that a proposal was refused in a partition: a commit there must not cover it."""
        content = public.content.content
        suite = suite_of(groups.group_by_row(tx, partition.group).cipher_suite)
        if (
            suite is None
            or not isinstance(content, Proposal)
            or error.members.get("rule") == MEMBERSHIP_TAG_LENGTH.name
        ):
            return  # the reference does not cover the membership tag
        ref = public.authenticated_content().proposal_ref(suite)
        why = {"rule": error.members.get("rule", error.code), "section": error.members.get("section", "")}
        refusal = json.dumps({**why, "detail": str(error)})
        proposals.add_proposal(tx, partition.id, ref, proposal_type=content.proposal_type, refusal=refusal)

    def _judgement(self, knowledge: Knowledge, key: tuple[object, ...], message: MLSMessage) -> Judgement:
        found = self._memo.get(key)
        if found is None:
            found = judge(knowledge, message)
            if _is_long(message):
                self._remember(key, found)
        return cast("Judgement", found)

    def _fits_elsewhere(self, tx: Tx, group: Group, here: Partition, message: MLSMessage) -> bool:
        others = partitions.partitions_of_epoch(tx, group.id, message.epoch or 0)[: OTHER_BRANCHES + 1]
        return any(self.signature_fits(tx, group, other, message) for other in others if other.id != here.id)

    # --- before the transaction ---------------------------------------------------------------------------------

    async def prepare(self, store: Store, hub: ProviderId, offered: Sequence[Submission]) -> None:
        """Load the states that messages will be judged by, and judge off the event loop what may take long."""
        public = [each for each in offered if isinstance(each.message.message, PublicMessage)]
        if not public:
            return

        def gather(tx: Tx) -> list[tuple[Submission, Knowledge, tuple[object, ...]]]:
            row = providers.provider_row(tx, hub) or 0
            loaded: set[PartitionKey] = set()
            found = []
            for each in public:
                long = _is_long_offer(each)
                if each.partition_key in loaded and not long:
                    continue  # the state is hot by now, and there is no more to do for it
                group = groups.find_group(tx, row, each.message.group_id or GroupId(b""))
                for partition in [] if group is None else self._meant(tx, group, each):
                    assert group is not None  # noqa: S101  # or nothing is meant
                    knowledge, key = self._knowledge_for(tx, group, partition, each.message)
                    if long:
                        found.append((each, knowledge, key))
                if each.partition_key is not None:
                    loaded.add(each.partition_key)
            return found

        for each, knowledge, key in await store.read(gather):
            group_info = None if each.commit_data is None else each.commit_data.group_info
            await trio.to_thread.run_sync(
                self._judge_ahead, each.message, knowledge, key, group_info, limiter=self._long
            )

    def _meant(self, tx: Tx, group: Group, offered: Submission) -> list[Partition]:
        if offered.partition_key is None:
            found = partitions.partitions_of_epoch(tx, group.id, offered.message.epoch or 0)
            return [partition for partition in found[:OTHER_BRANCHES] if partition.state is not None]
        partition = partitions.find_partition(tx, group.hub, offered.partition_key.masks())
        return [partition] if partition is not None and partition.group == group.id else []

    def _judge_ahead(
        self, message: MLSMessage, knowledge: Knowledge, key: tuple[object, ...], group_info: MLSMessage | None
    ) -> None:
        judgement = self._judgement(knowledge, key, message)
        self._remember(key, judgement)
        if message.content_type is ContentType.COMMIT and not isinstance(judgement.verdict, Invalid):
            with contextlib.suppress(MimiError):  # it is raised where the commit is sequenced
                self.after_commit(Judged(message, knowledge, judgement, key), group_info)

    async def prepare_claim(self, group: Group, epoch: int | None, opening: GroupInfoResponse) -> None:
        """Verify an opening off the event loop, for `claimed`."""

        def verify() -> None:
            with contextlib.suppress(MimiError):
                self.claimed(group, epoch, opening)

        await trio.to_thread.run_sync(verify, limiter=self._long)

    async def open_creation(self, request: CreateGroupRequest) -> OpenedGroup:
        """Return what is known of a group that is created; raises as `after_commit` does."""
        suite = suite_of(request.cipher_suite)
        if suite is None or request.version != MLS10:
            raise InvalidMessage(UNKNOWN_SUITE.text, rule=UNKNOWN_SUITE.name, section=UNKNOWN_SUITE.section)
        info = None if request.group_info is None else _group_info(request.group_info)
        start = partial(begin, info, request.ratchet_tree, group_id=request.group_id, suite=suite)
        try:
            knowledge = await trio.to_thread.run_sync(start, limiter=self._long) if info else start()
        except RuleError as error:
            raise _group_info_refused(error.invalid) from None
        return OpenedGroup(epoch_of(knowledge), knowledge)

    # --- the store ----------------------------------------------------------------------------------------------

    def mask(self, group: Group, masks: Sequence[MaskedPartitionKey]) -> MaskedPartitionKey:
        """Return the mask that the group's suite makes of a partition key."""
        suite = suite_of(group.cipher_suite)
        return next(mask for mask in masks if suite is None or len(mask) == suite.hash_size)

    def knowledge(self, tx: Tx, group: Group, partition: Partition) -> Knowledge:
        """Return what is known of a partition, without its proposals."""
        stored = partition.state
        suite = suite_of(group.cipher_suite)
        if stored is None or suite is None:
            return NotKnown(partition.epoch, group.group_id, suite)
        key = _state_key(stored)
        with self._caching:
            found = self._hot.get(key)
            if found is not None:
                self._hot.move_to_end(key)
        if found is None:
            tree = load(suite, stored.root_hash, partial(_fetch, tx))
            found = restore_group(
                stored.group_context, stored.confirmation_tag, tree, reinitialized=stored.reinitialized
            )
            self._keep_hot(key, found)
        return Derived(found) if stored.derived else Claimed(found)

    def save(self, tx: Tx, partition: int, knowledge: Knowledge, before: Knowledge | None = None) -> None:
        """Store what is known of a partition; `before` is its parent's, whose nodes are stored already."""
        group = state_of(knowledge)
        if group is None:
            partitions.set_state(tx, partition, None)
            return
        parent = None if before is None else state_of(before)
        rows = all_nodes(group.tree) if parent is None else changed_nodes(parent.tree, group.tree)
        trees.keep_nodes(tx, ((row.tree_hash, row.node, row.left, row.right) for row in rows))
        stored = StoredState(
            derived=isinstance(knowledge, Derived),
            root_hash=group.tree.tree_hash(),
            group_context=group.context.encoded,
            confirmation_tag=group.confirmation_tag,
            reinitialized=group.reinitialized,
        )
        partitions.set_state(tx, partition, stored)
        bare = attrs.evolve(group, pending=NO_PENDING, refused=NO_REFUSED)
        self._keep_hot(_state_key(stored), bare)

    # --- what others ask ----------------------------------------------------------------------------------------

    def has_leaf_of(self, tx: Tx, group: Group, partition: Partition, provider: ProviderId) -> bool:
        """Tell whether the partition's known state has a leaf of one of a provider's users; False if not known."""
        state = state_of(self.knowledge(tx, group, partition))
        if state is None or partition.state is None:
            return False
        key = _state_key(partition.state)
        found = self._providers.get(key)
        if found is None:
            domains = {provider_of(user) for user in state.users()}
            found = self._providers[key] = frozenset(domain for domain in domains if domain is not None)
            if len(self._providers) > CACHED_JUDGEMENTS:
                self._providers.popitem(last=False)
        return provider in found

    def is_joinable(self, message: MLSMessage) -> bool:
        """Tell whether a GroupInfo carries the key that external commits are made with."""
        info = message.message
        return isinstance(info, GroupInfo) and extension_data(info.extensions, ExtensionType.EXTERNAL_PUB) is not None

    def inferred_tree(self, tx: Tx, group: Group, partition: Partition, message: MLSMessage) -> RatchetTree | None:
        """Return the tree of a GroupInfo that carries none; GroupInfoTBS covers the extensions, so none is inserted."""
        info = message.message
        state = state_of(self.knowledge(tx, group, partition))
        if state is None or not isinstance(info, GroupInfo):
            return None
        if extension_data(info.extensions, ExtensionType.RATCHET_TREE) is not None:
            return None
        return RatchetTree(state.tree.encode())

    # --- inside -------------------------------------------------------------------------------------------------

    def _knowledge_for(
        self, tx: Tx, group: Group, partition: Partition, message: MLSMessage
    ) -> tuple[Knowledge, tuple[object, ...]]:
        """Return what is known, with those proposals that judging this message looks at, and all that it hangs on."""
        knowledge = self.knowledge(tx, group, partition)
        digest = messages.digest_of(message.encoded)
        rows = _proposals_read(tx, partition, message)
        state = None if partition.state is None else (partition.state.derived, *_state_key(partition.state))
        key = (state, partition.epoch, group.id, digest, tuple((row.ref, row.seq, row.refusal) for row in rows))
        if not rows:
            return knowledge, key
        pending: dict[ProposalRef, Covered] = {}
        refusals: dict[ProposalRef, Invalid] = {}
        for row in rows:
            ref = ProposalRef(row.ref)
            if row.seq is None:
                refusals[ref] = _refusal(row.refusal)
            elif (covered := _covered(messages.body_of(tx, row.seq), ref)) is not None:
                pending[ref] = covered
        if isinstance(knowledge, NotKnown):
            return attrs.evolve(knowledge, refused=refusals), key
        return attrs.evolve(knowledge, group=attrs.evolve(knowledge.group, pending=pending, refused=refusals)), key

    def _keep_hot(self, key: StateKey, group: PublicGroup) -> None:
        with self._caching:
            if key in self._hot:
                return
            self._hot[key] = group
            self._hot_octets += group.size_estimate
            while self._hot_octets > CACHED_OCTETS and len(self._hot) > 1:
                _, dropped = self._hot.popitem(last=False)
                self._hot_octets -= dropped.size_estimate

    def _remember(self, key: tuple[object, ...], found: object) -> None:
        self._memo[key] = found
        if len(self._memo) > CACHED_JUDGEMENTS:
            self._memo.popitem(last=False)


def _state_key(stored: StoredState) -> StateKey:
    return stored.root_hash, _digest(stored.group_context), stored.confirmation_tag, stored.reinitialized


@lru_cache(maxsize=64)
def _digest(group_context: bytes) -> bytes:
    return hashlib.sha256(group_context).digest()


def _is_long(message: MLSMessage) -> bool:
    return len(message.encoded) > LONG_OCTETS


def _is_long_offer(offered: Submission) -> bool:
    carries_group_info = offered.commit_data is not None and offered.commit_data.group_info is not None
    return carries_group_info or _is_long(offered.message)


def _group_info(message: MLSMessage) -> GroupInfo:
    if not isinstance(message.message, GroupInfo):
        raise GroupInfoMismatch("group_info holds no GroupInfo")
    return message.message


def _group_info_refused(invalid: Invalid) -> MimiError:
    kind = RatchetTreeNeeded if invalid.rule is TREE_NEEDED else GroupInfoMismatch
    return kind(invalid.detail, rule=invalid.rule.name, section=invalid.section)


def _suite_of(knowledge: Knowledge) -> Suite | None:
    return knowledge.suite if isinstance(knowledge, NotKnown) else knowledge.group.suite


def _proposals_read(tx: Tx, partition: Partition, message: MLSMessage) -> list[StoredProposal]:
    """Return the partition's proposals that judging a message looks at: those it covers, or all SelfRemoves."""
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


def _covered(body: bytes | None, ref: ProposalRef) -> Covered | None:
    if body is None:
        return None
    public = decode(MLSMessage, body).message
    if not isinstance(public, PublicMessage) or not isinstance(public.content.content, Proposal):
        return None
    return Covered(public.content.content, public.content.sender, ref)


def _refusal(stored: str | None) -> Invalid:
    why = json.loads(stored or "{}")
    name = str(why.get("rule", ""))
    rule = RULES.get(name) or Rule(name, str(why.get("section", "")), str(why.get("detail", "")))
    return Invalid(rule, str(why.get("section", "")), str(why.get("detail", "")))


def _fetch(tx: Tx, tree_hash: bytes) -> NodeRow | None:
    found = trees.fetch_node(tx, tree_hash)
    return None if found is None else NodeRow(*found)
