"""The octets that peers make the process keep: bodies being received or decoded, and answers not yet sent.

One budget holds for all listeners, with a share for each owner. A body that does not fit waits, unread, so that TCP
holds its sender back; an answer that does not fit is replaced by a refusal.
"""

from __future__ import annotations

from typing import Final

import attrs
import trio

from mimids.http.server.shares import RESERVE, SHARE, Owner, Shares

WAIT_SECONDS: Final = 10  # how long to wait for room before the request is refused
TOTAL_OCTETS: Final = 128 * 1024 * 1024
LARGEST_OCTETS: Final = 32 * 1024 * 1024  # a share has room for the largest body at least


@attrs.frozen
class BufferStatistics:
    """Octets held now, and how often there was no room for some since the start."""

    octets: int
    refused: int


class Buffers:
    """The budget: `total` octets, of which one owner may hold a quarter, and at least `largest`."""

    def __init__(self, total: int = TOTAL_OCTETS, *, largest: int = LARGEST_OCTETS) -> None:
        total = max(total, largest)
        reserve = total // RESERVE
        share = min(max(total // SHARE, largest), total)
        self._shares = Shares(total, share=share, reserve=reserve if share < total else 0, little=reserve // SHARE)
        self._room = trio.lowlevel.ParkingLot()
        self.refused = 0

    def statistics(self) -> BufferStatistics:
        """Return the counts."""
        return BufferStatistics(self._shares.used, self.refused)

    def take_nowait(self, owner: Owner, octets: int) -> bool:
        """Take octets if there is room for them; else return False."""
        if not self._shares.has_room(owner, octets):
            self.refused += 1
            return False
        self._shares.take(owner, octets)
        return True

    async def take(self, owner: Owner, octets: int) -> bool:
        """Take octets; wait up to WAIT_SECONDS for room, then return False."""
        if not self._shares.has_room(owner, octets):
            with trio.move_on_after(WAIT_SECONDS):
                while not self._shares.has_room(owner, octets):
                    await self._room.park()
        return self.take_nowait(owner, octets)

    def move(self, owner: Owner, to: Owner, octets: int) -> None:
        """Count octets for another owner from now on, whether it has room or not."""
        self._shares.give_back(owner, octets)
        self._shares.take(to, octets)

    def give_back(self, owner: Owner, octets: int) -> None:
        """Return octets to the budget, and wake the tasks that wait for room."""
        self._shares.give_back(owner, octets)
        self._room.unpark_all()
