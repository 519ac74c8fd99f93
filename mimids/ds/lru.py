"""A bounded mapping that evicts the least recently used entry."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LeastRecentlyUsed(Generic[K, V]):
    """A mapping of at most `limit` entries; `get` and `put` count as use, `peek` and `in` do not.

    Iteration goes from the least to the most recently used key. Not safe for use from several threads at once.
    """

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value of `key` and mark it as used; None if it is absent."""
        value = self._entries.get(key)
        if value is not None or key in self._entries:
            self._entries.move_to_end(key)
        return value

    def peek(self, key: K) -> V | None:
        """Return the value of `key` without marking it as used; None if it is absent."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Set the value of `key` and mark it as used; evict the least recently used entry beyond the limit."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def pop(self, key: K) -> V | None:
        """Remove `key` and return its value; None if it is absent."""
        return self._entries.pop(key, None)

    def pop_oldest(self) -> tuple[K, V]:
        """Remove the least recently used entry and return it; raise `KeyError` if there is none."""
        return self._entries.popitem(last=False)

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)
