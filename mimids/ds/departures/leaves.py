"""Finding the leaves of a group that belong to removed users and devices (semantics: departures).

A device is known by the signature keys in the KeyPackages that it uploaded. A device that uploaded no KeyPackages is
known by the identity in its credential, if the identity names the device (/d/DEVICE). So a device that was installed
again under the same name stays in its groups. After the removal of a user, every leaf of the user belongs to a removed
device, until somebody gets the user id again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

import attrs

from mimids.mls.identity import device_of, user_of
from mimids.mls.leaf_node import LeafNode
from mimids.mls.public_group import PublicGroup
from mimids.store import accounts, provider_keys
from mimids.store.departures import Removal, device_digest, user_digest
from mimids.store.engine.transaction import Tx
from mimids.wire.ids import UserId

OTHER_KEY: Final = "other-key"
KEY_IN_USE: Final = "key-in-use"


@attrs.frozen
class FoundLeaf:
    """A leaf that a removed device may have; `doubt` says why the leaf is not removed, None if it is removed."""

    removal: int
    index: int
    identity: bytes
    doubt: str | None


class RemovedLeaves:
    """Finds leaves of removed users and devices."""

    def __init__(self, removals: Iterable[Removal]) -> None:
        self._by_user: dict[bytes, list[Removal]] = defaultdict(list)
        for removal in removals:
            self._by_user[removal.user_digest].append(removal)

    def find(self, tx: Tx, group: PublicGroup) -> list[FoundLeaf]:
        """Return the leaves of a group that belong, or may belong, to a removed device; each leaf once."""
        found: list[FoundLeaf] = []
        for index, leaf in group.tree.leaves():
            user = user_of(leaf.credential)
            if user is not None:
                found += self._of_leaf(tx, user, index, leaf, self._by_user.get(user_digest(user), ()))
        return found

    def _of_leaf(
        self, tx: Tx, user: UserId, index: int, leaf: LeafNode, removals: Iterable[Removal]
    ) -> Iterator[FoundLeaf]:
        content = leaf.credential.content
        identity = content if isinstance(content, bytes) else bytes(user)
        doubts = {removal.id: _doubt(tx, removal, user, leaf) for removal in removals}
        certain = [removal for removal, doubt in doubts.items() if doubt == ""]
        for removal in certain[:1] or [each for each, doubt in doubts.items() if doubt][-1:]:
            yield FoundLeaf(removal, index, identity, doubts[removal] or None)


def _doubt(tx: Tx, removal: Removal, user: UserId, leaf: LeafNode) -> str | None:
    """Return "" if a removed device has this leaf, None if none has it, otherwise the reason for the doubt."""
    key = provider_keys.key_digest(leaf.signature_key)
    in_use = bool(provider_keys.in_use(tx, [key]))
    if key in removal.keys:
        return KEY_IN_USE if in_use else ""
    if removal.device_digest is None:
        if accounts.find_user(tx, user) is None:
            return ""
        return None if in_use else OTHER_KEY  # somebody has the user id again
    device = device_of(leaf.credential)
    if in_use or device is None or device_digest(user, device) != removal.device_digest:
        return None
    if removal.keys or accounts.has_device(tx, user, device):
        return OTHER_KEY
    return ""
