"""Answering a provider that was restored from a backup (semantics: restore).

A hub first asks which of its groups are known here. Then it asks for the messages that it lacks, group by group. A
follower asks us, the hub, to send again the Welcomes that it got after the backup.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from mimids.ds.groups import pages
from mimids.ds.groups.states import States
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.notifier import OUTGOING, Notifier
from mimids.ds.ports import Clock
from mimids.errors import RateLimited, UnknownGroup
from mimids.mls.framing import MLSMessage
from mimids.store import groups, partitions, providers, welcomes
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Follower, Milliseconds
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
WELCOMES_SENT_AGAIN: Final = 1000  # the newest Welcomes to a provider
AGAIN_SECONDS: Final = 600  # between two requests of one provider to send Welcomes again
PROVIDERS_REMEMBERED: Final = 10_000


class RecoveryAnswers:
    """Answers a restored hub's questions; an answer has about `answer_octets` of messages at most."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        states: States,
        notifier: Notifier,
        *,
        answer_octets: int,
        bound_hit: Callable[[str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._states = states
        self._notifier = notifier
        self._answer_octets = answer_octets
        self._bound_hit = bound_hit
        self._sent_again = LeastRecentlyUsed[ProviderId, Milliseconds](PROVIDERS_REMEMBERED)  # the last time

    def change_limit(self, answer_octets: int) -> None:
        """Use another limit on the size of an answer from now on."""
        self._answer_octets = answer_octets

    async def groups_of(self, hub: Follower, request: HeldGroupsRequest) -> HeldGroupsResponse:
        """Return the hub's groups that are known here, ordered by id, starting after the group that the hub named."""

        def read(tx: Tx) -> tuple[GroupId, ...]:
            row = providers.provider_row(tx, hub.provider) or 0
            return tuple(groups.group_ids_of_hub(tx, row, after=request.after, limit=GROUPS_IN_AN_ANSWER))

        return HeldGroupsResponse(await self._store.read(read))

    async def messages_beyond(self, hub: Follower, request: RecoverRequest) -> RecoverResponse:
        """Return the messages that the hub lacks of one of its groups; if it lacks none, the answer has no epochs.

        An epoch without messages stands for messages that retention dropped here, as in a push. Raises `UnknownGroup`.
        """
        return await self._store.read(partial(self._beyond, hub.provider, request))

    async def is_linear(self, hub: Follower, request: RecoverRequest) -> bool:
        """Tell whether a group of the hub is linear, as far as we know."""

        def read(tx: Tx) -> bool:
            group = groups.find_group(tx, providers.provider_row(tx, hub.provider) or 0, request.group_id)
            return group is not None and group.linear

        return await self._store.read(read)

    async def send_welcomes_again(self, follower: Follower) -> None:
        """Send a provider its delivered Welcomes again; the provider ignores Welcomes that it still has.

        Raises `RateLimited` if the provider asked a short time ago, because a short request makes us send much.
        """
        now = self._clock.now()
        since = now - (self._sent_again.peek(follower.provider) or Milliseconds(0))
        if 0 <= since < AGAIN_SECONDS * 1000:
            self._bound_hit("welcomes-again")
            raise RateLimited("welcomes_again", AGAIN_SECONDS - since // 1000)

        def work(tx: Tx) -> int:
            row = providers.provider_row(tx, follower.provider) or 0
            return welcomes.deliver_again(tx, row, limit=WELCOMES_SENT_AGAIN)

        if await self._store.write(work):
            self._notifier.notify(OUTGOING)
        self._sent_again.put(follower.provider, now)

    def _beyond(self, hub: ProviderId, request: RecoverRequest, tx: Tx) -> RecoverResponse:
        group = groups.find_group(tx, providers.provider_row(tx, hub) or 0, request.group_id)
        if group is None:
            raise UnknownGroup
        known = {each.masked_partition_key: each.counter for each in request.known}
        epochs: list[PushedEpoch] = []
        room = self._answer_octets
        for partition in partitions.by_epoch(tx, group.id):  # a state is derived from the state of the epoch before
            if room <= 0 or len(epochs) == EPOCHS_IN_AN_ANSWER:
                break
            counter = known.get(partition.masked_key, Counter(0))
            if partition.next_counter <= counter:
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
