"""A message that is about to be sequenced, as far as it can be prepared for."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import CommitData, SendRequest


@attrs.frozen
class Submission:
    """A message with the partition it names; without a key it comes from outside the group."""

    message: MLSMessage
    partition_key: PartitionKey | None
    commit_data: CommitData | None


def submissions_in(requests: Sequence[SendRequest]) -> list[Submission]:
    """Return the messages of a batch that there is something to prepare for: those in the clear."""
    return [
        Submission(each.message, each.partition_key, each.commit_data)
        for each in requests
        if isinstance(each.message.message, PublicMessage)
    ]
