"""Who submits the messages of a transaction."""

from __future__ import annotations

import attrs

from mimids.store import follows, providers
from mimids.store.engine.transaction import Tx
from mimids.values import Device, Follower, Sender
from mimids.wire.ids import ProviderId


@attrs.frozen
class Submitter:
    """The sender of a transaction's messages, with its rows and the row of the hub, which is this provider."""

    sender: Sender
    hub: int
    provider: int
    device: int | None

    @classmethod
    def of(cls, tx: Tx, sender: Sender, hub: ProviderId) -> Submitter:
        """Look up the rows of a sender; add its provider if it is new."""
        row = providers.ensure_provider(tx, hub)
        if isinstance(sender, Device):
            return cls(sender, row, row, sender.row)
        return cls(sender, row, providers.ensure_provider(tx, sender.provider), None)

    def follow(self, tx: Tx, partition: int, parent: int | None) -> None:
        """Make another provider follow a partition whose key it presented (semantics: following-and-delivery)."""
        if isinstance(self.sender, Follower):
            follows.follow_with_key(tx, self.provider, partition, parent)
