"""Build a group's verified state from a GroupInfo and its tree (RFC 9420 section 12.4.3.1, without secrets).

The confirmation tag cannot be verified without secrets, so only its length is checked. Lifetimes are not checked.
"""

from __future__ import annotations

from mimids.mls.code_points import ExtensionType
from mimids.mls.group_info import GroupContext, GroupInfo
from mimids.mls.leaf_node import extension_data
from mimids.mls.public_group import PublicGroup
from mimids.mls.rules.parameters import check_members, check_unique, parameters_of
from mimids.mls.rules.tree import check_tree
from mimids.mls.rules.verdict import (
    FIRST_EPOCH,
    GROUP_INFO_LENGTH,
    GROUP_INFO_SIGNATURE,
    GROUP_INFO_SIGNER,
    TREE_HASH,
    TREE_MALFORMED,
    TREE_NEEDED,
    UNKNOWN_SUITE,
    RuleError,
    reject,
)
from mimids.mls.suites import Suite, suite_of
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.wire.codec import WireError
from mimids.wire.declare import decode


def open_group(info: GroupInfo, ratchet_tree: bytes | RatchetTree | None = None) -> PublicGroup:
    """Verify a GroupInfo and its tree, and return the state that they describe.

    The tree in the GroupInfo is used. If it has none, `ratchet_tree` is used: octets (`optional<Node> ratchet_tree<V>`)
    or a tree that was inferred and is therefore verified already. Raises `RuleError`; its rule is `TREE_NEEDED` if
    there is no tree, or if the inferred tree does not have the GroupInfo's tree hash.
    """
    context = info.group_context
    suite = suite_of(context.cipher_suite)
    if suite is None:
        reject(UNKNOWN_SUITE)
    check_unique(info.extensions)
    parameters = parameters_of(context.extensions, suite)
    _check_lengths(info, context, suite)
    octets = extension_data(info.extensions, ExtensionType.RATCHET_TREE)
    inferred = ratchet_tree if isinstance(ratchet_tree, RatchetTree) else None
    if octets is None:
        octets = ratchet_tree if isinstance(ratchet_tree, bytes) else None
        if octets is None and (inferred is None or inferred.tree_hash() != context.tree_hash):
            reject(TREE_NEEDED)
    if inferred is not None and inferred.tree_hash() == context.tree_hash and octets is None:
        tree = inferred
    else:
        tree = _decoded(suite, octets or b"")
        if tree.tree_hash() != context.tree_hash:
            reject(TREE_HASH)
    signer = tree.leaf(info.signer)
    if signer is None:
        reject(GROUP_INFO_SIGNER)
    if context.epoch == 0 and tree.member_count != 1:
        reject(FIRST_EPOCH)
    if not info.verifies(suite, signer.signature_key):
        reject(GROUP_INFO_SIGNATURE)
    if tree is inferred:
        check_members(parameters, tree.support)  # the extensions may have changed since the tree was verified
    else:
        check_tree(tree, parameters, context.group_id)
    return PublicGroup(suite, context, parameters, tree, info.confirmation_tag)


def _decoded(suite: Suite, octets: bytes) -> RatchetTree:
    try:
        return RatchetTree.decode(suite, octets)
    except WireError as error:
        reject(TREE_MALFORMED, str(error))


def _check_lengths(info: GroupInfo, context: GroupContext, suite: Suite) -> None:
    size = suite.hash_size
    if len(info.confirmation_tag) != size or len(context.tree_hash) != size:
        reject(GROUP_INFO_LENGTH)
    if context.epoch == 0:
        if context.confirmed_transcript_hash:
            reject(FIRST_EPOCH)  # section 11: the zero-length octet string
    elif len(context.confirmed_transcript_hash) != size:
        reject(GROUP_INFO_LENGTH)


def restore_group(
    context: bytes, confirmation_tag: bytes, tree: RatchetTree, *, reinitialized: bool = False
) -> PublicGroup:
    """Return a state, verified earlier, from its stored parts; raise `ValueError` if they do not belong together.

    The caller adds the pending proposals with `checks.record(group, message, Valid())`, and the refused proposals with
    `with_refused`.
    """
    kept = decode(GroupContext, context)
    if kept.tree_hash != tree.tree_hash() or kept.cipher_suite != tree.suite.code:
        raise ValueError("the tree does not belong to this GroupContext")
    try:
        parameters = parameters_of(kept.extensions, tree.suite)
    except RuleError as error:
        raise ValueError("the extensions of this GroupContext are invalid") from error
    return PublicGroup(tree.suite, kept, parameters, tree, confirmation_tag, reinitialized=reinitialized)
