"""The people of a recorded conversation as devices of three real providers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import attrs
import pytest
import trio

from mimids.client import Device
from mimids.testing import Federation, Session, open_federation
from mimids.wire.ids import CipherSuite, ProviderId
from mimids.wire.messages import ExternalJoinRequest, ExternalProposalRequest, SendResponse
from tests.support.recordings import Recorded, Recording

T = TypeVar("T")

NAMES = ("a.example", "b.example", "c.example")
HUB = ProviderId(NAMES[0])
SUITE = CipherSuite(1)
LIFETIMES = {"key_packages": {"max_lifetime_days": 3700}}  # the recorded ones run ten years
# httpx leaves the generator of a request's body unfinished when the connection breaks meanwhile; trio tells.
AWAY = pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
STRANGER = "zoe"  # who joins at the end, and uploads nothing


@attrs.frozen
class Stage:
    """Three providers, and the device of everybody who says something, by the recording's names for them."""

    federation: Federation
    recording: Recording
    devices: dict[str, Device]

    @property
    def alice(self) -> Device:
        return self.devices["alice"]

    def home(self, name: str) -> str:
        """Return the provider of a person."""
        recorded = self.recording.key_packages.get(name)
        return NAMES[2] if recorded is None else recorded.provider

    def sender(self, recorded: Recorded) -> str:
        """Return who sends a message: what was made up afterwards comes from the hub's own device."""
        name: str = recorded.line.get("by") or "alice"
        return name if name in self.devices else "alice"

    async def create(self) -> None:
        """Let Alice create the group."""
        await self.alice.create_group(self.recording.creation())

    async def offer(self, recorded: Recorded) -> SendResponse:
        """Let its sender's device send a message to the hub through its own provider."""
        device, request = self.devices[self.sender(recorded)], recorded.request
        if isinstance(request, ExternalJoinRequest):
            return await device.join(HUB, request)
        if isinstance(request, ExternalProposalRequest):
            return await device.propose(HUB, request)
        return await device.send(HUB, request)


@asynccontextmanager
async def staged(
    name: str, session: Session, *, config: Mapping[str, Mapping[str, Any]] | None = None
) -> AsyncIterator[Stage]:
    """Give the stage of a recording, with nothing uploaded yet."""
    recording = Recording(name)
    together = {**LIFETIMES, **(config or {})}
    async with open_federation(*NAMES, config=together, session=session) as federation, AsyncExitStack() as stack:
        opened: dict[tuple[str, str, str], Device] = {}
        devices: dict[str, Device] = {}
        for person, recorded in recording.key_packages.items():
            identity = (recorded.provider, recorded.user, recorded.device)
            if identity not in opened:
                account = federation[recorded.provider].add_device(recorded.user, recorded.device)
                opened[identity] = await stack.enter_async_context(account.client())
            devices[person] = opened[identity]
        stranger = federation[NAMES[2]].add_device(STRANGER)
        devices[STRANGER] = await stack.enter_async_context(stranger.client())
        yield Stage(federation, recording, devices)


async def eventually(look: Callable[[], Awaitable[T]], seconds: float = 10) -> T:
    """Return what `look` finds once it is something; fail if it is nothing after `seconds`."""
    with trio.fail_after(seconds):
        while True:
            found = await look()
            if found:
                return found
            await trio.sleep(0.02)
