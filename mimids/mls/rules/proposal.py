"""Rules for one proposal (RFC 9420 section 12.1, draft-ietf-mls-extensions): by itself, and in its group.

`check_alone` needs only the proposal and its sender. `check_in_suite` also needs the group's suite and id, which never
change, so both functions can be used in any state. `check_in_group` needs the state of the epoch. Rules that depend on
the other proposals of a commit are not checked here: a Remove can make room, and new extensions can change the demands.
RFC 9420 section 12.1.1 makes one exception: an Add is judged by the demands in force when it arrives (`check_demands`).
"""

from __future__ import annotations

from mimids.mls.code_points import (
    ExtensionType,
    LeafNodeSource,
    ResumptionPskUsage,
    SenderType,
)
from mimids.mls.framing import Sender
from mimids.mls.identity import user_of
from mimids.mls.key_package import leaf_fault
from mimids.mls.leaf_node import LeafNode, extension_data
from mimids.mls.proposals import (
    Add,
    ExternalInit,
    GroupContextExtensions,
    PreSharedKey,
    Proposal,
    ReInit,
    Remove,
    ResumptionPsk,
    SelfRemove,
    Update,
)
from mimids.mls.rules.parameters import Parameters, check_required, check_unique, parameters_of
from mimids.mls.rules.verdict import (
    CREDENTIAL_SUCCESSOR,
    DICTIONARY_KEPT,
    EXTERNAL_INIT,
    EXTERNAL_PROPOSAL,
    KEM_OUTPUT,
    KEY_PACKAGE,
    KEY_PACKAGE_GROUP,
    LEAF_KEY_KEPT,
    LEAF_NODE,
    LEAF_SIGNATURE,
    LEAF_SOURCE,
    NEW_MEMBER_ADD,
    PSK_NONCE,
    PSK_USAGE,
    REINIT_VERSION,
    REMOVE_BLANK,
    SELF_REMOVE_SENDER,
    reject,
)
from mimids.mls.suites import Suite
from mimids.mls.support import support_of
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.wire.ids import MLS10


def check_alone(proposal: Proposal, sender: Sender) -> None:
    """Check which sender may propose what, and an Add's KeyPackage by itself (RFC 9420 sections 6.1, 10.1)."""
    body = proposal.body
    if sender.sender_type is SenderType.NEW_MEMBER_PROPOSAL and not isinstance(body, Add):
        reject(NEW_MEMBER_ADD)
    if isinstance(body, SelfRemove) and sender.sender_type is not SenderType.MEMBER:
        reject(SELF_REMOVE_SENDER)
    if sender.sender_type is SenderType.EXTERNAL and isinstance(body, Update | ExternalInit):
        reject(EXTERNAL_PROPOSAL)  # section 12.1.8; an unknown type may be allowed
    if isinstance(body, ExternalInit) and sender.sender_type is not SenderType.NEW_MEMBER_COMMIT:
        reject(EXTERNAL_INIT)
    if isinstance(body, Add):
        check_unique(body.key_package.extensions)
        check_unique(body.key_package.leaf_node.extensions)
        fault = body.key_package.fault()
        if fault is not None:
            reject(KEY_PACKAGE, fault.rule, section=fault.section)
    elif isinstance(body, Update):
        check_unique(body.leaf_node.extensions)
        if body.leaf_node.leaf_node_source is not LeafNodeSource.UPDATE:
            reject(LEAF_SOURCE)
    elif isinstance(body, ReInit):
        check_unique(body.extensions)
        if body.version < MLS10:  # mls10 is the only version that a group can have here
            reject(REINIT_VERSION)
    elif isinstance(body, GroupContextExtensions):
        check_unique(body.extensions)


def check_in_suite(proposal: Proposal, sender: Sender, suite: Suite, group_id: bytes) -> None:
    """Check the rules that need the group's suite and id, but no state."""
    body = proposal.body
    if isinstance(body, Add):
        if body.key_package.version != MLS10 or body.key_package.cipher_suite != suite.code:
            reject(KEY_PACKAGE_GROUP)  # RFC 9420 section 10.1
    elif isinstance(body, Update) and sender.index is not None:
        check_leaf(body.leaf_node, suite, group_id, sender.index)
    elif isinstance(body, PreSharedKey):
        if len(body.psk.psk_nonce) != suite.hash_size:
            reject(PSK_NONCE)
    elif isinstance(body, ExternalInit):
        if not suite.kem_output_fits(body.kem_output):
            reject(KEM_OUTPUT)
    elif isinstance(body, GroupContextExtensions):
        parameters_of(body.extensions, suite)


def check_in_group(
    proposal: Proposal, sender: Sender, tree: RatchetTree, parameters: Parameters, *, group_id: bytes, epoch: int
) -> None:
    """Check the rules that need the group's suite and id, or the state of the epoch."""
    check_in_suite(proposal, sender, tree.suite, group_id)
    body = proposal.body
    if isinstance(body, Update):
        _check_update(body.leaf_node, sender.index, tree)
    elif isinstance(body, Remove):
        if tree.leaf(body.removed) is None:
            reject(REMOVE_BLANK)
    elif isinstance(body, PreSharedKey):
        _check_psk_usage(body, epoch)
    elif isinstance(body, GroupContextExtensions):
        _check_dictionary_kept(body, parameters)


def check_demands(proposal: Proposal, parameters: Parameters) -> None:
    """Check a proposal on arrival against the demands in force (RFC 9420 sections 7.3, 12.1.1, 12.1.2)."""
    body = proposal.body
    if isinstance(body, Add | Update):
        leaf = body.key_package.leaf_node if isinstance(body, Add) else body.leaf_node
        check_required(parameters, support_of(leaf.capabilities, leaf.credential.credential_type))


def _check_update(leaf: LeafNode, index: int | None, tree: RatchetTree) -> None:
    """Check that an Update's leaf may replace the sender's current leaf (RFC 9420 section 7.3)."""
    current = None if index is None else tree.leaf(index)
    if current is None:
        reject(REMOVE_BLANK, "the leaf to update is blank or outside the tree", section="RFC 9420 section 12.1.2")
    check_successor(leaf, current)


def check_leaf(leaf: LeafNode, suite: Suite, group_id: bytes, index: int) -> None:
    """Check a leaf node by itself, and its signature (RFC 9420 section 7.3)."""
    check_unique(leaf.extensions)
    fault = leaf_fault(leaf, suite)
    if fault is not None:
        reject(LEAF_NODE, fault.rule, section=fault.section)
    if not leaf.verifies(suite, group_id, index):
        reject(LEAF_SIGNATURE)


def check_successor(leaf: LeafNode, replaced: LeafNode) -> None:
    """Check that a leaf has a new key, and names the user of the replaced leaf (RFC 9420 sections 5.3.1, 7.3, 12.2)."""
    if leaf.encryption_key == replaced.encryption_key:
        reject(LEAF_KEY_KEPT)
    before, after = user_of(replaced.credential), user_of(leaf.credential)
    if before is not None and after is not None and before != after:
        reject(CREDENTIAL_SUCCESSOR)


def _check_psk_usage(body: PreSharedKey, epoch: int) -> None:
    psk = body.psk.psk
    # RFC 9420 sections 11.2, 11.3: a reinitialized or branched group uses such a PSK in the commit that opens epoch 1.
    if epoch != 0 and isinstance(psk, ResumptionPsk) and psk.usage is not ResumptionPskUsage.APPLICATION:
        reject(PSK_USAGE)


def _check_dictionary_kept(body: GroupContextExtensions, parameters: Parameters) -> None:
    """Check that the dictionary is unchanged if only AppDataUpdate may change it (draft-ietf-mls-extensions)."""
    if not parameters.dictionary_is_kept:
        return
    if extension_data(body.extensions, ExtensionType.APP_DATA_DICTIONARY) != parameters.dictionary_octets:
        reject(DICTIONARY_KEPT)
