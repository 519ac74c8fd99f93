"""What the server knows of a partition's state: derived, claimed or unknown (semantics: public-group-state).

- Derived: the state follows from the creation's GroupInfo and from commits that were seen completely. A message that
  contradicts it is refused.
- Claimed: a member signed this state after a change that was not seen. The state was verified by itself, but the claim
  may be wrong. So a message that contradicts it is not refused; the state becomes unknown.
- Unknown (`NotKnown`): a message is refused only if it breaks a rule that holds in any state
  (checks.check_without_state) or in any epoch of the group (checks.check_in_any_epoch), if its group id or epoch is
  wrong, or if it covers a refused proposal.

The epoch is known without the state, because every commit adds one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from mimids.mls.code_points import ContentType, ExtensionType
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.leaf_node import extension_data
from mimids.mls.opening import open_group
from mimids.mls.proposals import Commit, ProposalRef
from mimids.mls.public_group import MAX_REFUSED, NO_REFUSED, PublicGroup, Valid, Verdict
from mimids.mls.rules.checks import (
    check,
    check_in_any_epoch,
    check_place,
    check_without_state,
    covered_proposals,
    record,
)
from mimids.mls.rules.commit import possible_trees
from mimids.mls.rules.parameters import check_unique
from mimids.mls.rules.verdict import (
    ENCRYPTED_COMMIT,
    GROUP_INFO_CONTRADICTS,
    GROUP_INFO_SIGNATURE,
    GROUP_INFO_TAG,
    STATE,
    TREE_NEEDED,
    Invalid,
    Missing,
    RuleError,
    Unknown,
    reject,
    reject_covering,
)
from mimids.mls.suites import Suite
from mimids.mls.tree.ratchet_tree import RatchetTree


@attrs.frozen
class Derived:
    """The state follows from messages that were seen."""

    group: PublicGroup


@attrs.frozen
class Claimed:
    """A member signed a statement that this is the state. If `epoch_known` is false, the epoch is only claimed, too."""

    group: PublicGroup
    epoch_known: bool = True


@attrs.frozen
class NotKnown:
    """The state is unknown. Fields that are None are unknown too, such as the epoch of a detached partition."""

    epoch: int | None = None
    group_id: bytes | None = None
    suite: Suite | None = None
    refused: Mapping[ProposalRef, Invalid] = NO_REFUSED


Knowledge = Derived | Claimed | NotKnown


@attrs.frozen
class Judgement:
    """A verdict on a message, and what is known of the partition after it.

    `contradicted` is the rule that the message breaks if the claimed state is right. The message is not refused for
    this; instead the state becomes unknown.
    """

    verdict: Verdict
    knowledge: Knowledge
    contradicted: Invalid | None = None


def begin(info: GroupInfo | None, ratchet_tree: bytes | None = None, *, group_id: bytes, suite: Suite) -> Knowledge:
    """Return what is known of a new group: derived state if its GroupInfo is given, else unknown; raise `RuleError`."""
    if info is None:
        return NotKnown(None, group_id, suite)
    group = open_group(info, ratchet_tree)
    if group.group_id != group_id or group.suite is not suite:
        reject(GROUP_INFO_CONTRADICTS, "the GroupInfo is for another group or cipher suite")
    return Derived(group)


def state_of(knowledge: Knowledge) -> PublicGroup | None:
    """Return the derived or claimed state, None if it is unknown."""
    return None if isinstance(knowledge, NotKnown) else knowledge.group


def epoch_of(knowledge: Knowledge) -> int | None:
    """Return the epoch, which is known even if the state is not; None in a detached partition."""
    if isinstance(knowledge, NotKnown):
        return knowledge.epoch
    return None if isinstance(knowledge, Claimed) and not knowledge.epoch_known else knowledge.group.epoch


def judge(knowledge: Knowledge, message: MLSMessage) -> Judgement:
    """Judge a PublicMessage or PrivateMessage sent to a partition; raise `TypeError` for other messages."""
    if isinstance(knowledge, Derived):
        verdict = check(knowledge.group, message)
        return Judgement(verdict, Derived(record(knowledge.group, message, verdict)))
    unknown = knowledge if isinstance(knowledge, NotKnown) else _drop_state(knowledge)
    try:
        _check_in_any_state(unknown, message)
    except RuleError as error:
        return Judgement(error.invalid, _with_refused(knowledge, message, error.invalid))
    if isinstance(knowledge, Claimed):
        verdict = check(knowledge.group, message)
        if not isinstance(verdict, Invalid):
            after = attrs.evolve(knowledge, group=record(knowledge.group, message, verdict))
            return Judgement(verdict, after)
        return Judgement(_judge_without_state(message), unknown, contradicted=verdict)
    return Judgement(_judge_without_state(message), knowledge)


def refuse(knowledge: Knowledge, message: MLSMessage, why: Invalid) -> Knowledge:
    """Return what is known after the caller has refused a proposal, which a commit must not cover from now on."""
    return _with_refused(knowledge, message, why)


def next_knowledge(
    judgement: Judgement, message: MLSMessage, info: GroupInfo | None = None, ratchet_tree: bytes | None = None
) -> Knowledge:
    """Return what is known of the partition that a commit opens; `info` is the GroupInfo sent with the commit.

    `judgement` is the result of `judge` on the commit. Raises `RuleError` if the commit is invalid, or if the GroupInfo
    is invalid by itself or contradicts the commit or derived state. If the GroupInfo has no tree and no tree was
    inferred, `RuleError` is raised for an encrypted commit. For a public commit the state then stays unknown, because
    its sender cannot know which proposals this server has seen.
    """
    if message.content_type is not ContentType.COMMIT:
        raise TypeError("only a commit leads to the next epoch")
    verdict, before = judgement.verdict, judgement.knowledge
    if isinstance(verdict, Invalid):
        raise RuleError(verdict)
    following = _knowledge_after(judgement)
    if info is None:
        return following
    public = message.message if isinstance(message.message, PublicMessage) else None
    if public is not None and info.confirmation_tag != public.confirmation_tag:
        reject(GROUP_INFO_TAG)  # this holds even if the state is unknown
    if info.group_context.epoch != (message.epoch or 0) + 1:
        reject(GROUP_INFO_CONTRADICTS, "the GroupInfo's epoch is not the epoch after the commit")
    tree: bytes | RatchetTree | None = ratchet_tree
    group = state_of(before)
    if group is not None and isinstance(following, NotKnown):
        stated = info.group_context.confirmed_transcript_hash
        if public is not None and stated != group.transcript_after(public.authenticated_content()):
            if isinstance(before, Derived):
                reject(GROUP_INFO_CONTRADICTS, "the GroupInfo's transcript hash is not the hash after the commit")
            return following
        tree = _inferred_tree(group, message, info) if ratchet_tree is None else ratchet_tree
    try:
        return with_group_info(following, info, tree)
    except RuleError as error:
        if public is None or error.invalid.rule is not TREE_NEEDED:
            raise
        return following


def _inferred_tree(group: PublicGroup, commit: MLSMessage, info: GroupInfo) -> RatchetTree:
    """Return the tree after a commit whose effects are not known.

    This is the possible tree with the GroupInfo's tree hash. If no possible tree has that hash, the tree before the
    commit is returned.
    """
    public = commit.message
    if isinstance(public, PublicMessage):
        items = covered_proposals(group, commit)
        for tree in possible_trees(group, public.authenticated_content(), items):
            if tree.tree_hash() == info.group_context.tree_hash:
                return tree
    return group.tree


def with_group_info(
    knowledge: Knowledge, info: GroupInfo, ratchet_tree: bytes | RatchetTree | None = None
) -> Knowledge:
    """Return what is known of a partition after a GroupInfo for it arrives; raise `RuleError` if it is refused.

    An unknown state becomes claimed. If the GroupInfo agrees with the state, nothing changes. If it contradicts derived
    state, it is refused. If it contradicts a claimed state, the state becomes unknown, since either claim may be wrong.
    """
    if isinstance(knowledge, NotKnown):
        _check_identity(knowledge, info)
        group = _with_all_refused(open_group(info, ratchet_tree), knowledge.refused)
        return Claimed(group, epoch_known=knowledge.epoch is not None)
    try:
        _check_agrees(knowledge.group, info)
    except RuleError:
        if isinstance(knowledge, Derived):
            raise
        unknown = _drop_state(knowledge)
        _check_identity(unknown, info)
        open_group(info, ratchet_tree)  # an invalid GroupInfo is refused in any case
        return unknown
    return knowledge


def _check_in_any_state(unknown: NotKnown, message: MLSMessage) -> None:
    """Check the rules that hold in any state, and that a commit covers no refused proposal."""
    check_without_state(message)
    check_place(message, unknown.group_id, unknown.epoch)
    public = message.message
    if not isinstance(public, PublicMessage):
        return
    if unknown.suite is not None:
        check_in_any_epoch(public, unknown.suite)
    if isinstance(public.content.content, Commit):
        for item in public.content.content.proposals:
            if isinstance(item.value, bytes) and item.value in unknown.refused:
                reject_covering(unknown.refused[item.value])


def _judge_without_state(message: MLSMessage) -> Verdict:
    """Return the verdict on a message that passed `_check_in_any_state` in an unknown state."""
    if isinstance(message.message, PublicMessage):
        return Unknown((Missing(STATE),))
    return Unknown((Missing(ENCRYPTED_COMMIT),)) if message.content_type is ContentType.COMMIT else Valid()


def _drop_state(knowledge: Derived | Claimed) -> NotKnown:
    group = knowledge.group
    return NotKnown(epoch_of(knowledge), group.group_id, group.suite, group.refused)


def _knowledge_after(judgement: Judgement) -> Knowledge:
    verdict, before = judgement.verdict, judgement.knowledge
    if isinstance(verdict, Valid) and verdict.next is not None:
        return attrs.evolve(before, group=verdict.next) if isinstance(before, Claimed) else Derived(verdict.next)
    epoch = epoch_of(before)
    here = before if isinstance(before, NotKnown) else _drop_state(before)
    return NotKnown(None if epoch is None else epoch + 1, here.group_id, here.suite)


def _with_refused(knowledge: Knowledge, message: MLSMessage, why: Invalid) -> Knowledge:
    """Store the reference of a refused proposal, as `checks.record` does in a known state."""
    if not isinstance(knowledge, NotKnown):
        return attrs.evolve(knowledge, group=record(knowledge.group, message, why))
    public = message.message
    if knowledge.suite is None or not isinstance(public, PublicMessage) or public.content_type is ContentType.COMMIT:
        return knowledge
    ref = public.authenticated_content().proposal_ref(knowledge.suite)
    if ref in knowledge.refused or len(knowledge.refused) >= MAX_REFUSED:
        return knowledge
    return attrs.evolve(knowledge, refused=MappingProxyType({**knowledge.refused, ref: why}))


def _with_all_refused(group: PublicGroup, refused: Mapping[ProposalRef, Invalid]) -> PublicGroup:
    return attrs.evolve(group, refused=refused) if refused else group


def _check_identity(knowledge: NotKnown, info: GroupInfo) -> None:
    """Check the GroupInfo's group, epoch and suite, which may be known without the state."""
    context = info.group_context
    if knowledge.group_id is not None and context.group_id != knowledge.group_id:
        reject(GROUP_INFO_CONTRADICTS, "the GroupInfo is for another group")
    if knowledge.epoch is not None and context.epoch != knowledge.epoch:
        reject(GROUP_INFO_CONTRADICTS, "the GroupInfo is for another epoch")
    if knowledge.suite is not None and context.cipher_suite != knowledge.suite.code:
        reject(GROUP_INFO_CONTRADICTS, "the GroupInfo is for another cipher suite")


def _check_agrees(group: PublicGroup, info: GroupInfo) -> None:
    check_unique(info.extensions)
    if info.group_context.encoded != group.context.encoded:
        reject(GROUP_INFO_CONTRADICTS)
    if info.confirmation_tag != group.confirmation_tag:
        reject(GROUP_INFO_TAG)
    tree = extension_data(info.extensions, ExtensionType.RATCHET_TREE)
    if tree is not None and tree != group.tree.encode():  # a tree has only one encoding
        reject(GROUP_INFO_CONTRADICTS, "the GroupInfo has another tree")
    signer = group.tree.leaf(info.signer)
    if signer is None or not info.verifies(group.suite, signer.signature_key):
        reject(GROUP_INFO_SIGNATURE)
