"""The public group state of each partition: stored as rows, cached in memory (semantics: public-group-state).

The state is in the rows: a tree as content-addressed nodes, a GroupContext, a confirmation tag. The cache is keyed by
this content, so no entry can be stale. Proposals of a partition are read when a message is judged
(`visible_proposals`); the cache holds states without them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from threading import Lock
from typing import Final

import attrs

from mimids.ds.lru import LeastRecentlyUsed
from mimids.mls.code_points import ExtensionType
from mimids.mls.framing import MLSMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.identity import provider_of
from mimids.mls.knowledge import Claimed, Derived, Knowledge, NotKnown, state_of
from mimids.mls.leaf_node import extension_data
from mimids.mls.opening import restore_group
from mimids.mls.public_group import NO_PENDING, NO_REFUSED, PublicGroup
from mimids.mls.suites import suite_of
from mimids.mls.tree.rows import NodeRow, all_nodes, changed_nodes, load
from mimids.store import partitions, trees
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition, StoredState
from mimids.wire.ids import MaskedPartitionKey, ProviderId
from mimids.wire.messages import RatchetTree

CACHED_OCTETS: Final = 64 * 1024 * 1024  # of states, by their own estimate
CACHED_DOMAINS: Final = 1024  # states whose users' providers are cached

StateKey = tuple[bytes, bytes, bytes, bool]  # root hash, SHA-256 of the GroupContext, confirmation tag, reinitialized


class States:
    """Loads and saves the states of partitions."""

    def __init__(self) -> None:
        self._cache: LeastRecentlyUsed[StateKey, PublicGroup] = LeastRecentlyUsed(sys.maxsize)  # bounded by octets
        self._cached_octets = 0
        self._domains: LeastRecentlyUsed[StateKey, frozenset[ProviderId]] = LeastRecentlyUsed(CACHED_DOMAINS)
        self._lock = Lock()  # the threads of the writer, the readers and the workers use the cache

    def knowledge(self, tx: Tx, group: Group, partition: Partition) -> Knowledge:
        """Return what is known of a partition, without its proposals."""
        stored = partition.state
        suite = suite_of(group.cipher_suite)
        if stored is None or suite is None:
            return NotKnown(partition.epoch, group.group_id, suite)
        key = state_key(stored)
        with self._lock:
            found = self._cache.get(key)
        if found is None:
            tree = load(suite, stored.root_hash, partial(_fetch_node, tx))
            found = restore_group(
                stored.group_context, stored.confirmation_tag, tree, reinitialized=stored.reinitialized
            )
            self._add_to_cache(key, found)
        return Derived(found) if stored.derived else Claimed(found, epoch_known=partition.epoch is not None)

    def save(self, tx: Tx, partition: int, knowledge: Knowledge, before: Knowledge | None = None) -> None:
        """Store what is known of a partition; `before` is what is known of its parent, whose nodes are stored."""
        group = state_of(knowledge)
        if group is None:
            partitions.set_state(tx, partition, None)
            return
        parent = None if before is None else state_of(before)
        rows = all_nodes(group.tree) if parent is None else changed_nodes(parent.tree, group.tree)
        nodes = [(row.tree_hash, row.node, row.left, row.right) for row in rows]
        trees.keep_nodes(tx, nodes)
        trees.note_in_use(tx, group.tree.tree_hash(), nodes)
        stored = StoredState(
            derived=isinstance(knowledge, Derived),
            root_hash=group.tree.tree_hash(),
            group_context=group.context.encoded,
            confirmation_tag=group.confirmation_tag,
            reinitialized=group.reinitialized,
        )
        partitions.set_state(tx, partition, stored)
        self._add_to_cache(state_key(stored), attrs.evolve(group, pending=NO_PENDING, refused=NO_REFUSED))

    def has_leaf_of(self, tx: Tx, group: Group, partition: Partition, provider: ProviderId) -> bool:
        """Tell whether the known state of a partition has a leaf of a provider's user; False if it is not known."""
        if partition.state is None:
            return False
        key = state_key(partition.state)
        with self._lock:
            found = self._domains.get(key)
        if found is None:
            state = state_of(self.knowledge(tx, group, partition))
            if state is None:
                return False
            domains = {provider_of(user) for user in state.users()}
            found = frozenset(domain for domain in domains if domain is not None)
            with self._lock:
                self._domains.put(key, found)
        return provider in found

    def inferred_tree(self, tx: Tx, group: Group, partition: Partition, message: MLSMessage) -> RatchetTree | None:
        """Return the known tree for a GroupInfo without a tree; None if it carries a tree or no tree is known.

        The tree is sent beside the GroupInfo. Inserting it would break the signature, which covers the extensions.
        """
        info = message.message
        state = state_of(self.knowledge(tx, group, partition))
        if state is None or not isinstance(info, GroupInfo):
            return None
        if extension_data(info.extensions, ExtensionType.RATCHET_TREE) is not None:
            return None
        return RatchetTree(state.tree.encode())

    def _add_to_cache(self, key: StateKey, group: PublicGroup) -> None:
        with self._lock:
            if key in self._cache:
                return
            self._cache.put(key, group)
            self._cached_octets += group.size_estimate
            while self._cached_octets > CACHED_OCTETS and len(self._cache) > 1:
                _, dropped = self._cache.pop_oldest()
                self._cached_octets -= dropped.size_estimate


def mask_of(group: Group, masks: Sequence[MaskedPartitionKey]) -> MaskedPartitionKey:
    """Return the one of a partition key's masks that is made with the hash of the group's cipher suite."""
    suite = suite_of(group.cipher_suite)
    return next(mask for mask in masks if suite is None or len(mask) == suite.hash_size)


def is_joinable(message: MLSMessage) -> bool:
    """Tell whether a GroupInfo carries the key that external commits are made with."""
    info = message.message
    return isinstance(info, GroupInfo) and extension_data(info.extensions, ExtensionType.EXTERNAL_PUB) is not None


def state_key(stored: StoredState) -> StateKey:
    """Return the cache key of a stored state."""
    return stored.root_hash, _digest(stored.group_context), stored.confirmation_tag, stored.reinitialized


@lru_cache(maxsize=64)
def _digest(group_context: bytes) -> bytes:
    return hashlib.sha256(group_context).digest()


def _fetch_node(tx: Tx, tree_hash: bytes) -> NodeRow | None:
    found = trees.fetch_node(tx, tree_hash)
    return None if found is None else NodeRow(*found)
