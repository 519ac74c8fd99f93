"""Another provider as the hub of our own devices.

Requests are passed on at once and never queued: raw partition keys are not stored (semantics: sequencing). A hub that
cannot be reached is `PeerUnavailable`. A request is passed on with the octets that the device sent; of an answer only
the structure is checked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import ClassVar, TypeVar

import attrs

from mimids.ds.devices.follower_policy import FollowerPolicy
from mimids.ds.devices.gate import Gate
from mimids.ds.devices.hubs import insert_refusals
from mimids.ds.following.cursors import Cursors
from mimids.ds.following.following import Following
from mimids.ds.groups.pages import Page
from mimids.ds.ports import Peers
from mimids.ds.terms.accepted import AcceptedTerms
from mimids.errors import ArrangementRequired, MimiError, PeerFailed
from mimids.values import Device
from mimids.wire.base64url import base64url
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import GroupId, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    SEND_REQUESTS,
    SEND_RESULTS,
    CommitData,
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoBundle,
    GroupInfoRequest,
    GroupInfoResponse,
    ReceiveRequest,
    SendRequest,
    SendResponse,
)

T = TypeVar("T")


@attrs.frozen
class RemoteHub:
    """`Hub` over calls to `provider`: limits and policy first, then the call, then a note of the group that it is in.

    If the hub requires its terms to be accepted first, they are accepted and the call is retried once.
    """

    provider: ProviderId
    following: Following = attrs.field(kw_only=True)
    peers: Peers = attrs.field(kw_only=True)
    gate: Gate = attrs.field(kw_only=True)
    policy: FollowerPolicy = attrs.field(kw_only=True)
    accepted: AcceptedTerms = attrs.field(kw_only=True)
    cursors: Cursors = attrs.field(kw_only=True)
    problem: Callable[[MimiError], bytes] = attrs.field(kw_only=True)
    needs_keys: ClassVar[bool] = True

    async def send(self, device: Device, request: SendRequest) -> bytes:
        """Sequence a message; see `Hub.send`."""
        (refusal,) = await self._refusals(device, [request])
        if refusal is not None:
            raise refusal
        answer = await self._call("send", encode(request))
        await self._note_sent(device, [(request, _decode(SendResponse, answer))])
        return answer

    async def send_batch(self, device: Device, requests: Sequence[SendRequest]) -> list[SendResponse | bytes]:
        """Sequence messages in order; see `Hub.send_batch`."""
        refusals = await self._refusals(device, requests)
        allowed = [request for request, refusal in zip(requests, refusals, strict=True) if refusal is None]
        outcomes = await self._call_send_batch(device, allowed) if allowed else []
        return insert_refusals(refusals, outcomes, self.problem)

    async def receive(self, device: Device, request: ReceiveRequest, *, wait_seconds: int | None = None) -> bytes:
        """Return a partition's messages; see `Hub.receive`. The hub is asked if none are stored here."""
        self.cursors.note(device, self.provider, request)
        await self.policy.check_reader(device, self.provider)
        return await self._accepting_terms(
            partial(self.following.receive, device, self.provider, request, wait_seconds=wait_seconds)
        )

    async def page(self, device: Device, request: ReceiveRequest, *, limit_octets: int) -> tuple[GroupId, Page] | None:
        """Return a partition's messages and its group; see `Hub.page`."""
        return await self.following.page(device, self.provider, request, limit_octets=limit_octets)

    async def present(self, device: Device, key: PartitionKey) -> None:
        """Present a key to the hub, so that it pushes the partition; see `Hub.present`."""
        await self._accepting_terms(partial(self.following.ask, device, self.provider, key))

    async def join(self, device: Device, request: ExternalJoinRequest) -> bytes:
        """Sequence an external commit; see `Hub.join`."""
        self.gate.count_join(device, request, terms=self.accepted.in_force(self.provider))
        await self.policy.check_join(device, self.provider, request)
        answer = await self._call("join", encode(request))
        await self._note_sent(device, [(request, _decode(SendResponse, answer))])
        return answer

    async def propose(self, device: Device, request: ExternalProposalRequest) -> bytes:
        """Sequence an external proposal; see `Hub.propose`."""
        self.gate.count_proposal(device, request)
        await self.policy.check_proposal(device, self.provider, request)
        answer = await self._call("propose", encode(request))
        _decode(SendResponse, answer)
        return answer

    async def group_info(
        self,
        device: Device,
        request: GroupInfoRequest,
        *,
        partition: MaskedPartitionKey | None = None,
        bundle: bool = False,
    ) -> bytes:
        """Return what a joiner needs; see `Hub.group_info`."""
        await self.policy.check_reader(device, self.provider)
        query = ["bundle"] if bundle else []
        if partition is not None:
            query.append("partition=" + base64url(partition))
        path = "group-info" + ("?" + "&".join(query) if query else "")
        answer = await self._call(path, encode(request))
        _decode(GroupInfoBundle if bundle else GroupInfoResponse, answer)
        return answer

    # --- the steps of a request ---------------------------------------------------------------------------------

    async def _refusals(self, device: Device, requests: Sequence[SendRequest]) -> list[MimiError | None]:
        """Return for each message why it is not passed on to the hub, or None."""
        counted = self.gate.count_sends(device, requests, terms=self.accepted.in_force(self.provider))
        within_limits = counted.count(None)  # those come first
        checked = await self.policy.check_sends(device, self.provider, requests[:within_limits])
        return [*checked, *counted[within_limits:]]

    async def _call(self, path: str, body: bytes) -> bytes:
        call = partial(self.peers.call, self.provider, "POST", f"/ds/v1/{path}", body)
        return (await self._accepting_terms(call)).body

    async def _accepting_terms(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the hub; if it requires its terms to be accepted first, accept them and retry once.

        (semantics: terms-and-reports)
        """
        try:
            return await ask()
        except ArrangementRequired:
            if not await self.accepted.renew(self.provider):
                raise
            return await ask()

    async def _call_send_batch(self, device: Device, requests: Sequence[SendRequest]) -> list[SendResponse | bytes]:
        answer = await self._call("send-batch", SEND_REQUESTS.encode(tuple(requests)))
        try:
            outcomes = [result.outcome for result in SEND_RESULTS.decode(answer)]
            sent = [
                (request, outcome)
                for request, outcome in zip(requests, outcomes, strict=True)
                if isinstance(outcome, SendResponse)
            ]
        except ValueError as error:
            raise PeerFailed("it did not answer with one SendResult for each SendRequest") from error
        await self._note_sent(device, sent)
        return outcomes

    async def _note_sent(
        self, device: Device, sent: Sequence[tuple[SendRequest | ExternalJoinRequest, SendResponse]]
    ) -> None:
        """Record the groups that a device takes part in, so that the hub's pushes of them are accepted."""
        by_group: dict[GroupId, list[tuple[SendResponse, CommitData | None]]] = {}
        for request, response in sent:
            group_id = request.message.group_id
            if group_id is not None:
                by_group.setdefault(group_id, []).append((response, request.commit_data))
        for group_id, responses in by_group.items():
            await self.following.note_sent(device, self.provider, group_id, responses)


def _decode(cls: type[T], answer: bytes) -> T:
    try:
        return decode(cls, answer)
    except WireError as error:
        raise PeerFailed(f"its answer is not a {cls.__name__}") from error
