"""Messages that are about to be sequenced, for `MlsJudge.prepare`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.store.engine.locks import Locks, group_lock
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import CommitData, SendRequest


@attrs.frozen
class Submission:
    """A message with its partition key; an external commit or proposal has no key."""

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


def locks_of(messages: Iterable[tuple[MLSMessage, CommitData | None]]) -> Locks | None:
    """Return the locks of the messages' groups; None if there is a commit, which is sequenced alone.

    The Welcome and the quotas of a commit concern more than its group.
    """
    locks = set()
    for message, data in messages:
        if data is not None:
            return None
        if message.group_id is not None:
            locks.add(group_lock(message.group_id))
    return frozenset(locks)
