"""The row of the time that retention believes (semantics: limits-and-retention)."""

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
    """The time that retention believed when it last looked."""

    believed: Milliseconds  # since the epoch
    running: Milliseconds  # what the monotonic clock showed at that moment
    boot: str  # the start of the machine that the monotonic clock counts from
    ahead: int = 0  # milliseconds by which the clock was ahead of `believed`; negative: behind
    supported_since: Milliseconds | None = None  # a believed time; None: the operator and the peers say nothing
    confirmed: int | None = None  # the `ahead` that the operator has confirmed


def load(tx: Tx) -> SeenTime | None:
    """Return the row, None before the first sweep."""
    value = setting(tx, _NAME)
    return None if value is None else SeenTime(**json.loads(value))


def save(tx: Tx, seen: SeenTime) -> None:
    """Replace the row."""
    put_setting(tx, _NAME, json.dumps(attrs.asdict(seen)).encode())


def confirm(tx: Tx, now: Milliseconds) -> None:
    """Record that the operator says that the clock is right, and the time `now` that it shows."""
    put_setting(tx, _CONFIRMED, b"%d" % now)


def take_confirmation(tx: Tx) -> Milliseconds | None:
    """Return the time that the operator confirmed, and delete the record of it; None if there is none."""
    value = setting(tx, _CONFIRMED)
    if value is None:
        return None
    drop_setting(tx, _CONFIRMED)
    return Milliseconds(int(value))


def is_confirmed(tx: Tx) -> bool:
    """Tell whether the operator has confirmed the clock, and no sweep has processed this yet."""
    return setting(tx, _CONFIRMED) is not None
