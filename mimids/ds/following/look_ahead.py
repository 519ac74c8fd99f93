"""Reading in advance the rows that the transaction of a push will probably read (`Store.write`, `ahead`).

Nearly all pushes have messages of groups that were pushed before. So the rows of hubs and of the newest groups are
remembered. If a row is wrong, or is not remembered, the transaction reads for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mimids.ds.lru import LeastRecentlyUsed
from mimids.store import groups, messages, participations, partitions, providers
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.wire.ids import GroupId, ProviderId
from mimids.wire.messages import PushedEpoch

GROUPS_REMEMBERED: Final = 10_000


class PushLookAhead:
    """Reads, before the transaction of a push, the rows that it will probably need. For the writer's thread."""

    def __init__(self) -> None:
        self._rows: LeastRecentlyUsed[tuple[ProviderId, GroupId], tuple[int, int]] = LeastRecentlyUsed(
            GROUPS_REMEMBERED
        )  # by hub and group id: the rows of the hub and of the group

    def note(self, hub: ProviderId, group: Group) -> None:
        """Remember the rows of a group and of its hub, because further pushes will need them."""
        self._rows.put((hub, group.group_id), (group.hub, group.id))

    def read(self, hub: ProviderId, epochs: Sequence[PushedEpoch], tx: Tx) -> None:
        """Read the rows that a transaction needs to store these epochs."""
        providers.provider_row(tx, hub)
        for group_id in {epoch.group_id for epoch in epochs}:
            rows = self._rows.peek((hub, group_id))
            if rows is not None:
                number, group = rows
                groups.find_group(tx, number, group_id)
                participations.participants(tx, group)
                for epoch in epochs:
                    if epoch.group_id == group_id:
                        partitions.find_partition(tx, number, [epoch.masked_partition_key])
        messages.free_seqs(tx)
