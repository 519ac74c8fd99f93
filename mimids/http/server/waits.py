"""The requests of one listener that wait for news (`Prefer: wait`): each keeps a connection busy for up to a minute.

At most half of a listener's connections may be kept busy in this way. A caller may have a quarter of these waits, and
all callers at one address together may have a quarter. The last eighth of the waits is reserved for callers that have
few.
"""

from __future__ import annotations

from typing import Final

from mimids.http.server.shares import RESERVE, SHARE, Shares
from mimids.owners import Owner

OF_CONNECTIONS: Final = 2  # one wait for every two connections
LITTLE: Final = 16  # an owner with at most a sixteenth of a share has few


class Waits:
    """Counts the waiting requests of a listener."""

    def __init__(self, connections: int) -> None:
        total = max(1, connections // OF_CONNECTIONS)
        share = max(1, total // SHARE)
        self._callers = Shares(total, share=share, reserve=total // RESERVE, little=max(1, share // LITTLE))
        self._addresses = Shares(total, share=share, reserve=0, little=0)

    @property
    def waiting(self) -> int:
        """Return how many requests wait."""
        return self._callers.used

    def begin(self, caller: Owner, address: Owner) -> bool:
        """Count a request that waits; return False, and count nothing, if there is no room for it."""
        if not (self._callers.has_room(caller) and self._addresses.has_room(address)):
            return False
        self._callers.take(caller)
        self._addresses.take(address)
        return True

    def end(self, caller: Owner, address: Owner) -> None:
        """Stop counting a request that `begin` counted."""
        self._callers.give_back(caller)
        self._addresses.give_back(address)
