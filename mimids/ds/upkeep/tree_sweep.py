"""The sweep of tree nodes: it deletes the nodes of ratchet trees that no partition uses any more.

It writes only the deletions. First it reads all nodes in the order of their hashes, and counts in memory the references
to each one. A partition refers to the root of its tree, and a node to its children. Then it deletes the nodes without
references. This removes references to their children, so some children are deleted next.

The memory is 9 octets for each stored node. A node is known by the first 8 octets of its hash. Nodes with the same 8
octets count as one, and are kept while any of them is in use. The store remembers references that are written during
the sweep (`store.trees`). If a sweep is interrupted, some unused nodes stay; the next sweep begins from the start.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Final

from mimids.store import trees
from mimids.store.engine.store import Store
from mimids.values import Milliseconds

PREFIX_OCTETS: Final = 8
PAGE_NODES: Final = 500  # read or deleted at once: a few milliseconds
_MANY: Final = 255  # a count that is this high is not known exactly, and never goes down


class References:
    """The number of references to each node, by the first octets of its hash; nodes are added in ascending order."""

    def __init__(self) -> None:
        self._prefixes = array("Q")
        self._counts = bytearray()

    def add_nodes(self, hashes: Iterable[bytes]) -> None:
        """Add nodes without references."""
        for each in hashes:
            prefix = _number(each)
            if not self._prefixes or self._prefixes[-1] != prefix:
                self._prefixes.append(prefix)
                self._counts.append(0)

    def add(self, hashes: Iterable[bytes]) -> None:
        """Count a reference to each of these nodes; ignore nodes that were not added before."""
        for each in hashes:
            place = self._find(each)
            if place is not None and self._counts[place] < _MANY:
                self._counts[place] += 1

    def remove(self, hashes: Iterable[bytes]) -> list[bytes]:
        """Remove a reference to each of these nodes; return the prefixes of nodes that have no references left."""
        unused = []
        for each in hashes:
            place = self._find(each)
            if place is not None and 0 < self._counts[place] < _MANY:
                self._counts[place] -= 1
                if not self._counts[place]:
                    unused.append(each[:PREFIX_OCTETS])
        return unused

    def is_unused(self, prefix: bytes) -> bool:
        """Tell whether nodes with this prefix were added, and have no references."""
        place = self._find(prefix)
        return place is not None and not self._counts[place]

    def all_unused(self) -> Iterator[bytes]:
        """Yield the prefixes of all nodes without references; counts may change meanwhile."""
        place = self._counts.find(0)
        while place >= 0:
            yield self._prefixes[place].to_bytes(PREFIX_OCTETS, "big")
            place = self._counts.find(0, place + 1)

    def _find(self, tree_hash: bytes) -> int | None:
        prefix = _number(tree_hash)
        place = bisect_left(self._prefixes, prefix)
        return place if place < len(self._prefixes) and self._prefixes[place] == prefix else None


def _number(tree_hash: bytes) -> int:
    return int.from_bytes(tree_hash[:PREFIX_OCTETS], "big")


async def sweep_trees(store: Store, now: Milliseconds, pause: Callable[[], Awaitable[None]]) -> None:
    """Delete all nodes that are not in use; call `pause` after each page. Raises `StorageUnavailable`."""
    await store.write(lambda tx: trees.begin_sweep(tx, now))
    references = await _count_references(store, pause)
    without, freed = references.all_unused(), list[bytes]()
    while page := [*islice(without, PAGE_NODES), *freed[:PAGE_NODES]]:
        del freed[:PAGE_NODES]
        ended = False
        while not ended:
            prefixes = [each for each in page if references.is_unused(each)]  # nodes that are in use again stay
            drop = partial(trees.drop_unused, prefixes=prefixes, began_at=now, limit=PAGE_NODES)
            dropped = await store.write(drop)
            if dropped.replaced:
                return
            references.add(dropped.protected)
            freed += references.remove(dropped.children)
            ended = dropped.ended
            await pause()
    await store.write(trees.end_sweep)


async def _count_references(store: Store, pause: Callable[[], Awaitable[None]]) -> References:
    references = References()
    last = b""
    while hashes := await store.read(partial(trees.hashes_page, after=last, limit=PAGE_NODES)):
        references.add_nodes(hashes)
        last = hashes[-1]
        await pause()
    node: bytes | None = b""
    while node is not None:
        children, node = await store.read(partial(trees.children_page, after=node, limit=PAGE_NODES))
        references.add(children)
        await pause()
    partition: int | None = 0
    while partition is not None:
        roots, partition = await store.read(partial(trees.roots_page, after=partition, limit=PAGE_NODES))
        references.add(roots)
        await pause()
    return references
