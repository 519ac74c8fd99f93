"""The time that retention uses; a jump of the clock does not change it (semantics: limits-and-retention).

A clock that is set a year ahead by mistake must not cause acknowledged data to be deleted. So retention uses a time of
its own: the time that it last believed, plus the time that the monotonic clock has counted since. The monotonic clock
of the machine goes on while the server is stopped or the machine sleeps. It starts again from zero when the machine
starts. Retention's time then lacks the time in which the machine was off, so everything is kept for that much longer.

Retention adopts the time of the clock when the clock has been supported for a day: by the operator (`mimids clock
confirm`), or by other providers. Only providers that the configuration or the operator names count: if more than half
of those that answered within a day sent a Date that agrees with the clock, they support it. A clock that is behind the
believed time needs no support, since nothing is deleted because of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

import attrs

from mimids.store.seen_time import SeenTime
from mimids.values import DAY_MILLISECONDS, HOUR_MILLISECONDS, Milliseconds
from mimids.wire.ids import ProviderId

JUMP_MILLISECONDS: Final = HOUR_MILLISECONDS  # a smaller difference is neither corrected nor reported
AGREE_MILLISECONDS: Final = 300_000  # clocks that differ by no more than this agree


@attrs.frozen
class PeerDate:
    """The Date of a peer's answer, and the time of our monotonic clock when the answer came."""

    date: str  # as the peer wrote it
    running: Milliseconds


@attrs.frozen
class Moment:
    """What the clocks show."""

    now: Milliseconds
    running: Milliseconds
    boot: str


def first_seen(moment: Moment, newest: Milliseconds) -> SeenTime:
    """Return the first time to believe; `newest` is the time of the newest row in the database, 0 if it has no rows.

    If the newest row is old, either the database was unused for that long, or the clock is wrong.
    """
    believed = min(moment.now, Milliseconds(newest + DAY_MILLISECONDS)) if newest else moment.now
    return SeenTime(believed, moment.running, moment.boot)


def advance(
    seen: SeenTime, moment: Moment, *, confirmed: Milliseconds | None = None, peers_agree: bool = False
) -> SeenTime:
    """Return the time to believe now; `confirmed` is the clock's time when the operator confirmed it."""
    passed = moment.running - seen.running if seen.boot == moment.boot and moment.running >= seen.running else 0
    believed = Milliseconds(seen.believed + passed)
    ahead = moment.now - believed
    following = SeenTime(believed, moment.running, moment.boot, ahead)
    if abs(ahead) <= JUMP_MILLISECONDS:
        return following
    # The clock has not jumped again since the operator confirmed it.
    confirms = confirmed is not None and 0 <= moment.now - confirmed <= passed + JUMP_MILLISECONDS
    if confirms or (seen.confirmed is not None and _is_same(seen.confirmed, ahead)):
        following = attrs.evolve(following, confirmed=ahead if confirms else seen.confirmed)
    elif not peers_agree and ahead > 0:
        return following
    since = seen.supported_since
    if since is None or not _is_same(seen.ahead, ahead):
        since = believed
    if believed - since >= DAY_MILLISECONDS:
        return SeenTime(moment.now, moment.running, moment.boot)
    return attrs.evolve(following, supported_since=since)


def _is_same(jump: int, other: int) -> bool:
    return abs(jump - other) <= JUMP_MILLISECONDS


def peers_agree(dates: Mapping[ProviderId, PeerDate], moment: Moment) -> bool:
    """Tell whether more than half of the providers that answered within a day have the time of our clock."""
    agreeing = heard = 0
    for each in dates.values():
        passed = moment.running - each.running
        if 0 <= passed <= DAY_MILLISECONDS:
            heard += 1
            try:
                theirs = parsedate_to_datetime(each.date).timestamp() * 1000 + passed
            except (ValueError, OverflowError):
                continue
            agreeing += abs(theirs - moment.now) <= AGREE_MILLISECONDS
    return 2 * agreeing > heard
