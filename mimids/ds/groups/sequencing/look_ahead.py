"""Reading in advance the rows that the transaction of a send will probably read (`Store.write`, `ahead`).

Nearly all sends go to partitions in which messages were sequenced before. So the rows of the hub and of the newest
partitions are remembered. If a row is wrong, or is not remembered, the transaction reads for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mimids.ds.lru import LeastRecentlyUsed
from mimids.store import bans, follows, groups, messages, partitions, providers
from mimids.store.engine.transaction import Tx
from mimids.values import Device, Milliseconds, Sender
from mimids.wire.ids import MaskedPartitionKey, ProviderId
from mimids.wire.messages import SendRequest

PARTITIONS_REMEMBERED: Final = 10_000


class LookAhead:
    """Reads, before the transaction of a send, the rows that it will probably need; remembers the rows to read."""

    def __init__(self, provider: ProviderId) -> None:
        self._provider = provider
        self._hub = 0  # its row, once it is known
        self._rows: LeastRecentlyUsed[MaskedPartitionKey, int] = LeastRecentlyUsed(PARTITIONS_REMEMBERED)

    def note(self, hub: int, rows: dict[MaskedPartitionKey, int]) -> None:
        """Remember the rows of the hub and of partitions that have new messages."""
        self._hub = hub
        for key, row in rows.items():
            self._rows.put(key, row)

    def read(self, requests: Sequence[SendRequest], sender: Sender, tx: Tx) -> None:
        """Read the rows that a transaction needs to sequence these messages."""
        providers.provider_row(tx, self._provider)
        if not isinstance(sender, Device):
            providers.provider_row(tx, sender.provider)
        if not self._hub:
            return
        digests: dict[bytes, list[bytes]] = {}
        by_key: dict[bytes, SendRequest] = {}
        for request in requests:
            raw = request.partition_key.reveal()
            by_key.setdefault(raw, request)
            digests.setdefault(raw, []).append(messages.digest_of(request.message.encoded))
        for raw, request in by_key.items():
            self._read_partition(tx, request, digests[raw], alone=len(requests) == 1)
        for group_id in {request.message.group_id for request in requests}:
            if group_id is not None:
                groups.find_group(tx, self._hub, group_id)
                if isinstance(sender, Device):
                    bans.banned_users(tx, [sender.user_id], Milliseconds(0))
                    bans.muted_users(tx, [sender.user_id], group_id, Milliseconds(0))
        messages.free_seqs(tx)

    def _read_partition(self, tx: Tx, request: SendRequest, digests: Sequence[bytes], *, alone: bool) -> None:
        masks = request.partition_key.masks()
        for at, mask in enumerate(masks, 1):
            row = self._rows.peek(mask)
            if row is not None:
                partitions.find_partition(tx, self._hub, masks[:at])
                messages.commits_of(tx, row)
                follows.have_followers(tx, [row])
                if alone:
                    messages.find_repeat(tx, row, digests[0])
                else:
                    messages.find_repeats(tx, row, digests)
                return
