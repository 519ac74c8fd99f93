"""A rule that is broken for certain: what it says and where it stands."""

from __future__ import annotations

import attrs


@attrs.frozen
class Fault:
    """Why something is invalid: `rule` is a sentence that may be shown, `section` is like "RFC 9420 section 7.3"."""

    rule: str
    section: str

    def __str__(self) -> str:
        """Render as one line."""
        return f"{self.rule} ({self.section})"


class FaultError(ValueError):
    """Raised where a value is wanted and a rule forbids it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault
