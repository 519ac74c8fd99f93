"""The Date of a fetch does not identify the client by the error of its clock."""

from __future__ import annotations

import itertools

import pytest

from mimids.ohttp.date import DATE_SHIFTS, blurred

NOW = 1_900_000_020  # a whole minute
WINDOW_SECONDS = 300


def dates(clock: int) -> set[int]:
    return {blurred(clock, shift) for shift in range(DATE_SHIFTS)}


@pytest.mark.parametrize("error", range(-29, 30, 7))
def test_clocks_of_the_same_minute_write_the_same_dates(error: int) -> None:
    assert dates(NOW + error) == dates(NOW)


@pytest.mark.parametrize("error", range(-150, 151, 25))
def test_every_date_of_an_ordinary_clock_is_within_the_window(error: int) -> None:
    for second, shift in itertools.product(range(60), range(DATE_SHIFTS)):
        date = blurred(NOW + second + error, shift)
        assert date % 60 == 0
        assert abs(date - (NOW + second)) <= WINDOW_SECONDS


def test_minutes_of_clocks_that_are_two_minutes_apart_overlap() -> None:
    assert len(dates(NOW) & dates(NOW + 120)) == DATE_SHIFTS - 2
