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


def write_date(seconds: int) -> bytes:
    """Return the IMF-fixdate (RFC 9110 section 5.6.7) of a time in seconds since the epoch."""
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{_DAYS[at.weekday()]}, {at:%d} {_MONTHS[at.month - 1]} {at:%Y %H:%M:%S} GMT".encode()


def read_date(field: bytes | None) -> int | None:
    """Return the seconds since the epoch of an HTTP-date; None for anything else, or if `field` is None.

    A year of two digits is in this century: any other would be outside every window. The name of the day is not
    checked against the date.
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
