"""The parts of the demonstration, with their checks and their duration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from mimids.cli.showing import say


@attrs.define
class Part:
    """One part of the demonstration, filled in while it runs."""

    title: str
    done: str = ""
    checks: int = 0
    failed: list[str] = attrs.field(factory=list)
    seconds: float = 0.0

    def check(self, holds: bool, what: str) -> None:
        """Count a check; `what` is the statement that the check tests."""
        self.checks += 1
        if not holds:
            self.failed.append(what)


class Ledger:
    """All parts that have begun."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    @contextmanager
    def part(self, title: str) -> Iterator[Part]:
        """Time a part, and print its result when it is finished."""
        part = Part(title)
        self.parts.append(part)
        began = time.perf_counter()
        try:
            yield part
        except BaseException:
            say(f"  ✗ {title}")
            raise
        part.seconds = time.perf_counter() - began
        say(f"  {'✗' if part.failed else '✓'} {title}: {part.done} ({part.seconds:.2f} s)")
        for what in part.failed:
            say(f"      failed: {what}")

    @property
    def checks(self) -> int:
        """Return how many checks were made."""
        return sum(part.checks for part in self.parts)

    @property
    def failed(self) -> list[str]:
        """Return the checks that failed."""
        return [what for part in self.parts for what in part.failed]
