"""The `Date` of an encapsulated request; it bounds how long answers are kept for replays (RFC 9458 section 6.5.1)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAY: Final = rf"(?:{'|'.join(_DAYS)})"
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_FORMS: Final = tuple(  # a recipient MUST accept all three: RFC 9110 section 5.6.7
    re.compile(form)
    for form in (
        rf"{_DAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",  # IMF-fixdate
        rf"{_DAY}[a-z]{{3,6}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",  # RFC 850
        rf"{_DAY} {_MONTH} (?P<day>[0-9 ][0-9]) {_TIME} (?P<year>[0-9]{{4}})",  # asctime
    )
)


MINUTE_SECONDS: Final = 60
DATE_SHIFTS: Final = 5  # Dates that a client chooses from at random


def blurred(seconds: int, shift: int) -> int:
    """Return the time to write into a request instead of `seconds`: a whole minute, at most 150 s from `seconds`.

    The exact time would let a gateway recognise a client by the error of its clock. So the time is rounded to the
    minute, and `shift`, a random number below DATE_SHIFTS, moves it by up to two minutes in either direction. A gateway
    whose window is 300 s accepts the time if the client's clock is wrong by at most 150 s (RFC 9458 section 6.5.1).
    """
    minutes = (seconds + MINUTE_SECONDS // 2) // MINUTE_SECONDS
    return (minutes + shift - DATE_SHIFTS // 2) * MINUTE_SECONDS


def write_date(seconds: int) -> bytes:
    """Return the IMF-fixdate (RFC 9110 section 5.6.7) of a time in seconds since the epoch."""
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{_DAYS[at.weekday()]}, {at:%d} {_MONTHS[at.month - 1]} {at.year:04} {at:%H:%M:%S} GMT".encode()


def read_date(field: bytes | None) -> int | None:
    """Return the seconds since the epoch of an HTTP-date; None for anything else, or if `field` is None.

    A year of two digits is read as a year of this century, because a date in any other century would be outside every
    window. The name of the day is not checked against the date.
    """
    text = (field or b"").decode("latin-1")
    found = next(filter(None, (form.fullmatch(text) for form in _FORMS)), None)
    if found is None:
        return None
    month = _MONTHS.index(found["month"]) + 1
    year = int(found["year"]) + (2000 if len(found["year"]) == 2 else 0)
    time = (
        int(found["hour"]),
        int(found["minute"]),
        min(int(found["second"]), 59),
    )  # a leap second counts as the second before it
    try:
        return int(datetime(year, month, int(found["day"]), *time, tzinfo=UTC).timestamp())
    except ValueError:
        return None
