"""Remembering refused proposals, so that a commit which covers one is refused too."""

from __future__ import annotations

from typing import Final

from mimids.ds.groups.policy import is_lasting
from mimids.ds.groups.states import States
from mimids.ds.groups.visible_proposals import store_refused
from mimids.errors import InvalidMessage, MimiError
from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.store import groups, proposals
from mimids.store.engine.transaction import Tx
from mimids.store.partitions import Partition
from mimids.values import Sender

REFUSED_PROPOSALS_KEPT: Final = 1000  # for each partition


def remember_refusal(
    tx: Tx,
    states: States,
    partition: Partition,
    message: MLSMessage,
    error: MimiError,
    sender: Sender,
    *,
    counted: dict[int, int],
) -> None:
    """Store the reference of a proposal that was refused for its content.

    `counted` holds the number of stored references of each partition in which this transaction has counted them.
    Nothing is stored for a temporary refusal (a rate, an epoch), or for a refusal because of who sent the proposal.
    """
    public = message.message
    if not isinstance(public, PublicMessage) or public.content_type is not ContentType.PROPOSAL:
        return
    if not isinstance(error, InvalidMessage):
        here = states.knowledge(tx, groups.group_by_row(tx, partition.group), partition)
        if not is_lasting(error, here, public, sender):
            return
    if partition.id not in counted:
        counted[partition.id] = proposals.count_refused(tx, partition.id)
    if counted[partition.id] < REFUSED_PROPOSALS_KEPT:
        store_refused(tx, partition, public, error)
        counted[partition.id] += 1
