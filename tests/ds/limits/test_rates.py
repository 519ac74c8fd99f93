"""Token buckets."""

from __future__ import annotations

import pytest

from mimids.ds.limits.rates import LONGEST_WAIT_SECONDS, Rate, Rates, take_all
from mimids.errors import RateLimited
from mimids.values import Milliseconds


def at(seconds: float) -> Milliseconds:
    return Milliseconds(int(seconds * 1000))


def test_a_burst_is_allowed_and_refilled_steadily() -> None:
    rates = Rates(Rate("limit", 0.5, 3))
    for _ in range(3):
        rates.take("a", at(0))
    with pytest.raises(RateLimited) as refused:
        rates.take("a", at(1))
    assert refused.value.members == {"limit": "limit", "retry_after": 1}
    rates.take("a", at(2))
    with pytest.raises(RateLimited):
        rates.take("a", at(2))
    for _ in range(3):
        rates.take("a", at(100))
    with pytest.raises(RateLimited):
        rates.take("a", at(100))


def test_several_rates_are_taken_together_or_none_of_them() -> None:
    few, many, unlimited = Rates(Rate("few", 1, 2)), Rates(Rate("many", 1, 10)), Rates(Rate("none", 0, 0))
    for _ in range(2):
        assert take_all([(unlimited, "a", 5), (many, "a", 3), (few, None, 1)], at(0)) is None
    assert take_all([(unlimited, "a", 5), (many, "a", 3), (few, None, 1)], at(0)) is few
    assert take_all([(many, "a", 5), (few, "other", 1)], at(0)) is many
    assert many.left("a", at(0), at_most=10) == 4
    assert few.left("other", at(0), at_most=10) == 2


def test_a_refusal_takes_no_tokens() -> None:
    rates = Rates(Rate("limit", 1, 1))
    rates.take("a", at(0))
    for tenth in range(1, 10):
        with pytest.raises(RateLimited):
            rates.take("a", at(tenth / 10))
    rates.take("a", at(1))


def test_each_key_has_a_bucket_of_its_own() -> None:
    rates = Rates(Rate("limit", 1, 1))
    rates.take("a", at(0))
    rates.take("b", at(0))


def test_a_clock_that_is_set_back_neither_refills_nor_drains() -> None:
    rates = Rates(Rate("limit", 1, 2))
    rates.take("a", at(100))
    rates.take("a", at(50))
    with pytest.raises(RateLimited):
        rates.take("a", at(50))
    rates.take("a", at(51))


def test_a_rate_of_zero_is_no_limit() -> None:
    rates = Rates(Rate("limit", 0, 1))
    for _ in range(1000):
        rates.take("a", at(0))


def test_the_bucket_that_was_used_longest_ago_is_evicted() -> None:
    rates = Rates(Rate("limit", 1, 1), keys=2)
    for key in "abc":
        rates.take(key, at(0))
    rates.take("a", at(0))  # evicted, so full
    with pytest.raises(RateLimited):
        rates.take("c", at(0))


def test_after_a_restart_a_rate_is_full_only_if_it_refills_quickly() -> None:
    for per_second, is_full in ((1, True), (1 / 3600, False)):
        before, after = (Rates(Rate("limit", per_second, 1)) for _ in range(2))
        before.take("a", at(7200))
        for bucket in before.drain(at(7200))[0]:
            after.restore(bucket.key, bucket.left, bucket.at)
        assert after.left("a", at(7200), at_most=1) == is_full


@pytest.mark.parametrize("per_second", [1e-300, 1e-309, 5e-324])
def test_a_rate_of_next_to_nothing_is_refused_with_a_wait_that_can_be_written(per_second: float) -> None:
    """The terms of another hub may set it."""
    rates = Rates(Rate("limit", per_second, 1))
    rates.take("a", at(0))
    with pytest.raises(RateLimited) as refused:
        rates.take("a", at(0))
    assert refused.value.retry_after == LONGEST_WAIT_SECONDS


@pytest.mark.parametrize(("rate", "step"), [(Rate("an hour", 1, 3600), 150), (Rate("a day", 1, 86_400), 3600)])
def test_what_is_saved_says_only_roughly_when_a_rate_was_used(rate: Rate, step: int) -> None:
    """In whole tokens, and to a minute or a 24th of the time of a refill (docs/privacy.md)."""
    rates = Rates(rate)
    rates.take("a", at(1_000_000.125), 700)
    rates.take("a", at(1_000_000.75), 1)
    (saved,), _ = rates.drain(at(1_000_001))
    assert saved.left == int(saved.left)
    assert saved.at % (step * 1000) == 0
    assert at(1_000_000 - step) < saved.at <= at(1_000_000.75)
    rates.take("a", at(1_000_001), 5)
    (taken,), _ = rates.drain_taken(at(1_000_001))
    assert taken.at % (step * 1000) == 0


def test_a_rate_that_refills_within_minutes_is_not_saved() -> None:
    rates = Rates(Rate("quick", 1, 600))
    rates.take("a", at(0), 500)
    assert rates.drain(at(1)) == ([], [])
    rates.take("a", at(1), 1)
    assert rates.drain_taken(at(1)) == ([], [])
