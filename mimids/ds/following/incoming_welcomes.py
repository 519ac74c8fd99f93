"""Welcomes for our own devices (semantics: welcomes-and-leaving).

A hub first asks which KeyPackage references we accept, then sends the Welcome. The Welcome is put into the inbox of
each device that a reference was accepted for, and stays there until that device acknowledges it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from mimids.ds.groups.restrictions import source_for
from mimids.ds.notifier import WAKE_UPS, Notifier, inbox_topic
from mimids.ds.ports import Clock
from mimids.errors import Malformed, WelcomeNotExpected
from mimids.mls.framing import MLSMessage
from mimids.mls.welcome import Welcome
from mimids.store import accounts, key_packages, providers, welcomes
from mimids.store.bans import EVERY_GROUP
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.welcomes import InInbox
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.ids import KeyPackageRef, ProviderId
from mimids.wire.messages import WelcomeInitRequest, WelcomeInitResponse

ACKNOWLEDGED_PAGE: Final = 500  # Welcomes in one transaction


class IncomingWelcomes:
    """Accepts Welcomes from hubs, our own among them, and hands them to devices."""

    def __init__(self, store: Store, clock: Clock, notifier: Notifier, *, provider: ProviderId) -> None:
        self._store = store
        self._clock = clock
        self._notifier = notifier
        self._provider = provider

    async def init(self, hub: ProviderId, request: WelcomeInitRequest) -> WelcomeInitResponse:
        """Return the references whose KeyPackages were handed out here, and expect a Welcome for each.

        A KeyPackage is used in only one group (RFC 9420 section 10). So its reference is accepted only from the first
        hub that names it: another provider in the group may know the reference, but cannot use it. A last resort
        KeyPackage is used many times, so its reference is accepted from every hub.
        """

        def accept(tx: Tx) -> tuple[KeyPackageRef, ...]:
            number = providers.ensure_provider(tx, hub)
            accepted = []
            for ref in request.key_package_refs:
                device = key_packages.device_of_ref(tx, ref)
                if device is None or self._is_banned(tx, number, hub, device):
                    continue
                is_last_resort = key_packages.is_last_resort(tx, ref)
                if is_last_resort or welcomes.first_hub(tx, ref) in (None, number):
                    welcomes.expect(tx, number, ref, device, self._clock.now(), another_group=is_last_resort)
                    accepted.append(ref)
            return tuple(accepted)

        return WelcomeInitResponse(await self._store.write(accept))

    async def store(self, hub: ProviderId, message: MLSMessage) -> None:
        """Put a Welcome into the inbox of each device for which it was accepted; a repeat changes nothing.

        Raises `Malformed` if the octets are not a Welcome, and `WelcomeNotExpected` if no reference was accepted for
        this hub.
        """
        welcome = message.message
        if not isinstance(welcome, Welcome):
            raise Malformed("not a Welcome")
        stored = partial(self._store_in_inboxes, hub, message.encoded, welcome.key_package_refs)
        for device in await self._store.write_or_refuse(stored):
            self._notifier.notify(inbox_topic(device), WAKE_UPS)

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
            key_packages.note_welcome(tx, ref)
        welcomes.drop_served(tx, [row])  # if the devices had the Welcome before, its body is not needed
        return set(devices.values())

    def _is_banned(self, tx: Tx, number: int, hub: ProviderId, device: DeviceRow) -> bool:
        """Tell whether a hub banned the user of a device, so that no Welcome of that hub is accepted for the device.

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
        """Remove Welcomes from a device's inbox, a page in each transaction; return how many were removed."""
        distinct, now, acknowledged = list(dict.fromkeys(rows)), self._clock.now(), 0
        for start in range(0, len(distinct), ACKNOWLEDGED_PAGE):
            page = distinct[start : start + ACKNOWLEDGED_PAGE]
            acknowledged += await self._store.write(partial(_acknowledge, device, page, now))
        return acknowledged


def _acknowledge(device: DeviceRow, rows: Sequence[int], now: Milliseconds, tx: Tx) -> int:
    return welcomes.acknowledge(tx, device, rows, now)
