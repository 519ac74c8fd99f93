"""The `Date` of an inner request, which bounds how long a replay must be remembered (RFC 9458 section 6.5.1)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_FORM: Final = re.compile(
    rf"(?:{'|'.join(_DAYS)}), ([0-9]{{2}}) ({'|'.join(_MONTHS)}) ([0-9]{{4}}) "
    r"([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)


def write_date(seconds: int) -> bytes:
    """Return the IMF-fixdate (RFC 9110 section 5.6.7) of a time in seconds since the epoch."""
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{_DAYS[at.weekday()]}, {at:%d} {_MONTHS[at.month - 1]} {at:%Y %H:%M:%S} GMT".encode()


def read_date(field: bytes | None) -> int | None:
    """Return the seconds since the epoch of an IMF-fixdate; None for anything else, and where there is none.

    The two obsolete forms of RFC 9110 are not read: no client of this gateway has ever sent them. The
    name of the day is not compared with the date.
    """
    found = _FORM.fullmatch((field or b"").decode("latin-1"))
    if found is None:
        return None
    day, month, year, hour, minute, second = found.groups()
    try:  # a leap second counts as the one before it
        at = datetime(
            int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), min(int(second), 59), tzinfo=UTC
        )
    except ValueError:
        return None
    return int(at.timestamp())
