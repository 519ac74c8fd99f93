"""Rates that several processes of a provider share, and that are not stored (`kept_rates` shares those that are).

Each process has a bucket for each key. When a key has taken an eighth of a burst at one process, that process tells the
others within a second, and they take as many tokens from their buckets. So n processes together allow what one would
allow, and at most n - 1 bursts more at first.

Processes tell each other by notifications (`ds/processes.py`); nothing is stored.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final

from mimids.ds.limits.rates import Rates
from mimids.ds.ports import Clock

TOOK: Final = "took"  # the kind of these notifications
TOLD_AT_ONCE: Final = 2000  # keys; the others follow a second later


class SharedRates:
    """The rates of one process that it shares with others."""

    def __init__(self, clock: Clock, *, shared: bool) -> None:
        """Unless `shared`, the provider has one process, and nothing is noted or told."""
        self._clock = clock
        self._shared = shared
        self._rates: dict[str, Rates] = {}

    def add(self, name: str, *rates: Rates) -> None:
        """Share rates from now on; in other processes the same rates have the same name and order."""
        for number, each in enumerate(rates if self._shared else ()):
            each.share()
            self._rates[f"{name} {number}"] = each

    def due(self) -> Iterator[tuple[Hashable, ...]]:
        """Yield what the other processes must be told now."""
        left = TOLD_AT_ONCE
        for name, rates in self._rates.items():
            due = [] if rates.is_stored() else rates.drain_due(left)
            left -= len(due)
            yield from ((TOOK, name, key, count) for key, count in due)

    def hear(self, name: str, key: str, count: int) -> None:
        """Take the tokens that a key took at another process."""
        rates = self._rates.get(name)
        if rates is not None and not rates.is_stored():
            rates.take_elsewhere(key, count, self._clock.now())
