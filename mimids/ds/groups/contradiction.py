"""Contradictions between a hub's messages and its earlier ones (semantics: following-and-delivery)."""

from __future__ import annotations

import attrs

from mimids.errors import MimiError
from mimids.wire.ids import GroupId, ProviderId


@attrs.frozen
class Contradiction:
    """A message, GroupInfo or place in a partition that contradicts earlier ones of the hub."""

    hub: ProviderId
    group_id: GroupId
    message: bytes  # encoded MLSMessage
    rule: str

    @classmethod
    def of_error(cls, hub: ProviderId, group_id: GroupId, message: bytes, error: MimiError) -> Contradiction:
        """Return the contradiction for a refused message, named after the rule that the message breaks."""
        return cls(hub, group_id, message, str(error.members.get("rule", error.code)))
