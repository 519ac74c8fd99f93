"""The row with retention's believed time (semantics: limits-and-retention)."""

from __future__ import annotations

import json
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import drop_setting, put_setting, setting
from mimids.values import Milliseconds

_NAME: Final = "retention_time"
_CONFIRMED: Final = "retention_time_confirmed"


@attrs.frozen
class SeenTime:
    """Retention's believed time at the last sweep."""

    believed: Milliseconds  # milliseconds since 1970
    running: Milliseconds  # what the monotonic clock showed at that moment
    boot: str  # names the start of the machine, from which the monotonic clock counts
    ahead: int = 0  # milliseconds by which the clock was ahead of `believed`; negative: behind
    supported_since: Milliseconds | None = None  # the believed time when support began; None: no support
    confirmed: int | None = None  # the `ahead` that the operator has confirmed


def load(tx: Tx) -> SeenTime | None:
    """Return the row, None before the first sweep."""
    value = setting(tx, _NAME)
    return None if value is None else SeenTime(**json.loads(value))


def save(tx: Tx, seen: SeenTime) -> None:
    """Replace the row."""
    put_setting(tx, _NAME, json.dumps(attrs.asdict(seen)).encode())


def confirm(tx: Tx, now: Milliseconds) -> None:
    """Record that the operator has confirmed the clock, which shows the time `now`."""
    put_setting(tx, _CONFIRMED, b"%d" % now)


def take_confirmation(tx: Tx) -> Milliseconds | None:
    """Return the time that the operator confirmed, and delete it; None if the operator confirmed none."""
    value = setting(tx, _CONFIRMED)
    if value is None:
        return None
    drop_setting(tx, _CONFIRMED)
    return Milliseconds(int(value))


def is_confirmed(tx: Tx) -> bool:
    """Tell whether the operator has confirmed the clock, and no sweep has processed this yet."""
    return setting(tx, _CONFIRMED) is not None
