"""What one connection holds of the pools that all connections share, and for which owner."""

from __future__ import annotations

from mimids.http.server.buffers import Buffers
from mimids.http.server.shares import Owner, Shares


class Holding:
    """One connection's place among the connections of its listener, and the octets that it holds.

    They count for the peer's address until a caller is admitted, then for that caller. Without pools nothing is
    bounded, as in tests without a listener.
    """

    def __init__(
        self, address: Owner = None, connections: Shares | None = None, buffers: Buffers | None = None
    ) -> None:
        self.owner = self._address = address
        self.identified = False  # by a certificate
        self.octets = 0
        self._connections = connections
        self._buffers = buffers
        if connections is not None:
            connections.take(address)

    def admit(self, caller: Owner) -> bool:
        """Count the connection for `caller`, or the address if it is None; return False if that share is used up."""
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
        """Count the connection for the peer that its certificate names, not for its address, if that peer has room."""
        self.identified = self.admit(peer)
        if self.identified:
            self._address = peer

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
        """Return the octets to the budget, once the request is answered."""
        if self.octets and self._buffers is not None:
            self._buffers.give_back(self.owner, self.octets)
        self.octets = 0

    def close(self) -> None:
        """Return the octets and the connection's place; doing it again does nothing."""
        self.give_back()
        if self._connections is not None:
            self._connections.give_back(self.owner)
            self._connections = None

    def _move_octets(self, owner: Owner) -> None:
        if self.octets and self._buffers is not None:
            self._buffers.move(self.owner, owner, self.octets)
