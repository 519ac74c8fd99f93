"""What a work locks, so that several processes can commit works that lock different things at the same time.

Only PostgreSQL uses these locks: SQLite has one writer. A work that names no locks is committed alone: meanwhile no
other process commits anything. A work that names locks reads and changes only rows that

- belong to what it locks, such as the partitions and followers of a group, or
- are changed only by works that name no locks, or
- another transaction may change between two statements without harm.

If the work finds that it needs more, it calls `Tx.run_alone`. A work that names locks never changes rows that processes
cache (`CACHED` in `postgresql/migrations.py`): the database refuses the change, and the work is run again, alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeAlias

MOST_AT_ONCE: Final = 256  # in one transaction: PostgreSQL has room for a few thousand in all sessions together

Lock: TypeAlias = tuple[Literal["group", "hub", "user", "peer"], bytes]
Locks: TypeAlias = frozenset[Lock]


def group_lock(group_id: bytes) -> Lock:
    """Return the lock of a group of our own: its partitions, messages, proposals, followers and held Welcomes."""
    return ("group", group_id)


def hub_lock(hub: str) -> Lock:
    """Return the lock of all groups of another hub, and of what our devices and Welcomes expect from it."""
    return ("hub", hub.encode())


def user_lock(user: bytes) -> Lock:
    """Return the lock of a user's KeyPackages and tokens, and of the stored answers that contain the KeyPackages."""
    return ("user", user)


def peer_lock(provider: str) -> Lock:
    """Return the lock of a follower's state: its cursor and its failures."""
    return ("peer", provider.encode())


def united(locks: Sequence[Locks | None]) -> Locks | None:
    """Return the locks of all works of a batch together; None if the batch has to be committed alone."""
    found: set[Lock] = set()
    for each in locks:
        if each is None:
            return None
        found |= each
    return frozenset(found) if len(found) <= MOST_AT_ONCE else None


def numbers_of(locks: Iterable[Lock]) -> list[int]:
    """Return the numbers of locks for PostgreSQL, in the order in which every transaction takes them."""
    return sorted(
        int.from_bytes(hashlib.sha256(kind.encode() + b"\0" + key).digest()[:8], "big", signed=True)
        for kind, key in locks
    )
