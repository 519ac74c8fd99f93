"""Commits in linear groups: apply the commit that came first, and try again (semantics: linear-groups)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final

import attrs

from mimids.client.connection import CommitSuperseded
from mimids.client.device import Device
from mimids.wire.ids import GroupId, ProviderId
from mimids.wire.messages import ExternalJoinRequest, GroupInfoBundle, Message, SendRequest, SendResponse

TRIES: Final = 8


@attrs.frozen
class CommitAttempt:
    """A commit of the member's newest epoch.

    `counter` is the counter of the first message in that epoch that the member has not processed.
    """

    request: SendRequest
    counter: int


async def commit_with_retry(
    device: Device,
    hub: ProviderId,
    make: Callable[[], Awaitable[CommitAttempt]],
    apply: Callable[[int, tuple[Message, ...]], Awaitable[None]],
    *,
    tries: int = TRIES,
) -> SendResponse:
    """Send the commit that `make` makes; if another commit came first, have `apply` process it, then try again.

    `apply` gets the messages from the attempt's counter on, up to the commit that came first, and the counter of the
    first of these messages. It has to drop the member's own pending commit and to process the messages, so that `make`
    makes the next commit in the new epoch. It may skip messages that the member got in another way meanwhile.

    Raises `CommitSuperseded` after `tries` attempts, or if the commit that came first cannot be received.
    """
    for left in reversed(range(tries)):
        attempt = await make()
        try:
            return await device.send(hub, attempt.request)
        except CommitSuperseded as superseded:
            if not left:
                raise
            if attempt.counter <= superseded.counter:
                await apply(attempt.counter, await _up_to_winner(device, hub, attempt, superseded))
    raise ValueError("tries must be at least 1")


async def join_with_retry(
    device: Device,
    hub: ProviderId,
    group_id: GroupId,
    make: Callable[[GroupInfoBundle], Awaitable[ExternalJoinRequest]],
    *,
    tries: int = TRIES,
) -> SendResponse:
    """Send the external commit that `make` makes; if another commit came first, make a new one from the new GroupInfo.

    Raises `CommitSuperseded` after `tries` attempts.
    """
    for left in reversed(range(tries)):
        request = await make(await device.group_info(hub, group_id))
        try:
            return await device.join(hub, request)
        except CommitSuperseded:
            if not left:
                raise
    raise ValueError("tries must be at least 1")


async def _up_to_winner(
    device: Device, hub: ProviderId, attempt: CommitAttempt, superseded: CommitSuperseded
) -> tuple[Message, ...]:
    """Return the messages from the attempt's counter on, up to the commit that came first."""
    found: list[Message] = []
    async with aclosing(device.receive_all(hub, attempt.request.partition_key, attempt.counter)) as messages:
        async for message in messages:
            found.append(message)
            if message.commit is not None and message.commit.next_partition_key == superseded.next_masked_key:
                return tuple(found)
    raise superseded
