"""A recorded conversation between devices of three real providers."""

from __future__ import annotations

import time
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
LIFETIMES = {"key_packages": {"max_lifetime_days": 3700}}  # recorded KeyPackages are valid for ten years
# httpx does not finish the generator of a request's body when the connection breaks; trio warns about that.
AWAY = pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
STRANGER = "zoe"  # a user who joins at the end and uploads no KeyPackages
# When KeyPackages with short lifetimes were recorded (seconds since 1970): the providers' clocks are set to that time.
RECORDED_AT = {name: 1_796_000_000 for name in ("held-welcome-public", "held-welcome-private")}


@attrs.frozen
class Stage:
    """Three providers, and a device for each sender, by the recording's name."""

    federation: Federation
    recording: Recording
    devices: dict[str, Device]

    @property
    def alice(self) -> Device:
        return self.devices["alice"]

    def home(self, name: str) -> str:
        """Return the provider of a sender."""
        recorded = self.recording.key_packages.get(name)
        return NAMES[2] if recorded is None else recorded.provider

    def sender(self, recorded: Recorded) -> str:
        """Return the name of a message's sender; messages without one come from Alice, at the hub."""
        name: str = recorded.line.get("by") or "alice"
        return name if name in self.devices else "alice"

    async def create(self) -> None:
        """Create the group from Alice's device."""
        await self.alice.create_group(self.recording.creation())

    async def offer(self, recorded: Recorded) -> SendResponse:
        """Send a message to the hub from its sender's device, through the sender's provider."""
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
    """Provide the stage of a recording; no KeyPackages are uploaded yet."""
    recording = Recording(name)
    together = {**LIFETIMES, **(config or {})}
    async with open_federation(*NAMES, config=together, session=session) as federation, AsyncExitStack() as stack:
        if name in RECORDED_AT:
            for provider in NAMES:
                shift = RECORDED_AT[name] - time.time()
                await trio.to_thread.run_sync(federation[provider].clock.advance, shift)
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
    """Call `look` until it returns something true, and return that; fail after `seconds`."""
    with trio.fail_after(seconds):
        while True:
            found = await look()
            if found:
                return found
            await trio.sleep(0.02)
