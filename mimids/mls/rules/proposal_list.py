"""Rules for the list of proposals that a commit covers (RFC 9420 section 12.2, draft-ietf-mls-extensions).

If a part of the list breaks one of these rules, the whole list breaks this rule. So the rules can be checked on a part:
the list without the proposals that were never seen or, if the state is unknown, without all references.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import attrs

from mimids.mls.code_points import AppDataUpdateOperation, SenderType
from mimids.mls.framing import Sender
from mimids.mls.proposals import (
    Add,
    AppDataUpdate,
    Commit,
    ExternalInit,
    GroupContextExtensions,
    PreSharedKey,
    Proposal,
    ProposalRef,
    ReInit,
    Remove,
    SelfRemove,
    Update,
)
from mimids.mls.rules.verdict import (
    COMPONENT_LIST,
    DUPLICATE_ADD,
    DUPLICATE_PSK,
    EXTERNAL_COMMIT_INIT,
    EXTERNAL_COMMIT_PROPOSAL,
    EXTERNAL_COMMIT_REFERENCE,
    EXTERNAL_COMMIT_REMOVE,
    OWN_REMOVE,
    OWN_UPDATE,
    PATH_MISSING,
    REINIT_ALONE,
    SAME_LEAF,
    SELF_REMOVE_BY_VALUE,
    TWO_GROUP_CONTEXT_EXTENSIONS,
    reject,
)

NEEDS_PATH = (Update, Remove, ExternalInit, GroupContextExtensions, SelfRemove)


@attrs.frozen
class Covered:
    """A proposal that a commit covers, its sender, and the reference that names it (None if it is carried by value)."""

    proposal: Proposal
    sender: Sender
    ref: ProposalRef | None = None


def removed_leaf(covered: Covered) -> int | None:
    """Return the leaf index that a proposal removes, None if it removes no member."""
    body = covered.proposal.body
    if isinstance(body, Remove):
        return body.removed
    return covered.sender.index if isinstance(body, SelfRemove) else None


def check_list(known: tuple[Covered, ...], committer: Sender, commit: Commit) -> None:
    """Check the known proposals of a commit's list; raise `RuleError`."""
    for each in known:
        if isinstance(each.proposal.body, SelfRemove) and each.ref is None:
            reject(SELF_REMOVE_BY_VALUE)
    if committer.sender_type is SenderType.NEW_MEMBER_COMMIT:
        _check_external(known, commit)
    else:
        _check_regular(known, committer, commit)
    bodies = [each.proposal.body for each in known]
    touched = [removed_leaf(each) for each in known]
    touched += [each.sender.index for each in known if isinstance(each.proposal.body, Update)]
    if _repeats(index for index in touched if index is not None):
        reject(SAME_LEAF)
    if _repeats(body.psk for body in bodies if isinstance(body, PreSharedKey)):
        reject(DUPLICATE_PSK)
    updates = [body for body in bodies if isinstance(body, AppDataUpdate)]
    removed = Counter(body.component_id for body in updates if body.op is AppDataUpdateOperation.REMOVE)
    if any(count > 1 for count in removed.values()) or any(
        body.op is AppDataUpdateOperation.UPDATE and body.component_id in removed for body in updates
    ):
        reject(COMPONENT_LIST)
    if commit.path is None and (not commit.proposals or any(isinstance(body, NEEDS_PATH) for body in bodies)):
        reject(PATH_MISSING)


def _check_regular(known: tuple[Covered, ...], committer: Sender, commit: Commit) -> None:
    bodies = [each.proposal.body for each in known]
    if any(isinstance(each.proposal.body, Update) and each.sender == committer for each in known):
        reject(OWN_UPDATE)
    if any(removed_leaf(each) == committer.index for each in known):
        reject(OWN_REMOVE)
    if _repeats(body.key_package.leaf_node.signature_key for body in bodies if isinstance(body, Add)):
        reject(DUPLICATE_ADD)
    if sum(isinstance(body, GroupContextExtensions) for body in bodies) > 1:
        reject(TWO_GROUP_CONTEXT_EXTENSIONS)
    if len(commit.proposals) > 1 and any(isinstance(body, ReInit) for body in bodies):
        reject(REINIT_ALONE)


def _check_external(known: tuple[Covered, ...], commit: Commit) -> None:
    if any(each.ref is not None and not _may_be_self_remove(each.proposal) for each in known):
        reject(EXTERNAL_COMMIT_REFERENCE)
    bodies = [each.proposal.body for each in known if each.ref is None]
    if sum(isinstance(body, ExternalInit) for body in bodies) != 1:
        reject(
            EXTERNAL_COMMIT_INIT
        )  # certain, although proposals may be unseen: an ExternalInit cannot come by reference
    if sum(isinstance(body, Remove) for body in bodies) > 1:
        reject(EXTERNAL_COMMIT_REMOVE)
    if any(isinstance(body, Add | Update | GroupContextExtensions | ReInit) for body in bodies):
        reject(EXTERNAL_COMMIT_PROPOSAL)  # PSKs, AppDataUpdate, AppEphemeral are allowed; unknown types may be
    if commit.path is None:
        reject(PATH_MISSING, section="RFC 9420 section 12.4.3.2")


def _may_be_self_remove(proposal: Proposal) -> bool:
    """Tell whether a proposal is a SelfRemove or not understood: mls-rs sends a SelfRemove with the type 0xF003."""
    return isinstance(proposal.body, SelfRemove) or not proposal.is_understood


def unknown_types(known: Iterable[Covered]) -> tuple[int, ...]:
    """Return the proposal types whose effect this server does not know, in order."""
    return tuple(int(each.proposal.proposal_type) for each in known if not each.proposal.is_understood)


def _repeats(values: Iterable[object]) -> bool:
    found = list(values)
    return len(set(found)) != len(found)
