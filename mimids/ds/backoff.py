"""How long to wait before the next attempt: the delay doubles, with jitter, up to a cap."""

from __future__ import annotations

import random

import attrs

from mimids.errors import MimiError


@attrs.frozen
class Backoff:
    """Delays between attempts; `jitter` is a source of random numbers from 0 to 1."""

    first_seconds: float
    cap_seconds: float
    jitter: random.Random = attrs.field(factory=random.Random)

    def seconds(self, failures: int, retry_after: float | None = None) -> float:
        """Return how long to wait after this many failures in a row: at least `retry_after`, at most the cap.

        Half of the delay is fixed and half is random, so that peers that failed together do not retry together.
        """
        delay = min(self.cap_seconds, self.first_seconds * 2.0 ** min(failures - 1, 32))
        delay *= 0.5 + self.jitter.random() / 2
        return max(delay, min(retry_after or 0, self.cap_seconds))

    def seconds_after(self, error: MimiError, failures: int) -> float:
        """Return how long to wait after an error, at least as long as its `retry_after` asks for."""
        retry_after = error.members.get("retry_after")
        return self.seconds(failures, retry_after if isinstance(retry_after, int | float) else None)
