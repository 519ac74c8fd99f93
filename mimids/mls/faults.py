"""Why an object is invalid: the broken rule and the section that states it."""

from __future__ import annotations

import attrs


@attrs.frozen
class Fault:
    """Why something is invalid: `rule` is a sentence for users, `section` is like "RFC 9420 section 7.3"."""

    rule: str
    section: str

    def __str__(self) -> str:
        """Return the fault as one line of text."""
        return f"{self.rule} ({self.section})"


class FaultError(ValueError):
    """An object breaks a rule, so no value can be returned; carries the `Fault`."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault
