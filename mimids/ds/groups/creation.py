"""Creating a group: its row, its first partition, and its Welcome, in one transaction (semantics: sequencing)."""

from __future__ import annotations

import attrs

from mimids.ds.groups.judging import OpenedGroup
from mimids.ds.groups.states import States, mask_of
from mimids.ds.groups.welcome_rows import check_welcome, queue_welcome
from mimids.errors import GroupExists, PartitionExists, QuotaExceeded
from mimids.store import groups, partitions, providers
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.values import Device, Milliseconds
from mimids.wire.ids import ProviderId
from mimids.wire.messages import CreateGroupRequest


@attrs.frozen
class Creation:
    """A group to create: `digest` is the SHA-256 of the encoded request, by which a repeat is recognised."""

    request: CreateGroupRequest
    digest: bytes
    opened: OpenedGroup
    creator: Device


def create_group(
    tx: Tx, states: States, creation: Creation, provider: ProviderId, now: Milliseconds, *, quota: int
) -> None:
    """Store a group with its first partition; a repeat with the same contents changes nothing.

    `quota` bounds the groups of one device; 0 means no limit. Raises `GroupExists`, `PartitionExists`,
    `QuotaExceeded`, and `WelcomeMismatch`; the caller undoes what was written then.
    """
    request, creator = creation.request, creation.creator
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
    _store_openings(tx, request, group, row, now)


def _is_repeat(tx: Tx, hub: int, creation: Creation) -> bool:
    """Tell whether this request created the group before; raise `GroupExists` if another one did."""
    existing = groups.find_group(tx, hub, creation.request.group_id)
    if existing is None:
        return False
    if existing.creation_digest != creation.digest:
        raise GroupExists
    return True


def _store_openings(tx: Tx, request: CreateGroupRequest, group: Group, partition: int, now: Milliseconds) -> None:
    """Store what joiners of the first partition need: its GroupInfo, and the Welcome of the first members."""
    if request.group_info is not None:
        partitions.set_group_info(tx, partition, request.group_info.encoded)
    if request.welcome_data is not None:
        check_welcome(request.welcome_data, group)
        queue_welcome(tx, request.welcome_data, partition, held=False, now=now)
