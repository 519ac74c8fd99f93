"""What we have of the groups of a hub that was restored from a backup (semantics: restore).

The hub asks for it: first which of its groups are known here, then what we have of each beyond what it knows.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from mimids.ds.groups import pages
from mimids.ds.groups.states import States
from mimids.errors import UnknownGroup
from mimids.mls.framing import MLSMessage
from mimids.store import groups, partitions, providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Follower
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, GroupId, ProviderId
from mimids.wire.messages import (
    Epoch,
    GroupInfoResponse,
    HeldGroupsRequest,
    HeldGroupsResponse,
    PushedEpoch,
    RecoverRequest,
    RecoverResponse,
)

EPOCHS_IN_AN_ANSWER: Final = 64
GROUPS_IN_AN_ANSWER: Final = 10_000


class RecoveryAnswers:
    """Answers a restored hub's questions; an answer has about `answer_octets` of messages at most."""

    def __init__(self, store: Store, states: States, *, answer_octets: int) -> None:
        self._store = store
        self._states = states
        self._answer_octets = answer_octets

    async def groups_of(self, hub: Follower, request: HeldGroupsRequest) -> HeldGroupsResponse:
        """Return the hub's groups that are known here, after the one that it named, in the order of their octets."""

        def read(tx: Tx) -> tuple[GroupId, ...]:
            row = providers.provider_row(tx, hub.provider) or 0
            return tuple(groups.group_ids_of_hub(tx, row, after=request.after, limit=GROUPS_IN_AN_ANSWER))

        return HeldGroupsResponse(await self._store.read(read))

    async def messages_beyond(self, hub: Follower, request: RecoverRequest) -> RecoverResponse:
        """Return what is here of one of the hub's groups beyond what it knows; without epochs if that is nothing.

        An epoch without messages stands for messages that retention dropped here, as in a push. Raises `UnknownGroup`.
        """
        return await self._store.read(partial(self._beyond, hub.provider, request))

    def _beyond(self, hub: ProviderId, request: RecoverRequest, tx: Tx) -> RecoverResponse:
        group = groups.find_group(tx, providers.provider_row(tx, hub) or 0, request.group_id)
        if group is None:
            raise UnknownGroup
        known = {each.masked_partition_key: each.counter for each in request.known}
        epochs: list[PushedEpoch] = []
        room = self._answer_octets
        for partition in _by_epoch(partitions.partitions_of_group(tx, group.id)):
            counter = known.get(partition.masked_key, Counter(0))
            if partition.next_counter <= counter or room <= 0 or len(epochs) == EPOCHS_IN_AN_ANSWER:
                continue
            page = pages.kept_page(tx, partition, counter, limit_octets=room)
            if page.counter > counter:
                page = page.without_messages()
            opening = None if partition.masked_key in known else self._opening(tx, group, partition)
            room -= page.octets + (0 if opening is None else len(encode(opening)))
            epoch = decode(Epoch, page.epoch)
            epochs.append(PushedEpoch(group.group_id, partition.masked_key, page.counter, opening, epoch))
        return RecoverResponse(group.version, group.cipher_suite, tuple(epochs))

    def _opening(self, tx: Tx, group: Group, partition: Partition) -> GroupInfoResponse | None:
        stored = partitions.group_info_of(tx, partition.id)
        if stored is None:
            return None
        info = decode(MLSMessage, stored)
        return GroupInfoResponse(info, self._states.inferred_tree(tx, group, partition, info))


def _by_epoch(found: list[Partition]) -> list[Partition]:
    """Return partitions by epoch, whatever their order here: a state is derived from that of the epoch before."""
    return sorted(found, key=lambda each: (each.epoch is None, each.epoch or 0, each.id))
