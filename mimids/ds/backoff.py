"""When to try again: doubling, with jitter, up to a cap."""

from __future__ import annotations

import random

import attrs


@attrs.frozen
class Backoff:
    """Delays between attempts; `random` is a source of numbers from 0 to 1."""

    first_seconds: float
    cap_seconds: float
    jitter: random.Random = attrs.field(factory=random.Random)

    def seconds(self, failures: int, retry_after: float | None = None) -> float:
        """Return how long to wait after `failures` (1 or more) in a row; never less than the peer asked for.

        Half of the delay is certain and half is chance, so that peers that failed together do not return together.
        """
        delay = min(self.cap_seconds, self.first_seconds * 2.0 ** min(failures - 1, 32))
        delay *= 0.5 + self.jitter.random() / 2
        return max(delay, min(retry_after or 0, self.cap_seconds))
