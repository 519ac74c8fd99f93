"""KeyPackages, room components, ratchet trees and GroupInfos: decoding, then the checks that follow it.

A signature is made again where one of our keys is in the leaf, so that the checks behind signatures are reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from fuzz import recordings
from fuzz.signers import SEEDS, signed_key_package, signed_leaf, signer_of, with_fields
from fuzz.target import Target
from fuzz.targets.structs import decoded
from mimids.mls.code_points import ComponentId, ExtensionType, NodeType
from mimids.mls.components import ParticipantList, ParticipantListUpdate, RolesList, apply_update, dictionary_of
from mimids.mls.faults import FaultError
from mimids.mls.group_info import GroupInfo
from mimids.mls.identity import provider_of, user_of
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.leaf_node import RATCHET_TREE, Extension, LeafNode, Node, extension_data
from mimids.mls.opening import open_group, restore_group
from mimids.mls.rules.verdict import RuleError
from mimids.mls.suites import SUITES, suite_of
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.mls.tree.rows import all_nodes, load
from mimids.mls.tree.subtree import Parent, Subtree
from mimids.wire.codec import OPAQUE_V, UINT8, UINT16, WireError, optional, vector
from mimids.wire.declare import codec, encode, struct, wire
from tests.support.mls_makers import NOW, YEAR
from tests.support.signing import Client, crowd


@struct
class Signed:
    """A KeyPackage; `signs` says whether it is signed again."""

    signs: int = wire(UINT8)
    key_package: KeyPackageIn = wire(codec(KeyPackageIn))


@struct
class Updates:
    """A component, its data, and updates of them in one commit."""

    component: int = wire(UINT16)
    data: bytes | None = wire(optional(OPAQUE_V))
    updates: tuple[bytes, ...] = wire(vector(OPAQUE_V, most=8))


@struct
class Opening:
    """A GroupInfo, and how much of it is made right: 1 the leaves' signatures, 2 the tree hash, 4 its own signature."""

    repairs: int = wire(UINT8)
    info: GroupInfo = wire(codec(GroupInfo))


def _run_key_package(octets: bytes) -> None:
    found = decoded(codec(Signed), octets)
    if found is None:
        return
    package: KeyPackageIn = found.key_package
    if found.signs % 2:
        package = signed_key_package(package)
    for now in (NOW, 0, (1 << 64) - 1):
        try:
            package.validate(now, max_lifetime_s=YEAR)
        except FaultError as error:
            str(error.fault)
    user = user_of(package.leaf_node.credential)
    assert user is None or provider_of(user) is not None


def _key_package_seeds() -> Iterator[bytes]:
    for code in SUITES:
        yield encode(Signed(1, Client.of(SEEDS[0], suite=code).key_package()))
    for message in recordings.messages():
        if isinstance(message.message, KeyPackageIn):
            yield encode(Signed(0, message.message))


def _run_components(octets: bytes) -> None:
    found = decoded(codec(Updates), octets)
    if found is None or not found.updates:
        return
    for component in (found.component, ComponentId.ROLES_LIST, ComponentId.PARTICIPANT_LIST):
        try:
            after = apply_update(component, found.data, found.updates)
            if after is not None and component == ComponentId.PARTICIPANT_LIST:
                assert decoded(codec(ParticipantList), after) is not None
        except FaultError as error:
            str(error.fault)
    try:
        dictionary_of((Extension(ExtensionType.APP_DATA_DICTIONARY, found.updates[0]),))
    except FaultError as error:
        str(error.fault)


def _component_seeds() -> Iterator[bytes]:
    for message in recordings.messages():
        if not isinstance(message.message, GroupInfo):
            continue
        dictionary = dictionary_of(message.message.group_context.extensions)
        for each in dictionary.component_data if dictionary else ():
            yield encode(Updates(int(each.component_id), each.data, (each.data,)))
    update = encode(ParticipantListUpdate((), (0,), ()))
    yield encode(Updates(ComponentId.PARTICIPANT_LIST, encode(ParticipantList(())), (update,)))
    yield encode(Updates(ComponentId.ROLES_LIST, None, (encode(RolesList(())),)))


def _run_tree(octets: bytes) -> None:
    """Read a tree; it must be found again in its rows, and each operation must give a tree that is read again."""
    if not octets:
        return
    suite = SUITES[octets[0] % 7 + 1]  # those of RFC 9420
    try:
        tree = RatchetTree.decode(suite, octets[1:])
    except WireError:
        return
    assert tree.encode() == octets[1:]
    if not _stands_on_leaves(tree.root):
        return  # no commit makes such a tree
    rows = {row.tree_hash: row for row in all_nodes(tree)}
    assert load(suite, tree.tree_hash(), rows.get).encode() == octets[1:]
    leaves = list(tree.leaves())
    if not leaves or tree.height > 8:  # each operation below reads the whole tree again
        return
    index, leaf = leaves[octets[0] % len(leaves)]
    assert index in tree.holders_of_signature_key(leaf.signature_key)
    tree.filtered_copath(index)
    more, place = tree.add(leaf)
    assert more.leaf(place) is leaf
    for made in (more, tree.update(index, leaf), more.remove(index)):
        assert RatchetTree.decode(suite, made.encode()).tree_hash() == made.tree_hash()


def _stands_on_leaves(subtree: Subtree) -> bool:
    """Tell whether each parent node has a leaf under both its children, as after a commit (RFC 9420 section 7.9)."""
    if type(subtree) is not Parent:
        return True
    if subtree.node is not None and not (subtree.left.members and subtree.right.members):
        return False
    return _stands_on_leaves(subtree.left) and _stands_on_leaves(subtree.right)


def _tree_seeds() -> Iterator[bytes]:
    for suite, info in _infos():
        data = extension_data(info.extensions, ExtensionType.RATCHET_TREE)
        if data is not None:
            yield bytes([suite - 1]) + data
    yield b"\0" + crowd(9).tree.encode()


def _infos() -> Iterator[tuple[int, GroupInfo]]:
    for message in recordings.messages():
        if isinstance(message.message, GroupInfo):
            yield int(message.message.group_context.cipher_suite), message.message


def _run_group_info(octets: bytes) -> None:
    """Open a group; a state that was opened can be stored and restored."""
    found = decoded(codec(Opening), octets)
    if found is None:
        return
    try:
        group = open_group(_repaired(found.info, found.repairs))
    except RuleError as error:
        str(error.invalid)
        return
    again = restore_group(group.context.encoded, group.confirmation_tag, group.tree)
    assert again.parameters == group.parameters
    group.self_removes()


def _repaired(info: GroupInfo, repairs: int) -> GroupInfo:
    suite, data = suite_of(info.group_context.cipher_suite), extension_data(info.extensions, ExtensionType.RATCHET_TREE)
    if suite is None or data is None:
        return info
    try:
        tree = RatchetTree.decode(suite, data)
        if repairs & 1:
            tree = RatchetTree.of_nodes(suite, tuple(_signed_nodes(tree, info.group_context.group_id)))
    except WireError:
        return info
    context = info.group_context
    if repairs & 2:
        context = with_fields(context, tree_hash=tree.tree_hash())
    extensions = tuple(
        Extension(each.extension_type, tree.encode()) if each.extension_type is ExtensionType.RATCHET_TREE else each
        for each in info.extensions
    )
    made = with_fields(info, group_context=context, extensions=extensions)
    signer = tree.leaf(info.signer)
    ours = None if signer is None or not repairs & 4 else signer_of(suite, signer.signature_key)
    return made if ours is None else with_fields(made, signature=ours.sign(b"GroupInfoTBS", made.tbs()))


def _signed_nodes(tree: RatchetTree, group_id: bytes) -> Iterator[Node | None]:
    for place, node in enumerate(tree.nodes()):
        leaf = None if node is None else node.node
        if isinstance(leaf, LeafNode):
            node = Node(NodeType.LEAF, signed_leaf(tree.suite, leaf, group_id, place // 2))
        yield node


@cache
def _group_info_seeds() -> tuple[bytes, ...]:
    made = [encode(Opening(7, crowd(size, suite=code).info())) for size in (1, 2, 5) for code in (1, 2, 4)]
    room = crowd(6)
    for _ in range(2):
        _, room = room.commit(3)
    made.append(encode(Opening(7, room.info(signer=2))))
    return (*made, *(encode(Opening(0, info)) for _, info in _infos()))


def _whole(by: Any) -> Any:
    return lambda _: (0, by)


TARGETS: Final = (
    Target(name="key_packages", run=_run_key_package, seeds=_key_package_seeds, shape=_whole(codec(Signed))),
    Target(name="components", run=_run_components, seeds=_component_seeds, shape=_whole(codec(Updates))),
    Target(name="trees", run=_run_tree, seeds=_tree_seeds, shape=lambda _: (1, RATCHET_TREE), most=16384, share=2),
    Target(
        name="group_infos",
        run=_run_group_info,
        seeds=_group_info_seeds,
        shape=_whole(codec(Opening)),
        most=16384,
        share=2,
    ),
)
