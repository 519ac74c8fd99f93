"""Commits: the rules of RFC 9420 sections 12.3 and 12.4.2, and the state that a commit leads to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import attrs

from mimids.mls.code_points import AppDataUpdateOperation, ExtensionType, LeafNodeSource, ProposalType, SenderType
from mimids.mls.components import AppDataDictionary, apply_update
from mimids.mls.faults import FaultError
from mimids.mls.framing import AuthenticatedContent
from mimids.mls.group_info import GroupContext
from mimids.mls.leaf_node import Extension, LeafNode
from mimids.mls.proposals import (
    Add,
    AppDataUpdate,
    AppEphemeral,
    Commit,
    GroupContextExtensions,
    Proposal,
    ProposalRef,
    ReInit,
    SelfRemove,
    Unparsed,
    Update,
    UpdatePath,
)
from mimids.mls.public_group import PublicGroup, Valid, Verdict
from mimids.mls.rules.parameters import Parameters, check_members, parameters_of
from mimids.mls.rules.proposal import check_alone, check_in_group, check_leaf, check_successor
from mimids.mls.rules.proposal_list import Covered, check_list, removed_leaf, unknown_types
from mimids.mls.rules.verdict import (
    ALREADY_MEMBER,
    COMPONENT,
    COMPONENT_ABSENT,
    COMPONENT_UPDATE,
    ENCRYPTION_KEY_UNIQUE,
    LAST_EPOCH,
    LEAF_SOURCE,
    PATH_CIPHERTEXTS,
    PATH_KEY,
    PATH_KEY_REUSED,
    PATH_LENGTH,
    PATH_PARENT_HASH,
    PROPOSAL,
    PROPOSAL_SUPPORT,
    PROPOSAL_TYPE,
    SIGNATURE_KEY_UNIQUE,
    Missing,
    RuleError,
    Unknown,
    reject,
    reject_covering,
)
from mimids.mls.suites import Suite
from mimids.mls.tree.math import position
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.wire.declare import encode

_LAST_EPOCH: Final = (1 << 64) - 1
_NOT_DEFAULT = (AppDataUpdate, AppEphemeral, SelfRemove)  # the known proposal types that are not default types


def check_commit(
    group: PublicGroup,
    authenticated: AuthenticatedContent,
    commit: Commit,
    items: tuple[Covered | ProposalRef, ...],
) -> Verdict:
    """Judge a commit whose signature was verified; `items` are its proposals, with references for unseen proposals."""
    committer = authenticated.content.sender
    for item in items:
        if not isinstance(item, Covered) and item in group.refused:
            reject_covering(group.refused[item])
    known = tuple(item for item in items if isinstance(item, Covered))
    check_list(known, committer, commit)
    for each in known:
        if each.ref is None:  # proposals by reference were checked on arrival, in this same state
            check_alone(each.proposal, committer)
            check_in_group(
                each.proposal, committer, group.tree, group.parameters, group_id=group.group_id, epoch=group.epoch
            )
    if commit.path is not None:
        check_path(commit.path, committer.index, group.suite, group.group_id)
        replaced = None if committer.index is None else group.tree.leaf(committer.index)
        if replaced is not None:
            check_successor(commit.path.leaf_node, replaced)
    _check_committer_supports(known, group, committer.index, commit.path)
    missing = [Missing(PROPOSAL, item.hex()) for item in items if not isinstance(item, Covered)]
    missing += [Missing(PROPOSAL_TYPE, f"0x{code:04x}") for code in unknown_types(known)]
    if missing:
        return Unknown(tuple(missing))
    return _CommitApplication(group, authenticated, commit, known).verdict()


def check_path(path: UpdatePath, index: int | None, suite: Suite, group_id: bytes) -> None:
    """Check the rules for an UpdatePath that hold in any epoch; `index` is None in an external commit."""
    if path.leaf_node.leaf_node_source is not LeafNodeSource.COMMIT:
        reject(LEAF_SOURCE)
    keys = {path.leaf_node.encryption_key}
    for node in path.nodes:
        if not suite.hpke_key_fits(node.encryption_key):
            reject(PATH_KEY)
        keys.add(node.encryption_key)
    if len(keys) != len(path.nodes) + 1:
        reject(PATH_KEY_REUSED)
    if index is not None:
        check_leaf(path.leaf_node, suite, group_id, index)


def _check_committer_supports(
    known: tuple[Covered, ...], group: PublicGroup, index: int | None, path: UpdatePath | None
) -> None:
    """Check that the committer supports the unknown proposal types that it sends itself (RFC 9420 section 12.2).

    Other members are not checked: such a proposal could remove them, and removed members need not support it. Proposals
    of other members are not checked either: mls-rs sends SelfRemove as 0xF003, and no member lists that type.
    """
    leaf = None if index is None else group.tree.leaf(index)
    if leaf is None:
        return
    leaves = (leaf,) if path is None else (leaf, path.leaf_node)
    supported = {int(each) for one in leaves for each in one.capabilities.proposals}
    if not supported.issuperset(unknown_types(each for each in known if each.ref is None)):
        reject(PROPOSAL_SUPPORT, "the committer does not support a proposal type that it commits")


def possible_trees(
    group: PublicGroup, authenticated: AuthenticatedContent, items: tuple[Covered | ProposalRef, ...]
) -> Iterator[RatchetTree]:
    """Yield trees that a commit may lead to, if it covers proposals whose effect is unknown.

    Such proposals may change nothing in the tree, or be SelfRemoves: mls-rs sends SelfRemoves as 0xF003, without a
    body. The caller compares a tree hash, so a wrong guess does no harm.
    """
    commit = authenticated.content.content
    assert isinstance(commit, Commit)  # noqa: S101 - the caller's message is a commit
    known = tuple(item for item in items if isinstance(item, Covered))
    understood = tuple(each for each in known if each.proposal.is_understood)
    leaving = tuple(_as_self_remove(each) for each in known)
    for covered in (understood, leaving) if leaving != known else (understood,):
        with contextlib.suppress(RuleError):
            yield _CommitApplication(group, authenticated, commit, covered).tree_after()


def _as_self_remove(each: Covered) -> Covered:
    empty = each.proposal.body == Unparsed(b"") and each.sender.sender_type is SenderType.MEMBER
    return attrs.evolve(each, proposal=Proposal(ProposalType.SELF_REMOVE, SelfRemove())) if empty else each


class _CommitApplication:
    """Applies one commit to one state, step by step in the order of RFC 9420 sections 12.3 and 12.4.2."""

    def __init__(
        self, group: PublicGroup, authenticated: AuthenticatedContent, commit: Commit, covered: tuple[Covered, ...]
    ) -> None:
        self.group = group
        self.authenticated = authenticated
        self.commit = commit
        self.covered = covered
        self.tree = group.tree
        self.extensions = group.context.extensions
        self.parameters: Parameters = group.parameters
        self.new_leaves: list[tuple[int, LeafNode]] = []

    def verdict(self) -> Verdict:
        """Apply the whole commit; return `Unknown` if the effect of a component's update is not known."""
        self._replace_extensions()
        self._update_and_remove()
        self._check_support_of_types()
        added = self._add()
        unknown = self._update_components()
        if self.commit.path is not None:
            self._merge(self.commit.path, added)
        self._check_members()
        if unknown:
            return Unknown(tuple(Missing(COMPONENT, f"0x{code:04x}") for code in unknown))
        return Valid(next=self._next())

    def tree_after(self) -> RatchetTree:
        """Return the tree after the commit, without the checks of members and components; raise `RuleError`."""
        self._update_and_remove()
        added = self._add()
        if self.commit.path is not None:
            self._merge(self.commit.path, added)
        return self.tree

    def _replace_extensions(self) -> None:
        for each in self.covered:
            if isinstance(each.proposal.body, GroupContextExtensions):
                self.extensions = each.proposal.body.extensions
                self.parameters = parameters_of(self.extensions, self.group.suite)

    def _update_and_remove(self) -> None:
        for each in self.covered:
            index = each.sender.index
            if isinstance(each.proposal.body, Update) and index is not None:
                self.tree = self.tree.update(index, each.proposal.body.leaf_node)
                self.new_leaves.append((index, each.proposal.body.leaf_node))
        for each in self.covered:
            removed = removed_leaf(each)
            if removed is not None:
                self.tree = self.tree.remove(removed)

    def _check_support_of_types(self) -> None:
        """Check that members who stay support the proposal types; added and removed members need not (section 12.2)."""
        support = self.tree.support
        for each in self.covered:
            known = isinstance(each.proposal.body, _NOT_DEFAULT)
            if known and support is not None and each.proposal.proposal_type not in support.proposals:
                reject(PROPOSAL_SUPPORT)

    def _add(self) -> list[int]:
        added = []
        for each in self.covered:
            if isinstance(each.proposal.body, Add):
                leaf = each.proposal.body.key_package.leaf_node
                if self.tree.holders_of_signature_key(leaf.signature_key):
                    reject(ALREADY_MEMBER)
                self.tree, index = self.tree.add(leaf)
                self.new_leaves.append((index, leaf))
                added.append(index)
        return added

    def _update_components(self) -> list[int]:
        """Apply the AppDataUpdates, which come after all default proposals; return the unknown components."""
        updates: dict[int, list[AppDataUpdate]] = {}
        for each in self.covered:
            if isinstance(each.proposal.body, AppDataUpdate):
                updates.setdefault(int(each.proposal.body.component_id), []).append(each.proposal.body)
        unknown = []
        dictionary = self.parameters.dictionary or AppDataDictionary(())
        found: dict[int, bytes] = {int(each.component_id): each.data for each in dictionary.component_data}
        for component_id, several in updates.items():
            current = found.get(component_id)
            if several[0].op is AppDataUpdateOperation.REMOVE:
                if current is None:
                    reject(COMPONENT_ABSENT)
                del found[component_id]
                continue
            try:
                data = apply_update(component_id, current, tuple(each.update or b"" for each in several))
            except FaultError as error:
                reject(COMPONENT_UPDATE, error.fault.rule, section=error.fault.section)
            if data is None:
                unknown.append(component_id)
            else:
                found[component_id] = data
        if updates and not unknown:
            after = AppDataDictionary.of(found)
            self._put_dictionary(Extension(ExtensionType.APP_DATA_DICTIONARY, encode(after)))
        return unknown

    def _put_dictionary(self, dictionary: Extension) -> None:
        """Replace the extension in its place, or append it (draft-ietf-mls-extensions section 4.7)."""
        if self.parameters.dictionary is None:
            self.extensions = (*self.extensions, dictionary)
        else:
            self.extensions = tuple(
                dictionary if each.extension_type is ExtensionType.APP_DATA_DICTIONARY else each
                for each in self.extensions
            )
        self.parameters = parameters_of(self.extensions, self.group.suite)

    def _merge(self, path: UpdatePath, added: list[int]) -> None:
        group, leaf = self.group, path.leaf_node
        index = self.authenticated.content.sender.index
        if index is None:  # an external commit: the leftmost blank leaf (section 12.4.2)
            index = self.tree.leftmost_blank()
            self._check_resync(leaf)
            self.tree = self.tree.widened_for(index)
            check_leaf(leaf, group.suite, group.group_id, index)
        copath = self.tree.filtered_copath(index)
        if len(copath) != len(path.nodes):
            reject(PATH_LENGTH)
        receivers = self._receivers(index, added)
        if any(node.encrypted_path_secret.count != count for node, count in zip(path.nodes, receivers, strict=True)):
            reject(PATH_CIPHERTEXTS)
        keys = tuple(node.encryption_key for node in path.nodes)
        if any(self.tree.holders_of_key(key) for key in (leaf.encryption_key, *keys)):
            reject(PATH_KEY_REUSED)
        self.tree, expected = self.tree.merge_path(index, leaf, keys)
        if leaf.parent_hash != expected:
            reject(PATH_PARENT_HASH)
        self.new_leaves.append((index, leaf))

    def _check_resync(self, leaf: LeafNode) -> None:
        """Check that a client that rejoins removes only its own old leaf (RFC 9420 section 12.2)."""
        for each in self.covered:
            removed = None if each.ref is not None else removed_leaf(each)
            replaced = None if removed is None else self.group.tree.leaf(removed)
            if replaced is not None:
                check_successor(leaf, replaced)

    def _receivers(self, index: int, added: list[int]) -> list[int]:
        """Return how many ciphertexts each node of the path must have, from the leaf up (RFC 9420 section 7.6).

        Leaves that this commit adds get no ciphertext, so they are subtracted: each of them occurs once in every
        resolution above it.
        """
        found = []
        for height, (_, copath) in enumerate(reversed(self.tree.path(index))):
            if copath.resolution_size:
                side = index >> height ^ 1
                found.append(copath.resolution_size - sum(new >> height == side for new in added))
        return found

    def _check_members(self) -> None:
        """Check the resulting tree: all members support what the group needs, and keys of new leaves occur once."""
        check_members(self.parameters, self.tree.support)
        for index, leaf in self.new_leaves:
            if self.tree.holders_of_signature_key(leaf.signature_key) != (index,):
                reject(SIGNATURE_KEY_UNIQUE)
            if self.tree.holders_of_key(leaf.encryption_key) != (position(0, index),):
                reject(ENCRYPTION_KEY_UNIQUE)

    def _next(self) -> PublicGroup:
        group, authenticated = self.group, self.authenticated
        if group.epoch == _LAST_EPOCH:
            reject(LAST_EPOCH)
        context = GroupContext(
            group.context.version,
            group.context.cipher_suite,
            group.context.group_id,
            group.epoch + 1,
            self.tree.tree_hash(),
            group.transcript_after(authenticated),
            self.extensions,
        )
        return PublicGroup(
            group.suite,
            context,
            self.parameters,
            self.tree,
            authenticated.confirmation_tag or b"",
            reinitialized=any(isinstance(each.proposal.body, ReInit) for each in self.covered),
        )
