"""Devices' requests to the hub of a group: answered here if we are the hub, passed on otherwise (http: devices).

Nothing is queued: a hub that cannot be reached is 503, since raw partition keys are never kept (semantics:
sequencing). What is passed
on encodes to the very bytes that were received; what comes back is checked for its outer shape only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from mimids.ds.devices.gate import Gate
from mimids.ds.following.cursors import Cursors
from mimids.ds.following.following import Following
from mimids.ds.groups import pages
from mimids.ds.groups.hub import LocalHub
from mimids.ds.ports import Peers
from mimids.ds.terms.arrangements import Arrangements
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
    SendResult,
    SendStatus,
    encode_send_results,
)

T = TypeVar("T")
Sent = SendRequest | ExternalJoinRequest


def encode_outcomes(
    outcomes: Iterable[SendResponse | MimiError], problem: Callable[[MimiError], bytes]
) -> list[SendResponse | bytes]:
    """Return what a sender is told of each message: its answer, or the JSON of its problem."""
    return [problem(outcome) if isinstance(outcome, MimiError) else outcome for outcome in outcomes]


class HubRouter:
    """All hubs as our devices see them: each call names the hub, and returns the encoded answer."""

    def __init__(
        self,
        provider: ProviderId,
        hub: LocalHub,
        following: Following,
        peers: Peers,
        gate: Gate,
        arrangements: Arrangements,
        cursors: Cursors,
        problem: Callable[[MimiError], bytes],
    ) -> None:
        self._provider = provider
        self._hub = hub
        self._following = following
        self._peers = peers
        self._gate = gate
        self._arrangements = arrangements
        self._cursors = cursors
        self._problem = problem

    async def send(self, device: Device, hub: ProviderId, request: SendRequest) -> bytes:
        """Sequence a message; return a SendResponse."""
        (refusal,) = await self._gate.send(device, hub, [request])
        if refusal is not None:
            raise refusal
        if hub == self._provider:
            return encode(await self._hub.send(request, device))
        answer = await self._pass_on(hub, "send", encode(request))
        await self._note(device, hub, [(request, _decode(SendResponse, answer))])
        return answer

    def is_here(self, hub: ProviderId) -> bool:
        """Tell whether we are that hub."""
        return hub == self._provider

    async def send_batch(self, device: Device, hub: ProviderId, requests: Sequence[SendRequest]) -> bytes:
        """Sequence messages in order; return `SendResult results<V>`."""
        return encode_send_results(await self._send(device, hub, requests))

    async def results(self, device: Device, hub: ProviderId, requests: Sequence[SendRequest]) -> tuple[SendResult, ...]:
        """Sequence messages in order; return a result for each."""
        return tuple(
            SendResult(SendStatus.REFUSED if isinstance(each, bytes) else SendStatus.ACCEPTED, each)
            for each in await self._send(device, hub, requests)
        )

    async def _send(
        self, device: Device, hub: ProviderId, requests: Sequence[SendRequest]
    ) -> list[SendResponse | bytes]:
        """Sequence what the gate lets pass; return what the device is told of each message."""
        verdicts = await self._gate.send(device, hub, requests)
        let = [request for request, refusal in zip(requests, verdicts, strict=True) if refusal is None]
        answers: Iterator[SendResponse | bytes] = iter(())
        if let and hub == self._provider:
            answers = iter(encode_outcomes(await self._hub.send_batch(let, device), self._problem))
        elif let:
            answers = iter(await self._send_on(device, hub, let))
        return [next(answers) if refusal is None else self._problem(refusal) for refusal in verdicts]

    async def _send_on(
        self, device: Device, hub: ProviderId, requests: Sequence[SendRequest]
    ) -> list[SendResponse | bytes]:
        answer = await self._pass_on(hub, "send-batch", SEND_REQUESTS.encode(tuple(requests)))
        try:
            outcomes = [result.outcome for result in SEND_RESULTS.decode(answer)]
            sent = [
                (request, outcome)
                for request, outcome in zip(requests, outcomes, strict=True)
                if isinstance(outcome, SendResponse)
            ]
        except ValueError as error:
            raise PeerFailed("not one SendResult for each SendRequest") from error
        await self._note(device, hub, sent)
        return outcomes

    async def page(
        self, device: Device, hub: ProviderId, request: ReceiveRequest, *, limit_octets: int
    ) -> tuple[GroupId, pages.Page] | None:
        """Return what is here of a partition, and its group; None if the partition is not known here."""
        if hub == self._provider:
            return await self._hub.page(device, request, limit_octets=limit_octets)
        return await self._following.page(device, hub, request, limit_octets=limit_octets)

    def note(self, device: Device, hub: ProviderId, position: ReceiveRequest) -> None:
        """Take note of what a device has: what is below the counter that it presents."""
        self._cursors.note(device, hub, position)

    async def present(self, device: Device, hub: ProviderId, key: PartitionKey) -> None:
        """Present a key to another hub, so that its partition is pushed here."""
        await self._once_accepted(hub, partial(self._following.ask, device, hub, key))

    async def receive(
        self, device: Device, hub: ProviderId, request: ReceiveRequest, *, wait_seconds: int | None = None
    ) -> bytes:
        """Return a ReceiveResponse without hints: a device gets the epochs whose key it presents (http: devices)."""
        self.note(device, hub, request)
        if hub == self._provider:
            return await self._hub.receive(request, device, wait_seconds=wait_seconds or 0)
        await self._gate.read(device, hub)
        receive = partial(self._following.receive, device, hub, request, wait_seconds=wait_seconds)
        return await self._once_accepted(hub, receive)

    async def join(self, device: Device, hub: ProviderId, request: ExternalJoinRequest) -> bytes:
        """Sequence an external commit; return a SendResponse."""
        await self._gate.join(device, hub, request)
        if hub == self._provider:
            return encode(await self._hub.join(request, device))
        answer = await self._pass_on(hub, "join", encode(request))
        await self._note(device, hub, [(request, _decode(SendResponse, answer))])
        return answer

    async def propose(self, device: Device, hub: ProviderId, request: ExternalProposalRequest) -> bytes:
        """Sequence a proposal from outside; return a SendResponse."""
        await self._gate.propose(device, hub, request)
        if hub == self._provider:
            return encode(await self._hub.propose(request, device))
        answer = await self._pass_on(hub, "propose", encode(request))
        _decode(SendResponse, answer)
        return answer

    async def group_info(
        self,
        device: Device,
        hub: ProviderId,
        request: GroupInfoRequest,
        *,
        partition: MaskedPartitionKey | None = None,
        bundle: bool = False,
    ) -> bytes:
        """Return a GroupInfoResponse, or with `bundle` a GroupInfoBundle."""
        await self._gate.read(device, hub)
        if hub == self._provider:
            found = await self._hub.group_info(request.group_id, device, partition=partition)
            return encode(found if bundle else found.info)
        query = ["bundle"] if bundle else []
        if partition is not None:
            query.append("partition=" + base64url(partition))
        path = "group-info" + ("?" + "&".join(query) if query else "")
        answer = await self._pass_on(hub, path, encode(request))
        _decode(GroupInfoBundle if bundle else GroupInfoResponse, answer)
        return answer

    async def leave(self, device: Device, hub: ProviderId, group_id: GroupId) -> None:
        """Let a device leave a group; raise `UnknownGroup`."""
        await self._following.leave(device, hub, group_id)

    async def _note(self, device: Device, hub: ProviderId, sent: Sequence[tuple[Sent, SendResponse]]) -> None:
        """Know the groups that a device takes part in, so that what the hub pushes of them is taken."""
        noted: dict[GroupId, list[tuple[SendResponse, CommitData | None]]] = {}
        for request, response in sent:
            group_id = request.message.group_id
            if group_id is not None:
                noted.setdefault(group_id, []).append((response, request.commit_data))
        for group_id, responses in noted.items():
            await self._following.note_sent(device, hub, group_id, responses)

    async def _pass_on(self, hub: ProviderId, path: str, body: bytes) -> bytes:
        return (await self._once_accepted(hub, partial(self._peers.call, hub, "POST", f"/ds/v1/{path}", body))).body

    async def _once_accepted(self, hub: ProviderId, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask a hub; one that wants its terms accepted first is asked again once they are.

        (semantics: terms-and-reports)
        """
        try:
            return await ask()
        except ArrangementRequired:
            if not await self._arrangements.renew(hub):
                raise
            return await ask()


def _decode(cls: type[T], answer: bytes) -> T:
    try:
        return decode(cls, answer)
    except WireError as error:
        raise PeerFailed(f"not a {cls.__name__}") from error
