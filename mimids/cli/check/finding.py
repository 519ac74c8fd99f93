"""What a check found."""

from __future__ import annotations

from enum import Enum

import attrs


class State(Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # it serves, and will not for long, or not for everybody
    WRONG = "wrong"


@attrs.frozen
class Finding:
    """One thing that was looked at; `mend` says what to do unless it is in order."""

    check: str
    state: State
    what: str
    mend: str | None = None


def ok(check: str, what: str) -> Finding:
    """Return that something is in order."""
    return Finding(check, State.OK, what)


def warning(check: str, what: str, mend: str) -> Finding:
    """Return what will go wrong."""
    return Finding(check, State.WARNING, what, mend)


def wrong(check: str, what: str, mend: str) -> Finding:
    """Return what is wrong now."""
    return Finding(check, State.WRONG, what, mend)
