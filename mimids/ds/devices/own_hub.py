"""This provider as the hub of its own devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import attrs

from mimids.ds.devices.gate import Gate
from mimids.ds.devices.hubs import EncodedGroupInfo, encode_outcomes, insert_refusals
from mimids.ds.following.cursors import Cursors
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.pages import Page
from mimids.errors import MimiError
from mimids.values import Device
from mimids.wire.declare import encode
from mimids.wire.ids import FIRST_COUNTER, Counter, GroupId, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoRequest,
    Position,
    ReceiveRequest,
    SendRequest,
    SendResponse,
    WelcomeStatusRequest,
)


@attrs.frozen(kw_only=True)
class OwnHub:
    """`Hub` over `LocalHub`; adds limits for devices, and encoding. `LocalHub` itself checks policy."""

    provider: ProviderId
    hub: LocalHub
    gate: Gate
    cursors: Cursors
    problem: Callable[[MimiError], bytes]
    needs_keys: ClassVar[bool] = False

    async def send(self, device: Device, request: SendRequest) -> bytes:
        """Sequence a message; see `Hub.send`."""
        (refusal,) = self.gate.count_sends(device, [request])
        if refusal is not None:
            raise refusal
        return encode(await self.hub.send(request, device))

    async def send_batch(self, device: Device, requests: Sequence[SendRequest]) -> list[SendResponse | bytes]:
        """Sequence messages in order; see `Hub.send_batch`."""
        refusals = self.gate.count_sends(device, requests)
        allowed = [request for request, refusal in zip(requests, refusals, strict=True) if refusal is None]
        outcomes = await self.hub.send_batch(allowed, device) if allowed else []
        return insert_refusals(refusals, encode_outcomes(outcomes, self.problem), self.problem)

    async def receive(self, device: Device, request: ReceiveRequest, *, wait_seconds: int | None = None) -> bytes:
        """Return a partition's messages; see `Hub.receive`."""
        with self.cursors.reading(device, self.provider, request):
            return await self.hub.receive(request, device, wait_seconds=wait_seconds or 0)

    async def page(self, device: Device, request: ReceiveRequest, *, limit_octets: int) -> tuple[GroupId, Page] | None:
        """Return a partition's messages and its group; see `Hub.page`. It is never None."""
        return await self.hub.page(device, request, limit_octets=limit_octets)

    async def positions(self, device: Device, keys: Sequence[PartitionKey]) -> tuple[Position, ...]:
        """Return up to which counters partitions go; see `Hub.positions`."""
        return await self.hub.positions(device, keys)

    async def present(self, device: Device, key: PartitionKey, counter: Counter = FIRST_COUNTER) -> int:
        """Do nothing: the messages of our own groups are stored here."""
        return 0

    async def join(self, device: Device, request: ExternalJoinRequest) -> bytes:
        """Sequence an external commit; see `Hub.join`."""
        self.gate.count_join(device, request)
        return encode(await self.hub.join(request, device))

    async def propose(self, device: Device, request: ExternalProposalRequest) -> bytes:
        """Sequence an external proposal; see `Hub.propose`."""
        self.gate.count_proposal(device, request)
        return encode(await self.hub.propose(request, device))

    async def group_info(
        self,
        device: Device,
        request: GroupInfoRequest,
        *,
        partition: MaskedPartitionKey | None = None,
        bundle: bool = False,
    ) -> EncodedGroupInfo:
        """Return a GroupInfo for a joiner; see `Hub.group_info`."""
        found = await self.hub.group_info(request.group_id, device, partition=partition)
        return EncodedGroupInfo(encode(found.bundle if bundle else found.bundle.info), found.linear)

    async def welcome_status(self, device: Device, request: WelcomeStatusRequest) -> bytes:
        """Return what became of the Welcomes that lead to a partition; see `Hub.welcome_status`."""
        self.gate.count_status(device)
        return encode(await self.hub.welcome_status(request, device))
