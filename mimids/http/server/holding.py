"""The part of the shared pools that one connection holds, and the owner for which it counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

from mimids.http.server.buffers import UNCOUNTED_OCTETS, Buffers
from mimids.http.server.shares import Shares
from mimids.http.server.waits import Waits
from mimids.owners import Owner


class Holding:
    """One connection's place among the connections of its listener, and the octets that it holds.

    The place and the octets count for the peer's address until a caller is admitted, then for that caller. Without
    pools, as in tests without a listener, nothing is bounded.
    """

    def __init__(
        self,
        address: Owner = None,
        connections: Shares | None = None,
        buffers: Buffers | None = None,
        waits: Waits | None = None,
    ) -> None:
        self.owner = self._address = address
        self._waits = waits
        self.identified = False  # by a certificate
        self.octets = 0
        self._reserved = 0  # the part of `octets` that is for the answer
        self.heard_at = -inf  # when the connection received anything last, in trio's time
        self._connections = connections
        self._buffers = buffers
        if connections is not None:
            connections.take(address)

    def admit(self, caller: Owner) -> bool:
        """Count the connection for `caller` (None: for the address); return False if that owner's share is used up."""
        pool, owner = self._connections, self._address if caller is None else caller
        if pool is None:
            return True
        if owner == self.owner:
            return owner is None or pool.held(owner) <= pool.share
        pool.give_back(self.owner)
        admitted = owner is None or pool.has_room(owner)
        if admitted:
            self._move_octets(owner)
            self.owner = owner
        pool.take(self.owner)
        return admitted

    def identify(self, peer: Owner) -> None:
        """Count the connection for the provider in the peer's certificate instead of its address, if there is room."""
        self.identified = self.admit(peer)
        if self.identified:
            self._address = peer

    @contextmanager
    def wait(self) -> Iterator[bool]:
        """For the block, count the current request as a waiting request; yield False if there is no room for it."""
        waits, caller, address = self._waits, self.owner, self._address
        if waits is None:
            yield True
        elif not waits.begin(caller, address):
            yield False
        else:
            try:
                yield True
            finally:
                waits.end(caller, address)

    async def take(self, octets: int) -> bool:
        """Take octets of the budget for the present request; wait a while for room, then return False."""
        if self._buffers is not None and not await self._buffers.take(self.owner, octets):
            return False
        self.octets += octets
        return True

    def take_nowait(self, octets: int) -> bool:
        """Take octets as `take` does, but return False at once if there is no room."""
        if self._buffers is not None and not self._buffers.take_nowait(self.owner, octets):
            return False
        self.octets += octets
        return True

    async def reserve(self, octets: int) -> bool:
        """Take octets for the answer before it is made; wait a while for room, then return False."""
        if self._buffers is not None:
            octets = min(octets, self._buffers.most_reserved)
        reserved = await self.take(octets)
        if reserved:
            self._reserved += octets
        return reserved

    def take_answer(self, octets: int) -> bool:
        """Replace the octets reserved for an answer by the octets that it needs: take more, or give some back.

        Returns False if there is no room.
        """
        needed = octets if octets > UNCOUNTED_OCTETS else 0
        more, self._reserved = needed - self._reserved, 0
        return self.hold(self.octets + more)

    @contextmanager
    def keep(self, octets: int) -> Iterator[bool]:
        """For the block, count octets that are not part of the current request; yield False if there is no room."""
        buffers, owner = self._buffers, self.owner
        if buffers is None or octets <= UNCOUNTED_OCTETS:
            yield True
        elif not buffers.take_nowait(owner, octets):
            yield False
        else:
            try:
                yield True
            finally:
                buffers.give_back(owner, octets)

    def hold(self, octets: int) -> bool:
        """Change the octets held to `octets` in all; return False, and change nothing, if there is no room for them."""
        more = octets - self.octets
        if more > 0:
            return self.take_nowait(more)
        if more and self._buffers is not None:
            self._buffers.give_back(self.owner, -more)
        self.octets = octets
        return True

    def give_back(self) -> None:
        """Give the octets back to the budget, once the request is answered."""
        if self.octets and self._buffers is not None:
            self._buffers.give_back(self.owner, self.octets)
        self.octets = self._reserved = 0

    def close(self) -> None:
        """Give back the octets and the connection's place; a second call does nothing."""
        self.give_back()
        if self._connections is not None:
            self._connections.give_back(self.owner)
            self._connections = None

    def _move_octets(self, owner: Owner) -> None:
        if self.octets and self._buffers is not None:
            self._buffers.move(self.owner, owner, self.octets)
