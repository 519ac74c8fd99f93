"""This provider as the hub of its own devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import attrs

from mimids.ds.devices.gate import Gate
from mimids.ds.devices.hubs import encode_outcomes, insert_refusals
from mimids.ds.following.cursors import Cursors
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.pages import Page
from mimids.errors import MimiError, UnknownPartition
from mimids.values import Device
from mimids.wire.declare import encode
from mimids.wire.ids import GroupId, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoRequest,
    ReceiveRequest,
    SendRequest,
    SendResponse,
)


@attrs.frozen(kw_only=True)
class OwnHub:
    """`Hub` over `LocalHub`, which checks policy itself; what is added are the limits for devices, and encoding."""

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
        self.cursors.note(device, self.provider, request)
        return await self.hub.receive(request, device, wait_seconds=wait_seconds or 0)

    async def page(self, device: Device, request: ReceiveRequest, *, limit_octets: int) -> tuple[GroupId, Page] | None:
        """Return a partition's messages and its group; see `Hub.page`. Never None: all that we host is here."""
        found = await self.hub.page(device, request, limit_octets=limit_octets)
        if found is None:
            raise UnknownPartition
        return found

    async def present(self, device: Device, key: PartitionKey) -> None:
        """Do nothing: the messages of our own groups are stored here."""

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
    ) -> bytes:
        """Return what a joiner needs; see `Hub.group_info`."""
        found = await self.hub.group_info(request.group_id, device, partition=partition)
        return encode(found if bundle else found.info)
