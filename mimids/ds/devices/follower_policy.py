"""Checking our devices' requests by another hub's terms and policy, before a request goes to that hub.

The hub does not know which user sends, but we do. So mutes and bans of our own users are enforced here (DS draft
section 4: the follower enforces the hub's policies "in situations where the hub can not"; semantics: policy). Where we
are the hub ourselves, `ds.groups.sequencing` checks this in its own transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mimids.ds.groups.judging import BranchTries, MlsJudge
from mimids.ds.groups.policy import GroupPolicy
from mimids.ds.groups.restrictions import ACCEPTED
from mimids.ds.groups.submission import Submission, submissions_in
from mimids.ds.ports import Clock
from mimids.ds.terms.accepted import AcceptedTerms
from mimids.errors import MimiError
from mimids.mls.framing import MLSMessage
from mimids.store import groups, messages, partitions, providers
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.tracebacks import release_frames
from mimids.values import Device
from mimids.wire.ids import GroupId, MaskedPartitionKey, ProviderId
from mimids.wire.messages import CommitData, ExternalJoinRequest, ExternalProposalRequest, SendRequest


@attrs.frozen
class _Outgoing:
    """A message for a hub, and the masked keys that its partition may have.

    There are no masked keys if the request names no partition.
    """

    message: MLSMessage
    masks: tuple[MaskedPartitionKey, ...]
    data: CommitData | None


class FollowerPolicy:
    """Checks our devices' requests against what we know of another hub's groups. It writes nothing."""

    def __init__(self, store: Store, clock: Clock, mls: MlsJudge, accepted: AcceptedTerms) -> None:
        self._store = store
        self._clock = clock
        self._mls = mls
        self._accepted = accepted

    async def check_sends(
        self, device: Device, hub: ProviderId, requests: Sequence[SendRequest]
    ) -> list[MimiError | None]:
        """Return for each message the refusal, or None if it may be sent to the hub."""
        outgoing = [_Outgoing(each.message, each.partition_key.masks(), each.commit_data) for each in requests]
        return await self._check_all(device, hub, outgoing, submissions_in(requests))

    async def check_join(self, device: Device, hub: ProviderId, request: ExternalJoinRequest) -> None:
        """Raise the refusal if an external commit may not be sent to the hub."""
        await self._check_one(device, hub, _Outgoing(request.message, (), request.commit_data))

    async def check_proposal(self, device: Device, hub: ProviderId, request: ExternalProposalRequest) -> None:
        """Raise the refusal if an external proposal may not be sent to the hub."""
        masks = () if request.partition is None else (request.partition,)
        await self._check_one(device, hub, _Outgoing(request.message, masks, None))

    async def check_reader(self, device: Device, hub: ProviderId) -> None:
        """Raise `PolicyRefused` if the hub banned the device's user from all its groups.

        (semantics: terms-and-reports)
        """

        def check(tx: Tx) -> None:
            rules = GroupPolicy(tx, self._mls.states, self._clock.now(), ACCEPTED)
            rules.check_reader(providers.provider_row(tx, hub) or 0, device)

        await self._store.read(check)

    async def _check_one(self, device: Device, hub: ProviderId, outgoing: _Outgoing) -> None:
        submission = Submission(outgoing.message, None, outgoing.data)
        (refusal,) = await self._check_all(device, hub, [outgoing], [submission])
        if refusal is not None:
            raise refusal

    async def _check_all(
        self, device: Device, hub: ProviderId, outgoing: Sequence[_Outgoing], submissions: Sequence[Submission]
    ) -> list[MimiError | None]:
        await self._mls.prepare(self._store, hub, submissions)

        def check(tx: Tx) -> list[MimiError | None]:
            number = providers.provider_row(tx, hub) or 0
            rules = GroupPolicy(tx, self._mls.states, self._clock.now(), ACCEPTED)
            return [self._refusal(tx, rules, hub, number, device, each) for each in outgoing]

        return await self._store.read(check)

    def _refusal(
        self, tx: Tx, rules: GroupPolicy, hub: ProviderId, number: int, device: Device, outgoing: _Outgoing
    ) -> MimiError | None:
        try:
            self._accepted.check_sizes(hub, _sizes(outgoing))
            group = groups.find_group(tx, number, outgoing.message.group_id or GroupId(b""))
            partition = None if group is None else self._find_partition(tx, group, outgoing)
            if partition is not None and _is_repeat(tx, partition, outgoing.message):
                return None  # the hub repeats its first answer, even if a rule refuses it now (semantics: sequencing)
            if group is None or partition is None:
                rules.check_unseen(number, outgoing.message, device)
            else:
                self._check_in_partition(tx, rules, group, partition, outgoing, device)
        except MimiError as refusal:
            return release_frames(refusal)
        return None

    def _find_partition(self, tx: Tx, group: Group, outgoing: _Outgoing) -> Partition | None:
        if outgoing.masks:
            found = partitions.find_partition(tx, group.hub, outgoing.masks)
            return found if found is not None and found.group == group.id else None
        message = outgoing.message
        candidates = partitions.partitions_of_epoch(tx, group.id, message.epoch or 0)
        return next((each for each in candidates if self._mls.signature_fits(tx, group, each, message)), None)

    def _check_in_partition(
        self, tx: Tx, rules: GroupPolicy, group: Group, partition: Partition, outgoing: _Outgoing, device: Device
    ) -> None:
        """Check policy by the state that we follow. The hub checks whether the message is valid MLS."""
        try:
            judged = self._mls.judge(tx, group, partition, outgoing.message, BranchTries(0))
        except MimiError:
            rules.check_unseen(group.hub, outgoing.message, device)
            return
        ahead = None
        if outgoing.data is not None:
            try:
                ahead = self._mls.after_commit(judged, outgoing.data.group_info)
            except MimiError:
                ahead = None
        rules.check(group, partition, judged, ahead, device)


def _is_repeat(tx: Tx, partition: Partition, message: MLSMessage) -> bool:
    return messages.find_repeat(tx, partition.id, messages.digest_of(message.encoded)) is not None


def _sizes(outgoing: _Outgoing) -> dict[str, int]:
    """Return the size in octets of each object whose size a hub's terms limit, by the name of the limit."""
    found = {"message_bytes": len(outgoing.message.encoded)}
    if outgoing.data is not None and outgoing.data.group_info is not None:
        found["group_info_bytes"] = len(outgoing.data.group_info.encoded)
    if outgoing.data is not None and outgoing.data.welcome_data is not None:
        found["welcome_bytes"] = len(outgoing.data.welcome_data.welcome.encoded)
    return found
