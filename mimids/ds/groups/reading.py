"""Reads of our own groups, each within one transaction (semantics: following-and-delivery, joining-from-outside)."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mimids.config import Config
from mimids.ds.groups import pages
from mimids.ds.groups.outsiders import Outsiders
from mimids.ds.groups.policy import GroupPolicy
from mimids.ds.groups.positions import check_position, positions_of
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.restrictions import OWN
from mimids.ds.groups.states import States, is_joinable
from mimids.ds.groups.successors import check_not_replaced
from mimids.ds.ports import Clock
from mimids.errors import BranchTerminated, UnknownGroup, UnknownPartition
from mimids.mls.framing import MLSMessage
from mimids.store import follows, groups, messages, partitions, proposals, providers, tips
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Device, Follower, Sender
from mimids.wire.declare import decode
from mimids.wire.ids import GroupId, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    GroupInfoBundle,
    GroupInfoResponse,
    Position,
    ReceiveRequest,
    encode_receive_response,
)


@attrs.frozen
class Found:
    """The partition that a reader asked for, and what the caller has to write because of the request."""

    partition: Partition
    followed: bool  # the follower is served already, so nothing is written about it (`follows.is_served`)
    empty: bool
    unnoted: bool  # the device must be recorded as a reader since the restore
    linear: bool  # whether its group is linear (semantics: linear-groups)


@attrs.frozen
class JoinerInfo:
    """The GroupInfo and proposals that a joiner needs, and whether the group is linear."""

    bundle: GroupInfoBundle
    linear: bool


class GroupReader:
    """Finds messages and GroupInfos of our own groups; the caller runs each method in a transaction."""

    def __init__(self, config: Config, clock: Clock, states: States, outsiders: Outsiders, recent: Recent) -> None:
        self._config = config
        self._provider: ProviderId = config.provider
        self._clock = clock
        self._states = states
        self._outsiders = outsiders
        self._recent = recent

    def receive(self, request: ReceiveRequest, caller: Sender, tx: Tx) -> tuple[bytes, Found]:
        """Return an encoded `ReceiveResponse`: messages from the counter on, and hints for followers.

        Raises `UnknownPartition`, `GroupReplaced`, `MessagesExpired`, and what `check_position` raises.
        """
        partition = self.partition_of(tx, request.partition_key)
        group = groups.group_by_row(tx, partition.group)
        check_not_replaced(group)
        unnoted = check_position(tx, partition, request.counter, caller)
        limit = self._config.limits.receive_bytes
        withheld = isinstance(caller, Device) and self._withholds(tx, group, partition, caller)
        asked = pages.page(
            tx, partition, request.counter, limit_octets=limit, handshakes_only=withheld, recent=self._recent
        )
        hints: list[pages.Page] = []
        followed = True
        if isinstance(caller, Follower):
            follower = providers.provider_row(tx, caller.provider)
            followed = follows.is_served(tx, follower or 0, partition, request.counter)
            if asked.complete:
                hints = self._hints(
                    tx, group, partition, caller.provider, limit - asked.octets, answered=len(asked.messages)
                )
        answer = encode_receive_response(asked.epoch, [(h.partition.masked_key, h.epoch) for h in hints])
        return answer, Found(partition, followed, not asked.messages, unnoted, group.linear)

    def partition_of(self, tx: Tx, key: PartitionKey) -> Partition:
        """Return the partition with this key; raise `UnknownPartition`."""
        found = partitions.find_partition(tx, providers.provider_row(tx, self._provider) or 0, key.masks())
        if found is None:
            raise UnknownPartition
        return found

    def _hints(
        self, tx: Tx, group: Group, partition: Partition, caller: ProviderId, limit_octets: int, *, answered: int
    ) -> list[pages.Page]:
        """Return the epochs after a partition that the caller may have (semantics: following-and-delivery)."""
        if group.encrypted_handshakes and not self._config.group.hints_encrypted:
            return []

        def may_have(child: Partition) -> bool:
            return self._states.has_leaf_of(tx, group, child, caller)

        left = pages.MESSAGES_IN_A_PAGE - answered
        return pages.hinted(tx, partition, may_have=may_have, limit_octets=limit_octets, limit_messages=left)

    def page(
        self, device: Device, request: ReceiveRequest, tx: Tx, *, limit_octets: int
    ) -> tuple[GroupId, pages.Page, bool]:
        """Return group and messages, and whether the device must be recorded as a reader; raise as `receive` does."""
        partition = self.partition_of(tx, request.partition_key)
        group = groups.group_by_row(tx, partition.group)
        check_not_replaced(group)
        unnoted = check_position(tx, partition, request.counter, device)
        withheld = self._withholds(tx, group, partition, device)
        found = pages.page(
            tx, partition, request.counter, limit_octets=limit_octets, handshakes_only=withheld, recent=self._recent
        )
        return group.group_id, found, unnoted

    def positions(self, keys: Sequence[PartitionKey], device: Device, tx: Tx) -> tuple[Position, ...]:
        """Return for each of these keys up to which counter its partition goes."""
        return positions_of(tx, providers.provider_row(tx, self._provider) or 0, keys, device)

    def _withholds(self, tx: Tx, group: Group, partition: Partition, device: Device) -> bool:
        """Tell whether application messages of a partition are withheld from a banned device (semantics: policy)."""
        policy = GroupPolicy(tx, self._states, self._clock.now(), OWN)
        return policy.withheld(group, partition, device) is not None

    def joinable_group(self, tx: Tx, group_id: GroupId | None, caller: Sender) -> Group | None:
        """Return the group if the caller may join it from outside; None otherwise.

        For an unknown group the same statements run, so that the time they take does not show that the group is
        unknown.
        """
        group = groups.find_group(tx, providers.provider_row(tx, self._provider) or 0, group_id or GroupId(b""))
        return group if self._outsiders.may_join_group(tx, group, caller) else None

    def group_info(self, group_id: GroupId, caller: Sender, partition: MaskedPartitionKey | None, tx: Tx) -> JoinerInfo:
        """Return the GroupInfo of a partition or, if no partition is named, of the open branch with the most messages.

        Raises `BranchTerminated`, `GroupReplaced`, and `UnknownGroup` both for an unknown group and for a group that
        the caller cannot join.
        """
        if isinstance(caller, Device):
            rules = GroupPolicy(tx, self._states, self._clock.now(), OWN)
            rules.check_reader(providers.provider_row(tx, self._provider) or 0, caller)
        group = self.joinable_group(tx, group_id, caller)
        if group is not None:
            check_not_replaced(group)
        row = group.id if group else 0  # for an unknown group the same statements run below
        if partition is None:
            found = tips.live_tip(tx, row)
        else:
            found = partitions.find_partition(tx, group.hub if group else 0, [partition])
        stored = partitions.group_info_of(tx, found.id if found else 0)
        if group is None or found is None or found.group != row or stored is None:
            raise UnknownGroup
        if not self._outsiders.may_see(tx, group, found, caller):
            raise UnknownGroup
        message = decode(MLSMessage, stored)
        if not is_joinable(message):
            raise UnknownGroup
        if found.terminated:
            raise BranchTerminated
        tree = self._states.inferred_tree(tx, group, found, message)
        bundle = GroupInfoBundle(GroupInfoResponse(message, tree), self._self_removes(tx, found))
        return JoinerInfo(bundle, group.linear)

    def _self_removes(self, tx: Tx, partition: Partition) -> tuple[MLSMessage, ...]:
        """Return the pending SelfRemove proposals, which an external commit must cover."""
        bodies = (messages.body_of(tx, row.seq or 0) for row in proposals.self_removes_of(tx, partition.id))
        return tuple(decode(MLSMessage, body) for body in bodies if body is not None)
