"""The result of one check."""

from __future__ import annotations

from enum import Enum

import attrs


class State(Enum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"  # it works now, but will soon fail, or fails for some callers
    WRONG = "wrong"


@attrs.frozen
class Finding:
    """One thing that was checked; `fix` says what to do, unless the state is OK."""

    check: str
    state: State
    what: str
    fix: str | None = None


def ok(check: str, what: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(check, State.OK, what)


def warning(check: str, what: str, fix: str) -> Finding:
    """Return a finding that will become a fault."""
    return Finding(check, State.WARNING, what, fix)


def wrong(check: str, what: str, fix: str) -> Finding:
    """Return a fault."""
    return Finding(check, State.WRONG, what, fix)
