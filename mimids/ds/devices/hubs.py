"""The hub of a group as our own devices use it (http: devices).

A group's hub is this provider (`OwnHub`) or another one (`RemoteHub`). `HubRouter` returns the `Hub` of a provider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import attrs

from mimids.ds.groups.pages import Page
from mimids.errors import MimiError
from mimids.values import Device
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


@attrs.frozen
class EncodedGroupInfo:
    """A GroupInfoResponse or GroupInfoBundle, and whether its group is linear (semantics: linear-groups)."""

    octets: bytes
    linear: bool


class Hub(Protocol):
    """What a device may ask of a hub; answers are encoded. Each method raises the hub's refusal."""

    @property
    def provider(self) -> ProviderId:
        """The provider that is the hub."""
        ...

    @property
    def needs_keys(self) -> bool:
        """Whether a device's keys must be presented to the hub before its messages are stored here."""
        ...

    async def send(self, device: Device, request: SendRequest) -> bytes:
        """Sequence a message; return a SendResponse."""
        ...

    async def send_batch(self, device: Device, requests: Sequence[SendRequest]) -> list[SendResponse | bytes]:
        """Sequence messages in order; return for each its answer, or the JSON of its problem."""
        ...

    async def receive(self, device: Device, request: ReceiveRequest, *, wait_seconds: int | None = None) -> bytes:
        """Return a ReceiveResponse without hints; if there is no new message, wait for one, at most `wait_seconds`.

        A device gets no hints: it presents the key of each epoch that it wants.
        """
        ...

    async def page(self, device: Device, request: ReceiveRequest, *, limit_octets: int) -> tuple[GroupId, Page] | None:
        """Return the messages of a partition that are stored here, and its group.

        Return None if the hub has yet to push the partition. Raise `UnknownPartition` if the hub does not have it.
        """
        ...

    async def positions(self, device: Device, keys: Sequence[PartitionKey]) -> tuple[Position, ...]:
        """Return how far each of these partitions of the hub is stored here, without a call to the hub."""
        ...

    async def present(self, device: Device, key: PartitionKey, counter: Counter = FIRST_COUNTER) -> int:
        """Present a partition's key to the hub, so that the partition's messages are stored here.

        Return how many messages from `counter` on the hub has still to push. Raise `MessagesExpired` if the hub no
        longer has the message at `counter`, and `CounterAhead` if `counter` is beyond the end of the hub's partition.
        """
        ...

    async def join(self, device: Device, request: ExternalJoinRequest) -> bytes:
        """Sequence an external commit; return a SendResponse."""
        ...

    async def propose(self, device: Device, request: ExternalProposalRequest) -> bytes:
        """Sequence an external proposal; return a SendResponse."""
        ...

    async def group_info(
        self,
        device: Device,
        request: GroupInfoRequest,
        *,
        partition: MaskedPartitionKey | None = None,
        bundle: bool = False,
    ) -> EncodedGroupInfo:
        """Return a GroupInfoResponse, or with `bundle` a GroupInfoBundle."""
        ...

    async def welcome_status(self, device: Device, request: WelcomeStatusRequest) -> bytes:
        """Return a WelcomeStatusResponse: what became of the Welcomes that lead to a partition."""
        ...


def encode_outcomes(
    outcomes: Iterable[SendResponse | MimiError], problem: Callable[[MimiError], bytes]
) -> list[SendResponse | bytes]:
    """Return for each message its answer, or the JSON of its problem."""
    return [problem(outcome) if isinstance(outcome, MimiError) else outcome for outcome in outcomes]


def insert_refusals(
    refusals: Iterable[MimiError | None],
    answers: Iterable[SendResponse | bytes],
    problem: Callable[[MimiError], bytes],
) -> list[SendResponse | bytes]:
    """Return `refusals` with each refusal encoded as a problem, and the next item of `answers` for each None."""
    remaining = iter(answers)
    return [next(remaining) if refusal is None else problem(refusal) for refusal in refusals]
