"""Refusals by policy, with the facts that a rule read and why each fact is certain.

A rule returns the facts for which a message is refused, or None. No value means "accept", so that no rule can force
acceptance (DS draft section 4: "A DS MUST NOT enforce positive policy decisions").
"""

from __future__ import annotations

from enum import Enum

import attrs


class Certainty(Enum):
    """Why a fact is certain."""

    TERMS = "the hub's operator decided it"
    DERIVED = "it follows from the commits since the group's creation, all of which were seen"
    CLAIMED = "a member signed it for this branch; if it is false, only that branch is affected"
    AUTHENTICATED = "the device is one of this provider's own, known by its token"
    SIGNED = "it is in the message itself"


@attrs.frozen
class Fact:
    """One fact that a rule read, in a sentence that may be shown to the sender."""

    text: str
    certainty: Certainty

    def __str__(self) -> str:
        """Return the fact and its certainty in one line."""
        return f"{self.text} ({self.certainty.value})"


Found = tuple[Fact, ...] | None
"""The result of a rule: the facts that violate it, at least one; or None if it refuses nothing."""


@attrs.frozen
class Refusal:
    """A message is refused by a rule; all fields may be shown to the sender.

    If `lasting` is true, the content of the message is refused for the whole epoch, from every sender. If the message
    is a proposal, its reference is stored, and a commit that covers the proposal is refused too.
    """

    rule: str
    section: str
    detail: str
    facts: tuple[Fact, ...]
    lasting: bool
