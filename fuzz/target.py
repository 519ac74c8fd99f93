"""A target: code that gets octets from outside, what it may do with them, and how its inputs look."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from random import Random
from time import thread_time
from typing import Any, Final

import attrs

from fuzz.mutation import Donors, Mutator, Unmakeable, swollen
from mimids.wire.codec import Codec, WireError

FLOOR_SECONDS: Final = 0.2  # for any input; instrumented code is several times slower than it is in service
SECONDS_PER_KIB: Final = 0.01
ROUNDS: Final = 4  # mutations of one value at most

Shape = tuple[int, Codec[Any]]
"""How many octets come first, and the type whose encoding all others are."""


class TooSlow(Exception):
    """An input took longer than its size allows."""


@attrs.frozen(kw_only=True)
class Target:
    """One target; `run` lets an exception out only where the code under test is wrong."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    shape: Callable[[bytes], Shape | None] = lambda _: None
    most: int = 4096  # octets of an input
    share: int = 1  # of the seconds, beside the other targets
    donors: Donors = attrs.field(factory=Donors, repr=False, eq=False)
    cpu_seconds: Callable[[], float] = thread_time

    def test(self, octets: bytes) -> None:
        """Run an input; raise `TooSlow` if it takes longer than its size allows, three times out of three."""
        allowed = FLOOR_SECONDS + SECONDS_PER_KIB * len(octets) / 1024
        for _ in range(3):
            began = self.cpu_seconds()
            self.run(octets)
            if self.cpu_seconds() - began <= allowed or sys.gettrace() is not None:
                return
        raise TooSlow(f"{len(octets)} octets took longer than {allowed:.3f} s of CPU time, three times")

    def learn(self, inputs: Iterable[bytes]) -> None:
        """Keep the values in these inputs as donors for mutations."""
        for octets in inputs:
            shape = self.shape(octets)
            if shape is None:
                continue
            try:
                self.donors.add(shape[1], shape[1].decode(octets[shape[0] :]))
            except WireError:
                continue

    def mutated(self, octets: bytes, most: int, random: Random) -> bytes | None:
        """Return a mutation by structure or one with a piece repeated; None if only octets can be mutated."""
        what = random.random()
        if what < 0.05:
            return swollen(octets, most, random)[:most]
        shape = self.shape(octets)
        if what < 0.4 or shape is None:
            return None
        head, by = shape
        mutator = Mutator(random, self.donors)
        try:
            value = by.decode(octets[head:])
            for _ in range(random.randrange(1, ROUNDS)):
                value = mutator.changed(by, value)
            made = octets[:head] + by.encode(value)
        except (WireError, Unmakeable, ValueError, OverflowError):
            return None
        return made if len(made) <= most else None
