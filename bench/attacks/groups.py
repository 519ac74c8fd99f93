"""The groups that the inputs of `abuse` are for."""

from __future__ import annotations

import secrets
from functools import lru_cache
from typing import Final

import attrs

from mimids.mls.code_points import ExtensionType, LeafNodeSource, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.leaf_node import Extension
from mimids.testing import PretendGroup
from mimids.wire.codec import OPAQUE_V
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, GroupId, PartitionKey
from mimids.wire.messages import CommitData, CreateGroupRequest, RatchetTree, SendRequest
from tests.support.naive_tree import NaiveTree
from tests.support.signing import Client, Room, crowd

MEMBERS: Final = 200
EXTERNAL_PUB: Final = Extension(ExtensionType.EXTERNAL_PUB, OPAQUE_V.encode(bytes(32)))


def key() -> PartitionKey:
    return PartitionKey(secrets.token_bytes(PartitionKey.SIZE))


@attrs.frozen
class KnownGroup:
    """A group that exists at the hub with its state, and the key of its first partition."""

    room: Room
    key: PartitionKey
    tree_beside: bool = False  # the tree was sent beside the GroupInfo, so the hub sends it in the same way

    @property
    def creation(self) -> bytes:
        info = MLSMessage(MLS10, WireFormat.GROUP_INFO, self.room.info(EXTERNAL_PUB, tree=not self.tree_beside))
        tree = RatchetTree(self.room.tree.encode()) if self.tree_beside else None
        return encode(CreateGroupRequest(self.room.group_id, MLS10, self.room.suite.code, self.key, info, tree, None))


@attrs.frozen
class Groups:
    """The groups that the inputs are for."""

    known: KnownGroup  # many members
    branched: KnownGroup  # with the slowest signatures, and as many branches as are looked at
    read: tuple[KnownGroup, KnownGroup]  # nothing is sent to these; many members, and a nearly empty tree
    long: PretendGroup  # one answer of the largest size, of the smallest messages

    @property
    def with_state(self) -> tuple[KnownGroup, ...]:
        return (self.known, self.branched, *self.read)


def make_groups(hub: str) -> Groups:
    sparse = Room.create(Client.of(1))
    other, width = Client.of(2), 1 << 15
    sparse.tree = NaiveTree(
        sparse.suite, [sparse.tree.nodes[0], *[None] * (width - 1), other.leaf(LeafNodeSource.KEY_PACKAGE)]
    )
    sparse.clients[width // 2] = other
    sparse.epoch, sparse.confirmed, sparse.group_id = 1, bytes(32), GroupId(secrets.token_bytes(16))
    return Groups(
        _known(crowd_of(1)),
        _known(crowd_of(5, 3)),
        (attrs.evolve(_known(crowd_of(1)), tree_beside=True), KnownGroup(sparse, key(), True)),
        PretendGroup.at(hub),
    )


def _known(room: Room) -> KnownGroup:
    return KnownGroup(attrs.evolve(room, group_id=GroupId(secrets.token_bytes(16))), key())


def branch(group: KnownGroup) -> tuple[SendRequest, KnownGroup]:
    """Return a commit that makes a branch, and the group there."""
    made, room = group.room.commit(0)
    following = key()
    return SendRequest(made, group.key, CommitData(following, None, None)), KnownGroup(room, following)


@lru_cache
def crowd_of(suite: int, members: int = MEMBERS) -> Room:
    return crowd(members, suite=suite, path=False)
