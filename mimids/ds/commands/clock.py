"""Commands on the time by which retention deletes data (semantics: limits-and-retention)."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.declare import Command, Context, JsonObject
from mimids.ds.elapsed import JUMP_MILLISECONDS
from mimids.store import seen_time
from mimids.store.engine.transaction import Tx
from mimids.store.seen_time import SeenTime


def _show(tx: Tx, context: Context) -> JsonObject:
    # Before the first sweep, retention has no time of its own.
    seen = seen_time.load(tx) or SeenTime(context.now, context.now, "")
    return {
        "believed": seen.believed,
        "ahead_seconds": seen.ahead // 1000,
        "jumped": abs(seen.ahead) > JUMP_MILLISECONDS,
        "supported_since": seen.supported_since,
        "confirmed": seen.confirmed is not None or seen_time.is_confirmed(tx),
    }


def _confirm(tx: Tx, context: Context) -> JsonObject:
    seen_time.confirm(tx, context.now)
    return _show(tx, context)


_EXAMPLE: Final = (
    '{"believed": 1763900000000, "ahead_seconds": 100000, "jumped": true, "supported_since": null, "confirmed": true}'
)
CLOCK: Final = (
    Command(
        name="clock show",
        summary="Show the time by which retention deletes data, and whether the clock has jumped.",
        work=_show,
        answer=_EXAMPLE,
        example="mimids clock show",
        writes=False,
    ),
    Command(
        name="clock confirm",
        summary="Confirm that the clock is right after a jump; retention uses the clock's time a day later.",
        work=_confirm,
        answer=_EXAMPLE,
        example="mimids clock confirm",
    ),
)
