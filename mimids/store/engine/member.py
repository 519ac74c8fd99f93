"""The interface between the processes that serve one provider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import attrs

FROZEN_SECONDS: Final = 15.0  # a process that was not seen alive for so long loses the jobs


@attrs.frozen
class Heard:
    """News from other processes: what has changed, each as `TABLE` or `TABLE ROW`, and notifications."""

    changed: frozenset[str] = frozenset()
    payloads: tuple[str, ...] = ()  # an empty one: notify all listeners
    missed: bool = False  # earlier notifications may have been missed
    alive: frozenset[str] = frozenset()  # other processes that gave a sign of life


class Member(Protocol):
    """One of the processes that serve the provider."""

    def lag_seconds(self) -> float:
        """Return how long news takes to reach this process."""

    async def note_alive(self) -> bool:
        """Record that this process is alive; return whether it must run the jobs. Raises `StorageUnavailable`."""

    async def notify(self, payloads: Sequence[str]) -> None:
        """Send notifications to the other processes; raise `StorageUnavailable`."""

    async def wait_heard(self) -> Heard:
        """Wait for notifications of other processes; raise `StorageUnavailable`."""
