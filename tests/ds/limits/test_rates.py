"""Token buckets."""

from __future__ import annotations

import pytest

from mimids.ds.limits.rates import Rate, Rates
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
