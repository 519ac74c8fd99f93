"""The delay between attempts doubles up to a cap, is half random, and honours what the peer asked for."""

from __future__ import annotations

import random

import pytest

from mimids.ds.backoff import Backoff
from mimids.errors import MimiError, PeerFailed, PeerUnavailable, RateLimited


class Always(random.Random):
    """A source of random numbers that returns one number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self._number = number

    def random(self) -> float:
        return self._number


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (2, 2), (5, 16), (6, 20), (10_000, 20)])
def test_the_delay_doubles_up_to_the_cap(failures: int, seconds: float) -> None:
    assert Backoff(1, 20, Always(1)).seconds(failures) == seconds
    assert Backoff(1, 20, Always(0)).seconds(failures) == seconds / 2


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (PeerFailed(), 1),
        (PeerUnavailable(retry_after=7), 7),
        (RateLimited("sends", 9), 9),
        (PeerUnavailable(retry_after=3600), 20),
    ],
)
def test_an_error_may_ask_for_a_longer_delay_up_to_the_cap(error: MimiError, seconds: float) -> None:
    assert Backoff(1, 20, Always(1)).seconds_after(error, 1) == seconds
