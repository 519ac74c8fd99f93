"""How much each owner holds of a pool that all peers share, such as connections or buffered octets.

An owner may hold at most a share of the pool. The last part of the pool, the reserve, is kept for owners that hold
little, so that a new owner gets a part even when a few owners have taken their full shares.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from mimids.owners import Owner

SHARE: Final = 4  # an owner may hold a quarter of a pool ...
RESERVE: Final = 8  # ... and an eighth is kept for owners that hold little
IPV6_PREFIX: Final = 64  # a host usually gets a prefix of this length, and can use any address with that prefix


class Shares:
    """Counts what each owner holds of a pool of `total`; only owners that hold something are remembered."""

    def __init__(self, total: int, *, share: int, reserve: int, little: int) -> None:
        """Make an empty pool; an owner that holds at most `little` may take from the last `reserve`."""
        self.used = 0
        self._held: dict[Owner, int] = {}
        self.resize(total, share=share, reserve=reserve, little=little)

    def resize(self, total: int, *, share: int, reserve: int, little: int) -> None:
        """Change the pool; owners keep what they hold, even if it is more than the new share."""
        self.total = total
        self.share = share
        self._open = total - reserve
        self._little = little

    def held(self, owner: Owner) -> int:
        """Return how much an owner holds."""
        return self._held.get(owner, 0)

    def has_room(self, owner: Owner, amount: int = 1) -> bool:
        """Tell whether this owner may take `amount` more."""
        within = owner is None or self.held(owner) + amount <= self.share
        return within and self.has_room_at_all(owner, amount)

    def has_room_at_all(self, owner: Owner, amount: int = 1) -> bool:
        """Tell whether this owner could take `amount` more if owners were not limited to a share."""
        little = owner is None or self.held(owner) + amount <= self._little
        return self.used + amount <= (self.total if little else self._open)

    def take(self, owner: Owner, amount: int = 1) -> None:
        """Add `amount` to what an owner holds, whether there is room or not."""
        self.used += amount
        self._held[owner] = self.held(owner) + amount

    def give_back(self, owner: Owner, amount: int = 1) -> None:
        """Subtract `amount` from what an owner holds."""
        self.used -= amount
        left = self._held[owner] - amount
        if left:
            self._held[owner] = left
        else:
            del self._held[owner]


def owner_of_address(host: str) -> Owner:
    """Return the owner that an address stands for: an IPv4 address, or the /64 of an IPv6 address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return "address", str(address)
    if address.ipv4_mapped is not None:
        return "address", str(address.ipv4_mapped)
    return "address", str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
