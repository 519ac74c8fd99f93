from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.ohttp.date import read_date, write_date


@given(st.integers(0, 253_402_300_799))
def test_a_date_is_read_back_and_is_as_the_standard_library_writes_it(seconds: int) -> None:
    assert write_date(seconds) == formatdate(seconds, usegmt=True).encode()
    assert read_date(write_date(seconds)) == seconds


def test_a_year_has_four_digits() -> None:
    date = read_date(b"Mon, 01 Jan 0001 00:00:00 GMT")
    assert date is not None
    assert write_date(date) == b"Mon, 01 Jan 0001 00:00:00 GMT"


@pytest.mark.parametrize(
    "field",
    [
        b"Tue, 03 Nov 2026 08:09:07 GMT",
        b"Tuesday, 03-Nov-26 08:09:07 GMT",
        b"Tue Nov  3 08:09:07 2026",
    ],
)
def test_all_three_forms_of_http_are_read(field: bytes) -> None:
    assert read_date(field) == 1_793_693_347


def test_a_leap_second_is_the_second_before_it() -> None:
    assert read_date(b"Sat, 31 Dec 2016 23:59:60 GMT") == read_date(b"Sat, 31 Dec 2016 23:59:59 GMT") == 1483228799


@pytest.mark.parametrize(
    "field",
    [
        None,
        b"",
        b"Tue, 24 Nov 2026 10:00:00",
        b"Tue, 24 Nov 2026 10:00:00 UTC",
        b"Tue, 24 Nov 2026 10:00:00 GMT, Tue, 24 Nov 2026 10:00:00 GMT",
        b"Tue, 31 Nov 2026 10:00:00 GMT",
        b"Tue, 24 Nov 2026 24:00:00 GMT",
        b"Tue, 24 Nov 0000 10:00:00 GMT",
        b"tue, 24 nov 2026 10:00:00 gmt",
        b"Tuesday, 24 Nov 2026 10:00:00 GMT",
        b"Tue, 24-Nov-26 10:00:00 GMT",
        b"Tue Nov 24 10:00:00 2026 GMT",
        b"Tue Nov    10:00:00 2026",
        "Tue, \u0662\u0664 Nov 2026 10:00:00 GMT".encode(),
        b"1764000000",
    ],
)
def test_another_text_is_not_a_date(field: bytes | None) -> None:
    assert read_date(field) is None


@given(st.binary(max_size=40))
def test_any_octets_are_a_date_or_none(field: bytes) -> None:
    assert read_date(field) is None or len(field) >= 24
