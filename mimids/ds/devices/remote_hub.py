"""Another provider as the hub of our own devices.

Requests are passed on at once and never queued: raw partition keys are not stored (semantics: sequencing). A hub that
cannot be reached is `PeerUnavailable`. A request is passed on with the octets that the device sent. Only the structure
of an answer is checked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import ClassVar, TypeVar

import attrs

from mimids.ds.devices.follower_policy import FollowerPolicy
from mimids.ds.devices.gate import Gate
from mimids.ds.devices.hubs import EncodedGroupInfo, insert_refusals
from mimids.ds.following.cursors import Cursors
from mimids.ds.following.following import Following
from mimids.ds.groups.pages import Page
from mimids.ds.groups.successors import named_successor, successor_in
from mimids.ds.limits.new_providers import NewProviders
from mimids.ds.peer_answers import AnswerDecoder
from mimids.ds.ports import PeerAnswer, Peers
from mimids.ds.terms.accepted import AcceptedTerms
from mimids.errors import ArrangementRequired, GroupReplaced, MimiError, PeerFailed
from mimids.store.groups import Successor
from mimids.values import Device
from mimids.wire.base64url import base64url
from mimids.wire.declare import encode
from mimids.wire.ids import FIRST_COUNTER, Counter, GroupId, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    SEND_REQUESTS,
    SEND_RESULTS,
    CommitData,
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoBundle,
    GroupInfoRequest,
    GroupInfoResponse,
    Position,
    ReceiveRequest,
    SendRequest,
    SendResponse,
    WelcomeStatusRequest,
    WelcomeStatusResponse,
)

T = TypeVar("T")


@attrs.frozen
class RemoteHub:
    """`Hub` over calls to `provider`: checks limits and policy, makes the call, then records the group.

    If the hub requires its terms to be accepted first, they are accepted and the call is retried once.
    """

    provider: ProviderId
    following: Following = attrs.field(kw_only=True)
    peers: Peers = attrs.field(kw_only=True)
    decoder: AnswerDecoder = attrs.field(kw_only=True)
    gate: Gate = attrs.field(kw_only=True)
    policy: FollowerPolicy = attrs.field(kw_only=True)
    accepted: AcceptedTerms = attrs.field(kw_only=True)
    cursors: Cursors = attrs.field(kw_only=True)
    new_providers: NewProviders = attrs.field(kw_only=True)
    problem: Callable[[MimiError], bytes] = attrs.field(kw_only=True)
    needs_keys: ClassVar[bool] = True

    async def send(self, device: Device, request: SendRequest) -> bytes:
        """Sequence a message; see `Hub.send`."""
        (refusal,) = await self._refusals(device, [request])
        if refusal is not None:
            raise refusal
        answer = await self._call("send", encode(request), request.message.group_id)
        await self._note_sent(device, [(request, await self._decode(SendResponse, answer))])
        return answer

    async def send_batch(self, device: Device, requests: Sequence[SendRequest]) -> list[SendResponse | bytes]:
        """Sequence messages in order; see `Hub.send_batch`."""
        refusals = await self._refusals(device, requests)
        allowed = [request for request, refusal in zip(requests, refusals, strict=True) if refusal is None]
        outcomes = await self._call_send_batch(device, allowed) if allowed else []
        return insert_refusals(refusals, outcomes, self.problem)

    async def receive(self, device: Device, request: ReceiveRequest, *, wait_seconds: int | None = None) -> bytes:
        """Return a partition's messages; if none are stored here, ask the hub. See `Hub.receive`."""
        self._count(device)
        await self.policy.check_reader(device, self.provider)
        with self.cursors.reading(device, self.provider, request):
            return await self._accepting_terms(
                partial(self.following.receive, device, self.provider, request, wait_seconds=wait_seconds)
            )

    async def page(self, device: Device, request: ReceiveRequest, *, limit_octets: int) -> tuple[GroupId, Page] | None:
        """Return a partition's messages and its group; see `Hub.page`."""
        return await self.following.page(device, self.provider, request, limit_octets=limit_octets)

    async def positions(self, device: Device, keys: Sequence[PartitionKey]) -> tuple[Position, ...]:
        """Return how far each of these partitions of the hub is stored here; see `Hub.positions`."""
        return await self.following.positions(device, self.provider, keys)

    async def present(self, device: Device, key: PartitionKey, counter: Counter = FIRST_COUNTER) -> int:
        """Present a key to the hub, so that it pushes the partition; see `Hub.present`."""
        self._count(device)
        request = ReceiveRequest(key, counter)
        pushed = await self._accepting_terms(partial(self.following.ask, device, self.provider, request))
        return 0 if pushed is None else len(pushed.messages)

    async def join(self, device: Device, request: ExternalJoinRequest) -> bytes:
        """Sequence an external commit; see `Hub.join`."""
        self._count(device)
        self.gate.count_join(device, request, terms=self.accepted.in_force(self.provider))
        await self.policy.check_join(device, self.provider, request)
        answer = await self._call("join", encode(request), request.message.group_id)
        await self._note_sent(device, [(request, await self._decode(SendResponse, answer))])
        return answer

    async def propose(self, device: Device, request: ExternalProposalRequest) -> bytes:
        """Sequence an external proposal; see `Hub.propose`."""
        self._count(device)
        self.gate.count_proposal(device, request)
        await self.policy.check_proposal(device, self.provider, request)
        answer = await self._call("propose", encode(request), request.message.group_id)
        await self._decode(SendResponse, answer)
        return answer

    async def group_info(
        self,
        device: Device,
        request: GroupInfoRequest,
        *,
        partition: MaskedPartitionKey | None = None,
        bundle: bool = False,
    ) -> EncodedGroupInfo:
        """Return a GroupInfo for a joiner; see `Hub.group_info`."""
        self._count(device)
        await self.policy.check_reader(device, self.provider)
        query = ["bundle"] if bundle else []
        if partition is not None:
            query.append("partition=" + base64url(partition))
        path = "group-info" + ("?" + "&".join(query) if query else "")
        answer = await self._exchange(path, encode(request), request.group_id)
        await self._decode(GroupInfoBundle if bundle else GroupInfoResponse, answer.body)
        if answer.linear:
            await self.following.note_linear(self.provider, request.group_id)
        return EncodedGroupInfo(answer.body, answer.linear)

    async def welcome_status(self, device: Device, request: WelcomeStatusRequest) -> bytes:
        """Return what became of the Welcomes that lead to a partition; see `Hub.welcome_status`."""
        self._count(device)
        self.gate.count_status(device)
        await self.policy.check_reader(device, self.provider)
        answer = await self._call("welcome-status", encode(request))
        await self._decode(WelcomeStatusResponse, answer)
        return answer

    # --- the steps of a request ---------------------------------------------------------------------------------

    def _count(self, device: Device) -> None:
        """Count the hub against the device's limits if no device here has named it before; raise `RateLimited`."""
        self.new_providers.take(device, [self.provider])

    async def _refusals(self, device: Device, requests: Sequence[SendRequest]) -> list[MimiError | None]:
        """Return for each message the reason why it is not passed on to the hub, or None."""
        self._count(device)
        counted = self.gate.count_sends(device, requests, terms=self.accepted.in_force(self.provider))
        within_limits = counted.count(None)  # the messages within the limits come first
        checked = await self.policy.check_sends(device, self.provider, requests[:within_limits])
        return [*checked, *counted[within_limits:]]

    async def _call(self, path: str, body: bytes, about: GroupId | None = None) -> bytes:
        return (await self._exchange(path, body, about)).body

    async def _exchange(self, path: str, body: bytes, about: GroupId | None) -> PeerAnswer:
        """Make a call; if the hub answers that another group replaces the call's group, record the other group."""
        try:
            return await self._accepting_terms(partial(self.peers.call, self.provider, "POST", f"/ds/v1/{path}", body))
        except GroupReplaced as error:
            if about is not None:
                await self.following.note_replaced(self.provider, about, named_successor(error.members))
            raise

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
            results = await self.decoder.decode_by(SEND_RESULTS, answer, "a list of SendResults", of=self.provider)
            outcomes = [result.outcome for result in results]
            sent = [
                (request, outcome)
                for request, outcome in zip(requests, outcomes, strict=True)
                if isinstance(outcome, SendResponse)
            ]
        except ValueError as error:
            raise PeerFailed("the answer does not have one SendResult for each SendRequest") from error
        await self._note_sent(device, sent)
        for group_id, successor in _replaced(requests, outcomes).items():
            await self.following.note_replaced(self.provider, group_id, successor)
        return outcomes

    async def _decode(self, cls: type[T], answer: bytes) -> T:
        return await self.decoder.decode(cls, answer, of=self.provider)

    async def _note_sent(
        self, device: Device, sent: Sequence[tuple[SendRequest | ExternalJoinRequest, SendResponse]]
    ) -> None:
        """Record the groups that a device takes part in, so that the hub's pushes of them are accepted.

        An answer that names another partition than the key's is ignored, because it would add a row here.
        """
        by_group: dict[GroupId, list[tuple[SendResponse, CommitData | None]]] = {}
        for request, response in sent:
            group_id = request.message.group_id
            fits = isinstance(request, ExternalJoinRequest) or response.partition in request.partition_key.masks()
            if group_id is not None and fits:
                by_group.setdefault(group_id, []).append((response, request.commit_data))
        for group_id, responses in by_group.items():
            await self.following.note_sent(device, self.provider, group_id, responses)


def _replaced(requests: Sequence[SendRequest], outcomes: Sequence[SendResponse | bytes]) -> dict[GroupId, Successor]:
    """Return the groups of a batch that the hub says are replaced, each with the group that replaces it."""
    refusals: dict[GroupId, bytes] = {}  # one of each group, so that a hub cannot make us read many
    for request, outcome in zip(requests, outcomes, strict=True):
        group_id = request.message.group_id
        if isinstance(outcome, bytes) and group_id is not None and GroupReplaced.code.encode() in outcome:
            refusals.setdefault(group_id, outcome)
    found = {group_id: successor_in(refusal) for group_id, refusal in refusals.items()}
    return {group_id: successor for group_id, successor in found.items() if successor is not None}
