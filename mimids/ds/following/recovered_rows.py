"""Reads and writes for the recovery of a group as hub; each runs in one transaction (semantics: restore)."""

from __future__ import annotations

from mimids.ds.groups.states import States
from mimids.store import follows, groups, partitions, recoveries
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.wire.ids import NO_LONGER_FOLLOWED, Counter, ProviderId
from mimids.wire.messages import KnownPartition, PushedEpoch, RecoverRequest, RecoverResponse


def tips(every: list[Partition]) -> list[Partition]:
    """Return the partitions of a group that have no child."""
    parents = {each.parent for each in every}
    return [each for each in every if each.id not in parents]


def is_believed(tx: Tx, states: States, group: Group, provider: int, domain: ProviderId) -> bool:
    """Tell whether a provider's answers about a group are believed (see `recovery_as_hub`)."""
    if follows.follows_group(tx, provider, group.id):
        return True
    every = partitions.partitions_of_group(tx, group.id)
    if not every:
        return group.creation_digest is None
    return any(states.has_leaf_of(tx, group, tip, domain) for tip in tips(every))


def what_is_known(group: Group, tx: Tx) -> RecoverRequest:
    """Return the request with which a provider is asked for the messages of a group that are missing here."""
    known = partitions.partitions_of_group(tx, group.id)
    return RecoverRequest(group.group_id, tuple(KnownPartition(each.masked_key, each.next_counter) for each in known))


def learn(group: Group, found: RecoverResponse, linear: bool, tx: Tx) -> None:
    """Record, from an answer, the suite of a group that the backup lacks, and whether the group is linear."""
    groups.learn_suite(tx, group.id, found.version, found.cipher_suite)
    if linear:
        groups.learn_linear(tx, group.id)


def has_progress(request: RecoverRequest, epochs: tuple[PushedEpoch, ...], counters: list[Counter]) -> bool:
    """Tell whether any partition has more messages than it had when the request was made."""
    before = {each.masked_partition_key: each.counter for each in request.known}
    return any(
        before.get(epoch.masked_partition_key, -1) < counter != NO_LONGER_FOLLOWED
        for epoch, counter in zip(epochs, counters, strict=True)
    )


def follow(provider: int, group: Group, epochs: tuple[PushedEpoch, ...], counters: list[Counter], tx: Tx) -> None:
    """Record that a provider follows the partitions that it returned: it has them because it followed them."""
    for epoch, counter in zip(epochs, counters, strict=True):
        partition = partitions.find_partition(tx, group.hub, [epoch.masked_partition_key])
        if partition is None or partition.group != group.id or counter == NO_LONGER_FOLLOWED:
            continue
        if not follows.follow(tx, provider, partition.id, next_counter=counter):
            follows.set_position(tx, provider, partition.id, counter)


def remove_if_free(tx: Tx, group: int) -> None:
    """Remove a group of which only the id is known, unless a provider still has to answer about the group."""
    if group != recoveries.ALL_GROUPS and not recoveries.waited_for(tx, group):
        groups.remove_without_partitions(tx, group)
