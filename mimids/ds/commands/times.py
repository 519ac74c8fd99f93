"""Times as an operator writes them: a span from now, or a date."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from mimids.values import Milliseconds

_DAY: Final = "_on"  # a time of which only the day is known
_TIMES: Final = ("_at", "_since", "not_after", "believed")
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400}


def time_from_text(text: str, now: Milliseconds) -> Milliseconds:
    """Return the time that `90d`, `12h`, `30m` or a date such as `2027-01-31` stands for; raise `ValueError`."""
    span = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    if span:
        return Milliseconds((now // 1000 + int(span[1]) * _SECONDS[span[2]]) * 1000)
    moment = datetime.fromisoformat(text)
    return Milliseconds(int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))


def is_time(name: str) -> bool:
    """Tell whether a member of a command's answer is a time, in milliseconds since the epoch."""
    return name in ("at", "since") or name.endswith((*_TIMES, _DAY))


def is_day(name: str) -> bool:
    """Tell whether a member is a time of which only the day is known."""
    return name.endswith(_DAY)


def without_unit(name: str) -> str:
    """Return the name of a member without the ending that says it is a time."""
    return name.removesuffix("_at").removesuffix(_DAY)
