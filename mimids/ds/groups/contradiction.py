"""What a hub sent that contradicts what it sent before (semantics: following-and-delivery)."""

from __future__ import annotations

import attrs

from mimids.wire.ids import GroupId, ProviderId


@attrs.frozen
class Contradiction:
    """What a hub sent that cannot be right by what it sent before."""

    hub: ProviderId
    group_id: GroupId
    message: bytes
    rule: str
