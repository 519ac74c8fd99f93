"""The status of the Welcomes of a commit, for the member who sent the commit (semantics: welcomes-and-leaving).

Runs inside a transaction that only reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mimids.ds.groups.visible_proposals import added_references
from mimids.mls.framing import MLSMessage
from mimids.store import groups, messages, partitions
from mimids.store.engine.transaction import Tx
from mimids.store.partitions import Partition
from mimids.store.welcome_outcomes import outcomes_of
from mimids.wire.declare import decode
from mimids.wire.ids import KeyPackageRef
from mimids.wire.messages import WelcomeState, WelcomeStatus, WelcomeStatusResponse

_STATES: Final = {
    "held": WelcomeState.HELD,
    "due": WelcomeState.WAITING,
    "offered": WelcomeState.WAITING,
    "delivered": WelcomeState.DELIVERED,
    "refused": WelcomeState.REFUSED,
    "expired": WelcomeState.EXPIRED,
    "cancelled": WelcomeState.CANCELLED,
}


def welcome_status(tx: Tx, partition: Partition) -> WelcomeStatusResponse:
    """Return the status of each KeyPackage that a Welcome to a partition names, or that its public commit adds."""
    statuses = [
        WelcomeStatus(ref, _STATES[outcome.state], (outcome.reason or "").encode())
        for outcome in outcomes_of(tx, partition.id)
        for ref in outcome.refs
    ]
    known = {each.key_package_ref for each in statuses}
    missing = [ref for ref in sorted(_added(tx, partition)) if ref not in known]
    return WelcomeStatusResponse((*statuses, *(WelcomeStatus(ref, WelcomeState.MISSING, b"") for ref in missing)))


def _added(tx: Tx, partition: Partition) -> Iterable[KeyPackageRef]:
    """Return the references that a partition's opening commit adds; no references if they are not known for certain."""
    if partition.opened_by is None or partition.parent is None or not messages.is_public(tx, partition.opened_by):
        return ()
    body = messages.body_of(tx, partition.opened_by)
    if body is None:
        return ()
    group, parent = groups.group_by_row(tx, partition.group), partitions.partition_by_row(tx, partition.parent)
    return added_references(tx, group, parent, decode(MLSMessage, body)) or ()
