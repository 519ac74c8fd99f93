"""Welcomes, GroupInfos and whole trees that break a rule."""

from __future__ import annotations

from collections.abc import Callable

from mimids.mls import knowledge
from mimids.mls.code_points import (
    ExtensionType,
    LeafNodeSource,
    NodeType,
    WireFormat,
)
from mimids.mls.framing import MLSMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.leaf_node import (
    RATCHET_TREE,
    Extension,
    Node,
    ParentNode,
)
from mimids.mls.opening import open_group
from mimids.mls.rules import verdict
from mimids.mls.rules.verdict import Invalid
from mimids.mls.welcome import Welcome
from mimids.replay import replay
from mimids.wire.ids import MLS10, CipherSuite
from tests.support.broken_rules import (
    DICTIONARY,
    JOINER,
    breaks,
    opened,
    raised,
    room,
)
from tests.support.mls_makers import replace
from tests.support.signing import Room, crowd, fresh_key


@breaks(verdict.WELCOME_EMPTY)
def welcome_for_nobody() -> Invalid | None:
    welcome = MLSMessage(MLS10, WireFormat.WELCOME, Welcome(CipherSuite(1), (), b""))
    line = f'{{"bytes": "{welcome.encoded.hex()}", "expect": "reject"}}'
    found = next(iter(replay.replay(line, now_s=0)))
    assert not found.failed
    return found.verdict  # type: ignore[return-value]


@breaks(verdict.UNKNOWN_SUITE)
def suite_of_nobody() -> Invalid | None:
    context = replace(room().context(), cipher_suite=CipherSuite(0x0A0A))
    return opened(room().info(group_context=context))


@breaks(verdict.DUPLICATE_EXTENSION)
def group_context_with_an_extension_twice() -> Invalid | None:
    return opened(room(5, Extension(ExtensionType(0xF0F1), b""), Extension(ExtensionType(0xF0F1), b"x")).info())


@breaks(verdict.GROUP_INFO_SIGNER)
def signer_who_left() -> Invalid | None:
    here = room()
    here.clients[6] = here.clients[1]
    return opened(here.info(signer=6))


@breaks(verdict.GROUP_INFO_SIGNATURE)
def info_signed_by_another() -> Invalid | None:
    return opened(replace(room().info(signer=2), signer=1))


@breaks(verdict.GROUP_INFO_LENGTH)
def info_with_a_short_tag() -> Invalid | None:
    return opened(room().info(confirmation_tag=b"tag"))


@breaks(verdict.FIRST_EPOCH)
def begins_with_five() -> Invalid | None:
    here = room()
    here.epoch, here.confirmed = 0, b""
    return opened(here.info())


@breaks(verdict.FIRST_EPOCH)
def begins_with_a_transcript() -> Invalid | None:
    here = room(1)
    here.confirmed = bytes(32)
    return opened(here.info())


@breaks(verdict.TREE_NEEDED)
def info_without_a_tree() -> Invalid | None:
    return opened(room().info(tree=False))


@breaks(verdict.TREE_MALFORMED)
def tree_of_one_blank() -> Invalid | None:
    return opened(room().info(tree=False), RATCHET_TREE.encode((None,)))


@breaks(verdict.TREE_HASH)
def tree_of_another_group() -> Invalid | None:
    return opened(room().info(tree=False), room().tree.encode())


@breaks(verdict.TREE_PARENT_HASH)
def parent_of_nobody() -> Invalid | None:
    here = room()
    assert here.tree.nodes[5] is None
    here.tree.nodes[5] = ParentNode(fresh_key(here.suite), b"", ())
    return opened(here.info())


@breaks(verdict.TREE_UNMERGED)
def unmerged_and_blank() -> Invalid | None:
    here = room()
    node = here.tree.nodes[here.tree.root]
    assert isinstance(node, ParentNode)
    here.tree.nodes[here.tree.root] = replace(node, unmerged_leaves=(6,))
    return opened(here.info())


@breaks(verdict.TREE_UNMERGED)
def unmerged_and_not_sorted() -> Invalid | None:
    here = room()
    node = here.tree.nodes[here.tree.root]
    assert isinstance(node, ParentNode)
    here.tree.nodes[here.tree.root] = replace(node, unmerged_leaves=(4, 3))
    return opened(here.info())


@breaks(verdict.ENCRYPTION_KEY_UNIQUE)
def tree_with_a_key_twice() -> Invalid | None:
    here = room()
    here.tree.nodes[2] = here.clients[1].leaf(
        LeafNodeSource.KEY_PACKAGE, encryption_key=here.tree.leaf(3).encryption_key
    )
    return opened(here.info())


@breaks(verdict.LEAF_SIGNATURE)
def tree_with_a_forged_leaf() -> Invalid | None:
    here = crowd(5, path=False)  # no parent node, whose check would fail first
    here.tree.nodes[2] = replace(here.tree.leaf(1), signature=bytes(64))
    return opened(here.info())


def claimed_after(here: Room, info: Callable[[Room], GroupInfo]) -> Invalid | None:
    message, after = here.commit(1)
    judgement = knowledge.judge(knowledge.Derived(open_group(here.info())), message)
    return raised(lambda: knowledge.next_knowledge(judgement, message, info(after)))


@breaks(verdict.GROUP_INFO_TAG)
def info_with_another_tag() -> Invalid | None:
    return claimed_after(room(), lambda after: after.info(confirmation_tag=bytes(32)))


@breaks(verdict.DUPLICATE_EXTENSION)
def info_of_a_known_state_with_an_extension_twice() -> Invalid | None:
    extension = Extension(ExtensionType(0xF0F1), b"")
    return claimed_after(room(), lambda after: after.info(extension, extension))


@breaks(verdict.GROUP_INFO_CONTRADICTS)
def info_of_another_state() -> Invalid | None:
    def other(after: Room) -> GroupInfo:
        after.extensions = (DICTIONARY,)
        return after.info()

    return claimed_after(room(), other)


@breaks(verdict.GROUP_INFO_CONTRADICTS)
def info_with_another_tree() -> Invalid | None:
    other = Node(NodeType.LEAF, JOINER.leaf(LeafNodeSource.KEY_PACKAGE))
    tree = Extension(ExtensionType.RATCHET_TREE, RATCHET_TREE.encode((other,)))
    return claimed_after(room(), lambda after: after.info(tree, tree=False))
