"""Messages that are about to be sequenced, for `States.prepare`."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import CommitData, SendRequest


@attrs.frozen
class Submission:
    """A message with its partition key; an external commit or proposal has none."""

    message: MLSMessage
    partition_key: PartitionKey | None
    commit_data: CommitData | None


def submissions_in(requests: Sequence[SendRequest]) -> list[Submission]:
    """Return the PublicMessages of a batch: only those can be judged before their transaction."""
    return [
        Submission(each.message, each.partition_key, each.commit_data)
        for each in requests
        if isinstance(each.message.message, PublicMessage)
    ]
