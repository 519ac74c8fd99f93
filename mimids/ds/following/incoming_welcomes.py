"""Welcomes for our own devices (semantics: welcomes-and-leaving).

A hub first asks which KeyPackage references we accept, then sends the Welcome. The Welcome is put into the inbox of
each device that a reference was accepted for, and stays there until that device acknowledges it.
"""

from __future__ import annotations

from functools import partial

from mimids.ds.groups.restrictions import source_for
from mimids.ds.notifier import Notifier, inbox_topic
from mimids.ds.ports import Clock
from mimids.errors import Malformed, WelcomeNotExpected
from mimids.mls.framing import MLSMessage
from mimids.mls.welcome import Welcome
from mimids.store import accounts, key_packages, providers, welcomes
from mimids.store.bans import EVERY_GROUP
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.welcomes import InInbox
from mimids.values import DeviceRow
from mimids.wire.ids import KeyPackageRef, ProviderId
from mimids.wire.messages import WelcomeInitRequest, WelcomeInitResponse


class IncomingWelcomes:
    """Accepts Welcomes from hubs, our own among them, and hands them to devices."""

    def __init__(self, store: Store, clock: Clock, notifier: Notifier, *, provider: ProviderId) -> None:
        self._store = store
        self._clock = clock
        self._notifier = notifier
        self._provider = provider

    async def init(self, hub: ProviderId, request: WelcomeInitRequest) -> WelcomeInitResponse:
        """Return which references are of KeyPackages that were handed out here, and expect their Welcome."""

        def accept(tx: Tx) -> tuple[KeyPackageRef, ...]:
            number = providers.ensure_provider(tx, hub)
            accepted = []
            for ref in request.key_package_refs:
                device = key_packages.device_of_ref(tx, ref)
                if device is not None and not self._is_banned(tx, number, hub, device):
                    welcomes.expect(tx, number, ref, device, self._clock.now())
                    accepted.append(ref)
            return tuple(accepted)

        return WelcomeInitResponse(await self._store.write(accept))

    async def store(self, hub: ProviderId, message: MLSMessage) -> None:
        """Put a Welcome into the inbox of each device it was accepted for; a repeat changes nothing.

        Raises `Malformed` if it is no Welcome, and `WelcomeNotExpected` if no reference was accepted for this hub.
        """
        welcome = message.message
        if not isinstance(welcome, Welcome):
            raise Malformed("not a Welcome")
        stored = partial(self._store_in_inboxes, hub, message.encoded, welcome.key_package_refs)
        for device in await self._store.write_or_refuse(stored):
            self._notifier.notify(inbox_topic(device))

    def _store_in_inboxes(
        self, hub: ProviderId, body: bytes, refs: tuple[KeyPackageRef, ...], tx: Tx
    ) -> set[DeviceRow] | WelcomeNotExpected:
        number = providers.ensure_provider(tx, hub)
        now = self._clock.now()
        devices = {}
        for ref in refs:
            device = welcomes.expected_device(tx, number, ref)
            if device is not None and not self._is_banned(tx, number, hub, device):
                devices[ref] = device
        if not devices:
            return WelcomeNotExpected()
        row = welcomes.keep_welcome(tx, body, now)
        for ref, device in devices.items():
            welcomes.put_in_inbox(tx, device, row, number, now)
            welcomes.note_arrival(tx, number, ref, now)
            key_packages.note_welcome(tx, ref)
        return set(devices.values())

    def _is_banned(self, tx: Tx, number: int, hub: ProviderId, device: DeviceRow) -> bool:
        """Tell whether a hub banned the user of a device: then no Welcome of that hub is accepted for the device.

        (semantics: terms-and-reports)
        """
        user = accounts.user_of_device(tx, device)
        if user is None:
            return False
        source = source_for(hub, us=self._provider)
        return bool(source.terms_of(tx, number, {user}, EVERY_GROUP, self._clock.now()).banned)

    async def inbox(self, device: DeviceRow, *, after: int = 0) -> list[InInbox]:
        """Return Welcomes that a device has not acknowledged, oldest first, at most 100."""
        return await self._store.read(lambda tx: welcomes.inbox_of(tx, device, after=after))

    async def acknowledge(self, device: DeviceRow, *rows: int) -> int:
        """Remove Welcomes from a device's inbox; return how many were in it."""
        now = self._clock.now()
        return await self._store.write(lambda tx: sum(welcomes.acknowledge(tx, device, row, now) for row in rows))
