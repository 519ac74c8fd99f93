"""A cache of what was read from the heads of requests. Clients of one gateway write the same few heads."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

T = TypeVar("T")

HEADS_KEPT: Final = 8
HEAD_KEPT_OCTETS: Final = 512


class RequestHeads(Generic[T]):
    """The last heads, and a value for each.

    A head is the octets of a Binary HTTP request of known length before its content. No head is the beginning of a
    longer one, because its last section, the fields, has a length.
    """

    def __init__(self) -> None:
        self._heads: tuple[tuple[bytes, T], ...] = ()  # replaced as a whole, because another thread may read it

    def find(self, message: bytes) -> tuple[bytes, T] | None:
        """Return the head with which a message begins, and its value; None if the head is not known."""
        for known in self._heads:
            if message.startswith(known[0]):
                return known
        return None

    def remember(self, head: bytes, value: T) -> None:
        """Keep a head that is not known, unless it is long."""
        if len(head) <= HEAD_KEPT_OCTETS:
            self._heads = ((head, value), *self._heads[: HEADS_KEPT - 1])
