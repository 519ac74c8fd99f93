"""Creating a group: its row, its first partition, and its Welcome, in one transaction (semantics: sequencing)."""

from __future__ import annotations

import attrs

from mimids.ds.groups.judging import OpenedGroup
from mimids.ds.groups.states import States, mask_of
from mimids.ds.groups.welcome_rows import WelcomeQueue, recipients_of, sender_number
from mimids.errors import CommitDataDiffers, GroupExists, PartitionExists, QuotaExceeded
from mimids.store import group_deletion, groups, partitions, providers, welcome_outcomes
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
    linear: bool


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
    """Store a group with its first partition. A repeat changes nothing, except that a missing Welcome is sent.

    `quota` bounds the groups of one device; 0 means no limit. Raises `GroupExists`, `PartitionExists`, `QuotaExceeded`,
    and `WelcomeMismatch`; in these cases the caller undoes the writes.
    """
    request, creator = creation.request, creation.creator
    hub = providers.ensure_provider(tx, provider)
    sender = sender_number(hub, creator.row)
    existing = _repeat(tx, hub, creation)
    if existing is not None:
        _supply_welcome(tx, welcomes, existing, creation, sender, now)
        return
    if group_deletion.is_reserved(tx, request.group_id):  # followers may still have the group that was deleted
        raise GroupExists
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
        linear=creation.linear,
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
        recipients = recipients_of(request.welcome_data, group, None)
        welcomes.check_waiting(tx, sender)
        welcomes.queue(tx, request.welcome_data, recipients, row, sender=sender, held=False, now=now)


def _repeat(tx: Tx, hub: int, creation: Creation) -> Group | None:
    """Return the group if this request created it before, with or without a Welcome; None if the group is new.

    Raises `GroupExists` if another request created it.
    """
    existing = groups.find_group(tx, hub, creation.request.group_id)
    if existing is None:
        return None
    if existing.linear != creation.linear:
        raise GroupExists
    if existing.creation_digest != creation.digest and not _differs_only_in_welcome(tx, existing, creation):
        raise GroupExists
    return existing


def _differs_only_in_welcome(tx: Tx, existing: Group, creation: Creation) -> bool:
    """Tell whether the group's creator repeats the creation with another Welcome, or adds a Welcome to it."""
    request = creation.request
    first = partitions.find_partition(tx, existing.hub, request.partition_key.masks())
    if first is None or request.welcome_data is None or groups.creator_of(tx, existing.id) != creation.creator.row:
        return False
    group_info = None if request.group_info is None else request.group_info.encoded
    return (
        (existing.version, existing.cipher_suite) == (request.version, request.cipher_suite)
        and (first.group, first.parent, first.detached) == (existing.id, None, False)
        and partitions.group_info_of(tx, first.id) == group_info
    )


def _supply_welcome(
    tx: Tx, welcomes: WelcomeQueue, group: Group, creation: Creation, sender: int, now: Milliseconds
) -> None:
    """Queue the Welcome of a repeated creation for the KeyPackages for which it was missing or not delivered."""
    data = creation.request.welcome_data
    first = partitions.find_partition(tx, group.hub, creation.request.partition_key.masks())
    if data is None or first is None:
        return
    try:
        recipients = welcomes.missing(tx, data, recipients_of(data, group, None), first)
    except CommitDataDiffers as error:
        raise GroupExists(str(error)) from None
    if recipients:
        welcomes.check_waiting(tx, sender)
        welcome_outcomes.forget_undelivered(tx, first.id, {ref for ref, _ in recipients})
        welcomes.queue(tx, data, recipients, first.id, sender=sender, held=False, now=now)
