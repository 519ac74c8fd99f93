"""Creating a group: its row, its first partition, and its Welcome, in one transaction (semantics: sequencing)."""

from __future__ import annotations

import attrs

from mimids.ds.groups.judging import OpenedGroup
from mimids.ds.groups.states import States, mask_of
from mimids.ds.groups.welcome_rows import WelcomeQueue, sender_number
from mimids.errors import GroupExists, Malformed, PartitionExists, QuotaExceeded
from mimids.store import groups, partitions, providers
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.values import Device, Milliseconds
from mimids.wire.ids import ProviderId
from mimids.wire.messages import CreateGroupRequest, WelcomeData


@attrs.frozen
class Creation:
    """A group to create: `digest` is the SHA-256 of the encoded request, by which a repeat is recognised."""

    request: CreateGroupRequest
    digest: bytes
    opened: OpenedGroup
    creator: Device


# Longer than 40 lines: its rows are written one after the other.
def create_group(
    tx: Tx,
    states: States,
    creation: Creation,
    provider: ProviderId,
    now: Milliseconds,
    *,
    quota: int,
    welcomes: WelcomeQueue,
) -> None:
    """Store a group with its first partition; a repeat with the same contents changes nothing.

    `quota` bounds the groups of one device; 0 means no limit. Raises `Malformed` for an empty group id, `GroupExists`,
    `PartitionExists`, `QuotaExceeded`, and `WelcomeMismatch`; in these cases the caller undoes what was written.
    """
    request, creator = creation.request, creation.creator
    if not request.group_id:
        raise Malformed("a group id has 1 to 256 octets")
    hub = providers.ensure_provider(tx, provider)
    if _is_repeat(tx, hub, creation):
        return
    masks = request.partition_key.masks()
    if partitions.find_partition(tx, hub, masks) is not None:
        raise PartitionExists
    if quota and groups.count_created(tx, creator.row, at_most=quota) >= quota:
        raise QuotaExceeded("device_groups")
    group = groups.add_group(
        tx,
        hub=hub,
        group_id=request.group_id,
        version=request.version,
        cipher_suite=request.cipher_suite,
        creation_digest=creation.digest,
        creator=creator.row,
        now=now,
    )
    row = partitions.add_partition(
        tx,
        group=group.id,
        hub=hub,
        masked_key=mask_of(group, masks),
        epoch=creation.opened.epoch,
        now=now,
        opener_provider=hub,
        opener_device=creator.row,
    )
    states.save(tx, row, creation.opened.knowledge)
    if request.group_info is not None:
        partitions.set_group_info(tx, row, request.group_info.encoded)
    if request.welcome_data is not None:
        _queue_welcome(tx, welcomes, request.welcome_data, group, row, sender_number(hub, creator.row), now)


def _is_repeat(tx: Tx, hub: int, creation: Creation) -> bool:
    """Tell whether this request created the group before; raise `GroupExists` if another one did."""
    existing = groups.find_group(tx, hub, creation.request.group_id)
    if existing is None:
        return False
    if existing.creation_digest != creation.digest:
        raise GroupExists
    return True


def _queue_welcome(
    tx: Tx, welcomes: WelcomeQueue, data: WelcomeData, group: Group, partition: int, sender: int, now: Milliseconds
) -> None:
    """Check and store the Welcome of the first members."""
    welcomes.check(tx, data, group, sender)
    welcomes.queue(tx, data, partition, sender=sender, held=False, now=now)
