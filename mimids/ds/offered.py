"""A message that is about to be sequenced, as far as it can be prepared for."""

from __future__ import annotations

import attrs

from mimids.mls.framing import MLSMessage
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import CommitData


@attrs.frozen
class Offered:
    """A message with the partition it names; without a key it comes from outside the group."""

    message: MLSMessage
    partition_key: PartitionKey | None
    commit_data: CommitData | None
