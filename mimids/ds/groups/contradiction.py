"""What a hub sent that contradicts what it sent before (semantics: following-and-delivery)."""

from __future__ import annotations

import attrs

from mimids.errors import MimiError
from mimids.wire.ids import GroupId, ProviderId


@attrs.frozen
class Contradiction:
    """A message, GroupInfo or place in a partition that cannot be right if what the hub sent before is."""

    hub: ProviderId
    group_id: GroupId
    message: bytes  # encoded MLSMessage
    rule: str

    @classmethod
    def of_error(cls, hub: ProviderId, group_id: GroupId, message: bytes, error: MimiError) -> Contradiction:
        """Return the contradiction that a refused message is, under the name of the rule that it breaks."""
        return cls(hub, group_id, message, str(error.members.get("rule", error.code)))
