"""What a rule can say: a refusal, with the facts it read and why each is certain. Silence is None, and there is no yes.

A rule answers with the facts by which the message is refused, or with nothing. No value here means "accept", so that
no rule can force acceptance (DS draft section 4: "A DS MUST NOT enforce positive policy decisions").
"""

from __future__ import annotations

from enum import Enum

import attrs


class Certainty(Enum):
    """Why a fact is certain."""

    TERMS = "the hub's operator decided it"
    DERIVED = "follows from commits that were seen whole, since the group's creation"
    CLAIMED = "a member signed it for this branch; if it is false, it binds that branch alone"
    AUTHENTICATED = "the device is one of this provider's own, known by its token"
    SIGNED = "it stands in the message itself"


@attrs.frozen
class Fact:
    """One thing that a rule read, in a sentence that the sender may see."""

    text: str
    certainty: Certainty

    def __str__(self) -> str:
        """Render as one line."""
        return f"{self.text} ({self.certainty.value})"


Found = tuple[Fact, ...] | None
"""What a rule answers: the facts that break it, at least one; or None, it has nothing to say."""


@attrs.frozen
class Refusal:
    """A message is refused by a rule; all of it may be shown to the sender.

    `lasting` says that the message's own contents are refused in this epoch for good, whoever brings it: the reference
    of such a proposal is remembered, and a commit must not cover it.
    """

    rule: str
    section: str
    detail: str
    facts: tuple[Fact, ...]
    lasting: bool
