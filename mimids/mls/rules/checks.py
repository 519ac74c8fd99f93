"""Judge a message in a state (`check`), and return the state that a commit leads to (`apply`). No state is modified.

The signatures of members and external joiners cover the GroupContext, so a message whose signature verifies was made in
exactly this state (RFC 9420 section 6.1). Membership and confirmation tags cannot be verified without secrets, so only
their length is checked.
"""

from __future__ import annotations

from typing import Final

from mimids.mls.code_points import ContentType, SenderType
from mimids.mls.framing import AuthenticatedContent, MLSMessage, PrivateMessage, PublicMessage, Sender
from mimids.mls.proposals import Add, Commit, Proposal, ProposalOrRef, ProposalRef, SelfRemove
from mimids.mls.public_group import PublicGroup, Valid, Verdict
from mimids.mls.rules.commit import check_commit, check_path
from mimids.mls.rules.proposal import check_alone, check_demands, check_in_group, check_in_suite
from mimids.mls.rules.proposal_list import Covered, check_list
from mimids.mls.rules.verdict import (
    APPLICATION_IN_CLEAR,
    BLANK_SENDER,
    CIPHERTEXT_LENGTH,
    CONFIRMATION_TAG_LENGTH,
    ENCRYPTED_COMMIT,
    MEMBERSHIP_TAG_LENGTH,
    REINITIALIZED,
    SELF_REMOVE_TWICE,
    SENDER_CONTENT,
    SENDER_DATA_LENGTH,
    SIGNATURE,
    UNLISTED_SENDER,
    WRONG_EPOCH,
    WRONG_GROUP,
    Invalid,
    Missing,
    RuleError,
    Unknown,
    reject,
)
from mimids.mls.suites import Suite, suite_of

# The AEAD of every suite has a tag of 16 octets; SenderData are 12 octets (section 6.3.2).
_SENDER_DATA_SIZE: Final = 12 + 16
_SHORTEST_CIPHERTEXT: Final = 2 + 16  # empty content and the signature's length, encrypted (section 6.3.1)


def signature_fits(group: PublicGroup, message: MLSMessage) -> bool:
    """Tell whether a member or external joiner signed a PublicMessage in this state; costs one verification."""
    public = message.message
    if not isinstance(public, PublicMessage):
        return False
    sender = public.content.sender
    if sender.sender_type not in (SenderType.MEMBER, SenderType.NEW_MEMBER_COMMIT):
        return False
    try:
        key = _signature_key(group, public)
    except RuleError:
        return False
    return public.authenticated_content().verifies(group.suite, key, group.context.encoded)


def covered_proposals(group: PublicGroup, message: MLSMessage) -> tuple[Covered | ProposalRef, ...]:
    """Return the proposals that a public commit covers, in order; an unseen proposal is given by its reference."""
    public = message.message
    if not isinstance(public, PublicMessage) or not isinstance(public.content.content, Commit):
        return ()
    sender = public.content.sender
    return tuple(_covered(group, each, sender) for each in public.content.content.proposals)


def _covered(group: PublicGroup, item: ProposalOrRef, committer: Sender) -> Covered | ProposalRef:
    if isinstance(item.value, Proposal):
        return Covered(item.value, committer)
    return group.pending.get(item.value, item.value)


def check(group: PublicGroup, message: MLSMessage) -> Verdict:
    """Judge a PublicMessage or PrivateMessage in this state.

    The verdict on a valid commit carries the next state. The verdict on a valid proposal carries its reference, which
    `record` stores. Raises `TypeError` for other kinds of message.
    """
    try:
        check_framing(message)
        check_place(message, group.group_id, group.epoch)
        if group.reinitialized:
            reject(REINITIALIZED)
        if isinstance(message.message, PublicMessage):
            return _check_public(group, message.message)
    except RuleError as error:
        return error.invalid
    if message.content_type is ContentType.COMMIT:
        return Unknown((Missing(ENCRYPTED_COMMIT),))
    return Valid()


def apply(group: PublicGroup, message: MLSMessage) -> PublicGroup:
    """Return the state that a commit leads to; raise `RuleError` if it is invalid, `LookupError` if it is unknown."""
    verdict = check(group, message)
    if isinstance(verdict, Invalid):
        raise RuleError(verdict)
    if isinstance(verdict, Unknown) or verdict.next is None:
        raise LookupError("the state that this message leads to is unknown")
    return verdict.next


def record(group: PublicGroup, message: MLSMessage, verdict: Verdict) -> PublicGroup:
    """Return this epoch's state with a judged proposal added as pending or refused; other messages change nothing."""
    public = message.message
    if not isinstance(public, PublicMessage) or not isinstance(public.content.content, Proposal):
        return group
    known = verdict.ref if isinstance(verdict, Valid) else None
    ref = known or public.authenticated_content().proposal_ref(group.suite)
    if isinstance(verdict, Valid):
        return group.with_pending(ref, Covered(public.content.content, public.content.sender, ref))
    if (
        isinstance(verdict, Invalid) and verdict.rule is not MEMBERSHIP_TAG_LENGTH
    ):  # the reference does not cover the tag
        return group.with_refused(ref, verdict)
    return group


def check_framing(message: MLSMessage) -> None:
    """Check which sender may send which content, and the lengths that are the same for every suite."""
    framed = message.message
    if isinstance(framed, PrivateMessage):
        if len(framed.encrypted_sender_data) != _SENDER_DATA_SIZE:
            reject(SENDER_DATA_LENGTH)
        if len(framed.ciphertext) < _SHORTEST_CIPHERTEXT:
            reject(CIPHERTEXT_LENGTH)
        return
    if not isinstance(framed, PublicMessage):
        raise TypeError("only PublicMessages and PrivateMessages are sent to a group")
    if framed.content_type is ContentType.APPLICATION:
        reject(APPLICATION_IN_CLEAR)
    sender = framed.content.sender.sender_type
    only_commits = sender is SenderType.NEW_MEMBER_COMMIT
    if sender is not SenderType.MEMBER and (framed.content_type is ContentType.COMMIT) != only_commits:
        reject(SENDER_CONTENT)


def check_without_state(message: MLSMessage) -> None:
    """Check the rules that hold in any state of any group; raise `RuleError`."""
    check_framing(message)
    public = message.message
    if not isinstance(public, PublicMessage):
        return
    sender, content = public.content.sender, public.content.content
    if isinstance(content, Proposal):
        check_alone(content, sender)
        if sender.sender_type is SenderType.NEW_MEMBER_PROPOSAL and isinstance(content.body, Add):
            suite = suite_of(content.body.key_package.cipher_suite)
            if suite is None or not public.authenticated_content().verifies(suite, _own_key(content), b""):
                reject(SIGNATURE)
    elif isinstance(content, Commit):
        by_value = tuple(Covered(each, sender) for each in _by_value(content))
        check_list(by_value, sender, content)
        for each in by_value:
            check_alone(each.proposal, sender)


def check_in_any_epoch(public: PublicMessage, suite: Suite) -> None:
    """Check the rules that hold in every epoch of a group with this suite; raise `RuleError`."""
    check_tags(public, suite)
    sender, content = public.content.sender, public.content.content
    for each in _by_value(content):
        check_in_suite(each, sender, suite, public.group_id)
    if isinstance(content, Commit) and content.path is not None:
        check_path(content.path, sender.index, suite, public.group_id)


def _by_value(content: bytes | Proposal | Commit) -> tuple[Proposal, ...]:
    """Return a proposal message's proposal, or the proposals that a commit carries by value."""
    if isinstance(content, Proposal):
        return (content,)
    items = content.proposals if isinstance(content, Commit) else ()
    return tuple(each.value for each in items if isinstance(each.value, Proposal))


def check_place(message: MLSMessage, group_id: bytes | None, epoch: int | None) -> None:
    """Check that a message is for this group and epoch; a value of None skips its check."""
    if group_id is not None and message.group_id != group_id:
        reject(WRONG_GROUP)
    if epoch is not None and message.epoch != epoch:
        reject(WRONG_EPOCH, f"the message is from epoch {message.epoch}, not {epoch}")


def check_tags(public: PublicMessage, suite: Suite) -> None:
    """Check that tags are as long as the suite's MAC (RFC 9420 sections 6.1, 6.2); more needs the epoch's keys."""
    if public.confirmation_tag is not None and len(public.confirmation_tag) != suite.hash_size:
        reject(CONFIRMATION_TAG_LENGTH)
    if public.membership_tag is not None and len(public.membership_tag) != suite.hash_size:
        reject(MEMBERSHIP_TAG_LENGTH)


def _check_public(group: PublicGroup, public: PublicMessage) -> Verdict:
    check_tags(public, group.suite)
    authenticated = public.authenticated_content()
    if not authenticated.verifies(group.suite, _signature_key(group, public), group.context.encoded):
        reject(SIGNATURE)
    content = public.content.content
    if isinstance(content, Proposal):
        return Valid(ref=_check_proposal(group, authenticated, content))
    assert isinstance(content, Commit)  # noqa: S101 - check_framing refuses everything else
    items = tuple(_covered(group, each, public.content.sender) for each in content.proposals)
    return check_commit(group, authenticated, content, items)


def _check_proposal(group: PublicGroup, authenticated: AuthenticatedContent, proposal: Proposal) -> ProposalRef:
    sender = authenticated.content.sender
    ref = authenticated.proposal_ref(group.suite)
    check_alone(proposal, sender)
    check_demands(proposal, group.parameters)
    check_in_group(proposal, sender, group.tree, group.parameters, group_id=group.group_id, epoch=group.epoch)
    if isinstance(proposal.body, SelfRemove) and any(
        other != ref and group.pending[other].sender == sender for other in group.self_removes()
    ):
        reject(SELF_REMOVE_TWICE)
    return ref


def _signature_key(group: PublicGroup, public: PublicMessage) -> bytes:
    """Return the key that must verify the sender's signature (RFC 9420 section 6.1)."""
    sender, content = public.content.sender, public.content.content
    if sender.sender_type is SenderType.MEMBER:
        leaf = None if sender.index is None else group.tree.leaf(sender.index)
        if leaf is None:
            reject(BLANK_SENDER)
        return leaf.signature_key
    if sender.sender_type is SenderType.EXTERNAL:
        senders = group.parameters.external_senders
        if sender.index is None or sender.index >= len(senders):
            reject(UNLISTED_SENDER)
        return senders[sender.index].signature_key
    return _own_key(content)


def _own_key(content: bytes | Proposal | Commit) -> bytes:
    """Return the signature key that a new member's message contains (RFC 9420 section 6.1)."""
    if isinstance(content, Commit) and content.path is not None:
        return content.path.leaf_node.signature_key
    if isinstance(content, Proposal) and isinstance(content.body, Add):
        return content.body.key_package.leaf_node.signature_key
    reject(SIGNATURE, "the message contains no key to verify its signature with")
