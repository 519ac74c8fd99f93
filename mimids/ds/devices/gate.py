"""What our own devices may ask of a hub, decided before it is asked: the rates, policy and the hub's terms.

Here the sender is known, for it is a device of ours: so this is where mutes, bans of senders and rates hold, whoever is
the hub (DS draft section 4: the follower enforces the hub's policies "in situations where the hub can not"). Where we
are the hub ourselves, `ds.groups.sequencing` judges the message, in its own transaction, and only the rates are
counted here.
Nothing is kept but the buckets.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.policy import GroupPolicy
from mimids.ds.groups.submission import Submission, submissions_in
from mimids.ds.limits.budgets import Budgets, octets_of
from mimids.ds.limits.rates import HubRates, UserRates
from mimids.ds.ports import Clock
from mimids.ds.terms.arrangements import Arrangements
from mimids.errors import MimiError
from mimids.mls.framing import MLSMessage
from mimids.store import groups, messages, partitions, providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Device
from mimids.wire.ids import GroupId, MaskedPartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    CreateGroupRequest,
    ExternalJoinRequest,
    ExternalProposalRequest,
    SendRequest,
)


@attrs.frozen
class _Asked:
    """One message, with the masks that its partition may be stored under; none where the hub is to find it."""

    message: MLSMessage
    masks: tuple[MaskedPartitionKey, ...]
    data: CommitData | None


class Gate:
    """What our own devices may ask."""

    def __init__(
        self,
        provider: ProviderId,
        store: Store,
        clock: Clock,
        mls: MlsJudge,
        rates: UserRates,
        budgets: Budgets,
        arrangements: Arrangements,
    ) -> None:
        self._provider = provider
        self._store = store
        self._clock = clock
        self._mls = mls
        self._rates = rates
        self._budgets = budgets
        self._arrangements = arrangements
        self._hub_rates = HubRates(clock)

    async def send(self, device: Device, hub: ProviderId, requests: Sequence[SendRequest]) -> list[MimiError | None]:
        """Return for each message why it may not be sent, or None: then the hub decides."""
        terms = self._arrangements.in_force(hub)
        rate = None if terms is None else terms.rate("device_sends", 1)
        allowed, refusal = self._rates.take_sends(device, len(requests))
        at_hub, hub_refusal = self._hub_rates.take_sends(hub, rate, device, allowed)
        sizes = [octets_of(each.message, each.commit_data) for each in requests[:at_hub]]
        let, full = self._budgets.take(device, sizes)
        verdicts: list[MimiError | None] = [None for _ in range(let)]
        verdicts += [full] * (at_hub - let)
        verdicts += [hub_refusal] * (allowed - at_hub) + [refusal] * (len(requests) - allowed)
        if hub == self._provider:
            return verdicts
        asked = [_Asked(each.message, each.partition_key.masks(), each.commit_data) for each in requests[:let]]
        judged = await self._judge(device, hub, asked, submissions_in(requests[:let]))
        return [*judged, *verdicts[let:]]

    async def join(self, device: Device, hub: ProviderId, request: ExternalJoinRequest) -> None:
        """Raise why an external commit may not be sent."""
        terms = self._arrangements.in_force(hub)
        self._rates.take_join(device)
        self._take_room(device, octets_of(request.message, request.commit_data))
        self._hub_rates.take_join(hub, None if terms is None else terms.rate("device_joins", 3600), device)
        if hub != self._provider:
            await self._judge_one(device, hub, _Asked(request.message, (), request.commit_data))

    async def propose(self, device: Device, hub: ProviderId, request: ExternalProposalRequest) -> None:
        """Raise why a proposal from outside may not be sent."""
        _, refusal = self._rates.take_sends(device, 1)
        if refusal is not None:
            raise refusal
        self._take_room(device, octets_of(request.message, None))
        if hub != self._provider:
            masks = () if request.partition is None else (request.partition,)
            await self._judge_one(device, hub, _Asked(request.message, masks, None))

    def create(self, device: Device, request: CreateGroupRequest) -> None:
        """Count what a group's creation stores; raise `RateLimited`."""
        parts = (request.group_info, None if request.welcome_data is None else request.welcome_data.welcome)
        self._take_room(device, sum(len(each.encoded) for each in parts if each is not None))

    def _take_room(self, device: Device, octets: int) -> None:
        _, refusal = self._budgets.take(device, [octets])
        if refusal is not None:
            raise refusal

    def fetch(self, device: Device) -> None:
        """Count a KeyPackage request through the relay; raise `RateLimited`."""
        self._rates.take_fetch(device)

    async def read(self, device: Device, hub: ProviderId) -> None:
        """Raise `PolicyRefused` where the hub banned the device's user from all its groups.

        (semantics: terms-and-reports)
        """

        def look(tx: Tx) -> None:
            rules = GroupPolicy(tx, self._mls.states, self._clock.now(), ours=hub == self._provider)
            rules.check_reader(providers.provider_row(tx, hub) or 0, device)

        await self._store.read(look)

    # --- judging for a hub that is not us -----------------------------------------------------------------------

    async def _judge_one(self, device: Device, hub: ProviderId, asked: _Asked) -> None:
        (refusal,) = await self._judge(device, hub, [asked], [Submission(asked.message, None, asked.data)])
        if refusal is not None:
            raise refusal

    async def _judge(
        self, device: Device, hub: ProviderId, asked: Sequence[_Asked], offered: Sequence[Submission]
    ) -> list[MimiError | None]:
        await self._mls.prepare(self._store, hub, offered)

        def look(tx: Tx) -> list[MimiError | None]:
            number = providers.provider_row(tx, hub) or 0
            rules = GroupPolicy(tx, self._mls.states, self._clock.now(), ours=False)
            return [self._verdict(tx, rules, hub, number, device, each) for each in asked]

        return await self._store.read(look)

    def _verdict(
        self, tx: Tx, rules: GroupPolicy, hub: ProviderId, number: int, device: Device, asked: _Asked
    ) -> MimiError | None:
        try:
            self._arrangements.check_sizes(hub, _sizes(asked))
            group = groups.find_group(tx, number, asked.message.group_id or GroupId(b""))
            partition = None if group is None else self._partition(tx, group, asked)
            if partition is not None and self._is_repeat(tx, partition, asked.message):
                return None  # it gets its first answer again, whatever holds by now (semantics: sequencing)
            if group is None or partition is None:
                rules.check_unseen(number, asked.message, device)
            else:
                self._check(tx, rules, group, partition, asked, device)
        except MimiError as refusal:
            return refusal
        return None

    def _partition(self, tx: Tx, group: Group, asked: _Asked) -> Partition | None:
        if asked.masks:
            found = partitions.find_partition(tx, group.hub, asked.masks)
            return found if found is not None and found.group == group.id else None
        fitting = partitions.partitions_of_epoch(tx, group.id, asked.message.epoch or 0)
        return next((each for each in fitting if self._mls.signature_fits(tx, group, each, asked.message)), None)

    def _is_repeat(self, tx: Tx, partition: Partition, message: MLSMessage) -> bool:
        return messages.find_repeat(tx, partition.id, messages.digest_of(message.encoded)) is not None

    def _check(
        self, tx: Tx, rules: GroupPolicy, group: Group, partition: Partition, asked: _Asked, device: Device
    ) -> None:
        """Judge by the state as we follow it; that a message is invalid is for the hub to say."""
        try:
            judged = self._mls.judge(tx, group, partition, asked.message)
        except MimiError:
            rules.check_unseen(group.hub, asked.message, device)
            return
        ahead = None
        if asked.data is not None:
            try:
                ahead = self._mls.after_commit(judged, asked.data.group_info)
            except MimiError:
                ahead = None
        rules.check(group, partition, judged, ahead, device)


def _sizes(asked: _Asked) -> dict[str, int]:
    found = {"message_bytes": len(asked.message.encoded)}
    if asked.data is not None and asked.data.group_info is not None:
        found["group_info_bytes"] = len(asked.data.group_info.encoded)
    if asked.data is not None and asked.data.welcome_data is not None:
        found["welcome_bytes"] = len(asked.data.welcome_data.welcome.encoded)
    return found
