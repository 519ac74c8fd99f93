"""Rates that several processes share: each tells the others of every eighth of a burst that a key has taken."""

from __future__ import annotations

import pytest

from mimids.ds.limits.rates import TOLD_PARTS, Rate, Rates
from mimids.ds.limits.shared_rates import TOLD_AT_ONCE, TOOK, SharedRates
from mimids.errors import RateLimited
from mimids.testing.clock import MovableClock
from tests.support.doubles import stopped_clock

SENDS = Rate("sends", 10, 80)


class Process:
    """The rates of one process."""

    def __init__(self, clock: MovableClock, rate: Rate = SENDS, *, shared: bool = True) -> None:
        self.clock, self.rates, self.shared = clock, Rates(rate), SharedRates(clock, shared=shared)
        self.shared.add("users", self.rates)

    def take(self, key: str, count: int = 1) -> int:
        """Take as many tokens as are left, at most `count`; return the number."""
        for number in range(count):
            try:
                self.rates.take(key, self.clock.now())
            except RateLimited:
                return number
        return count

    def tell(self, *others: Process) -> list[tuple[object, ...]]:
        told = list(self.shared.due())
        for other in others:
            for kind, *values in told:
                assert kind == TOOK
                other.shared.hear(*values)  # type: ignore[arg-type]
        return told


def test_less_than_an_eighth_of_a_burst_is_not_told_before_more_is_taken() -> None:
    process = Process(stopped_clock())
    process.take("alice", SENDS.burst // TOLD_PARTS - 1)
    assert process.tell() == []
    process.take("alice")
    process.take("bob")
    assert process.tell() == [(TOOK, "users 0", "alice", SENDS.burst // TOLD_PARTS)]
    assert process.tell() == []


def test_what_others_took_is_not_told_again() -> None:
    clock = stopped_clock()
    one, other = Process(clock), Process(clock)
    one.take("alice", SENDS.burst)
    one.tell(other)
    assert other.tell(one) == []
    assert other.take("alice") == 0


def test_four_processes_allow_four_bursts_and_then_the_rate_of_one() -> None:
    clock, seconds = stopped_clock(), 60
    found = [Process(clock) for _ in range(4)]
    took = 0
    for _ in range(seconds):
        took += sum(each.take("mallory", 1000) for each in found)
        for each in found:
            each.tell(*(other for other in found if other is not each))
        clock.advance(1)
    assert 10 * seconds <= took <= 4 * SENDS.burst + 10 * seconds


def test_a_key_that_stays_below_the_rate_is_refused_at_no_process() -> None:
    clock = stopped_clock()
    one, other = Process(clock), Process(clock)
    for _ in range(100):
        assert (one.take("alice", 5), other.take("alice", 4)) == (5, 4)
        one.tell(other)
        other.tell(one)
        clock.advance(1)


def test_many_keys_are_told_over_several_seconds() -> None:
    process = Process(stopped_clock(), Rate("sends", 10, 8))
    for number in range(TOLD_AT_ONCE + 5):
        process.take(str(number))
    assert [len(process.tell()) for _ in range(3)] == [TOLD_AT_ONCE, 5, 0]


@pytest.mark.parametrize(
    "process", [Process(stopped_clock(), shared=False), Process(stopped_clock(), Rate("a", 0.01, 8))]
)
def test_nothing_is_told_if_there_is_one_process_or_the_rate_is_stored(process: Process) -> None:
    process.take("alice", 8)
    assert process.tell() == []
    process.shared.hear("users 0", "alice", 8)
    process.shared.hear("unknown", "alice", 8)
