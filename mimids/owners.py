"""Owners: on whose behalf a task works. If many tasks wait for the same thing, their owners get it in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from contextvars import ContextVar
from typing import Final, Generic, TypeVar

T = TypeVar("T")

Owner = Hashable | None  # None: the owner is not known, and has no share of its own

# For whom the present task works: the caller of a request; None for the jobs of this server.
WORKING_FOR: Final[ContextVar[Owner]] = ContextVar("WORKING_FOR", default=None)


class FairQueue(Generic[T]):
    """A queue for each owner; `pop` takes an item of each owner in turn."""

    def __init__(self) -> None:
        self._items: dict[Owner, deque[T]] = {}  # the owner whose turn is next is first
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def has(self, owner: Owner) -> bool:
        """Tell whether an owner has items in the queue."""
        return owner in self._items

    def count(self, owner: Owner) -> int:
        """Return how many items an owner has in the queue."""
        return len(self._items.get(owner, ()))

    def contains(self, owner: Owner, item: T) -> bool:
        """Tell whether an owner has this item in the queue."""
        return item in self._items.get(owner, ())

    def owners(self) -> list[Owner]:
        """Return the owners of items, the next one first."""
        return list(self._items)

    def add(self, owner: Owner, item: T) -> None:
        """Append an item to an owner's items."""
        self._items.setdefault(owner, deque()).append(item)
        self._length += 1

    def remove(self, owner: Owner, item: T) -> None:
        """Remove an item that is in the queue."""
        items = self._items[owner]
        items.remove(item)
        self._length -= 1
        if not items:
            del self._items[owner]

    def pop(self) -> T:
        """Remove and return the oldest item of the owner whose turn is next; the queue must not be empty."""
        return self.pop_of(next(iter(self._items)))

    def pop_of(self, owner: Owner) -> T:
        """Remove and return an owner's oldest item; the owner's next turn then comes after those of all others."""
        items = self._items.pop(owner)
        item = items.popleft()
        self._length -= 1
        if items:
            self._items[owner] = items
        return item
