"""The octets that peers make the process keep: bodies being received or decoded, answers and frames not yet sent.

All listeners have one budget together, with a share for each owner. A body that does not fit waits, unread, so that TCP
holds its sender back; an answer that does not fit is replaced by a refusal. A stream is closed if a frame does not fit.
"""

from __future__ import annotations

from typing import Final

import attrs
import trio

from mimids.http.server.shares import RESERVE, SHARE, Shares
from mimids.owners import Owner

WAIT_SECONDS: Final = 10  # how long to wait for room before the request is refused
TOTAL_OCTETS: Final = 128 * 1024 * 1024
# a smaller answer, frame or rest of pipelined requests is not counted: its connection costs more
UNCOUNTED_OCTETS: Final = 4096
LARGEST_OCTETS: Final = 32 * 1024 * 1024  # a share is at least as large as the largest body


@attrs.frozen
class BufferStatistics:
    """The octets that are held now, and how often there was no room for octets since the start."""

    octets: int
    refused: int


class Buffers:
    """The budget: `total` octets.

    One owner may hold a quarter of the budget, or `largest` octets if that is more.
    """

    def __init__(self, total: int = TOTAL_OCTETS, *, largest: int = LARGEST_OCTETS) -> None:
        self._shares = Shares(0, share=0, reserve=0, little=0)
        self.resize(total, largest=largest)
        self._room = trio.lowlevel.ParkingLot()
        self.refused = 0

    def resize(self, total: int, *, largest: int) -> None:
        """Change the budget; owners keep the octets that they hold."""
        total = max(total, largest)
        reserve = total // RESERVE
        share = min(max(total // SHARE, largest), total)
        self.most_reserved = share // SHARE  # no answer reserves more, even if it may need more in the worst case
        self._shares.resize(total, share=share, reserve=reserve if share < total else 0, little=reserve // SHARE)

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
        """Take octets; wait up to WAIT_SECONDS for room, and return False if there is none then."""
        if self._shares.has_room(owner, octets):
            self._shares.take(owner, octets)
            return True
        with trio.move_on_after(WAIT_SECONDS):
            while not self._shares.has_room(owner, octets):
                await self._room.park()
        return self.take_nowait(owner, octets)

    def move(self, owner: Owner, to: Owner, octets: int) -> None:
        """Count octets for another owner from now on, whether it has room or not."""
        self._shares.give_back(owner, octets)
        self._shares.take(to, octets)

    def give_back(self, owner: Owner, octets: int) -> None:
        """Give octets back to the budget, and wake the tasks that wait for room."""
        self._shares.give_back(owner, octets)
        if self._room:
            self._room.unpark_all()
