"""Contradictions between what a hub sends and what it sent before (semantics: following-and-delivery)."""

from __future__ import annotations

import attrs

from mimids.errors import MimiError
from mimids.wire.ids import GroupId, ProviderId


@attrs.frozen
class Contradiction:
    """A message, GroupInfo or place in a partition that contradicts what the hub sent before."""

    hub: ProviderId
    group_id: GroupId
    message: bytes  # encoded MLSMessage
    rule: str

    @classmethod
    def of_error(cls, hub: ProviderId, group_id: GroupId, message: bytes, error: MimiError) -> Contradiction:
        """Return the contradiction for a refused message, named after the rule that the message breaks."""
        return cls(hub, group_id, message, str(error.members.get("rule", error.code)))
