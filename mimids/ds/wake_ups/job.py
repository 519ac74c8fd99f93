"""The job that wakes devices that sleep, with one push to each device that has news (semantics: waking-devices).

The file is a little long because subscriptions, searches for news and pushes share the state of each device.

News. Nothing is queued in the database. The job looks at the partitions that moved since its last look, finds the
devices that presented their keys and have a subscription, and checks whether each device is awake. A device that sleeps
and has news is queued for its push service. Just before the push, the rows are read again: the device may have got its
news meanwhile.

Once. When the push service has taken the push, the row says that the device was woken. The device gets no other push
before the server hears from it again, and no other push within `quiet_seconds`.

Restart. At the start the job checks all devices with a subscription, so a message that was stored before a crash still
wakes its devices. After a crash between the answer of the push service and the row, the device gets a second push. When
a woken device makes a request, it is first stored that the device was heard, and only then is the request answered. No
crash loses a push.

Several processes. A process that hears a device does not know whether another process has woken it, and stores that it
was heard a moment later. If the device was woken, the process that sends pushes then checks it for news that came
meanwhile. If a process crashes, it may not have stored which devices it heard. So after the crash, the process that
sends pushes lets news wake all devices again.

Failure. If a push service fails, it gets no pushes for a while, and its devices stay queued. If it says that a
subscription is gone, the subscription is deleted. If it refuses a push for another reason, the push is not repeated
before the server hears from the device again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import attrs
import trio

from mimids.config import PushSettings
from mimids.ds.backoff import Backoff
from mimids.ds.following.cursors import Cursors
from mimids.ds.limits.call_slots import CallSlots, CallTooSlow
from mimids.ds.notifier import DELIVERY, WAKE_UPS, Notifier, asleep_topic
from mimids.ds.ports import Clock, PushAnswer, PushServices
from mimids.ds.wake_ups.listening import Listening
from mimids.ds.wake_ups.push_queue import PushQueue
from mimids.ds.wake_ups.vapid_key import ensure_vapid_key
from mimids.errors import Malformed, NotFound, PeerUnavailable, StorageUnavailable, Unauthenticated
from mimids.ohttp.at_rest import OperatorKey
from mimids.store import processes
from mimids.store import push_subscriptions as rows
from mimids.store.engine.member import FROZEN_SECONDS
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.push_subscriptions import LookedForNews, Opened, PushSubscription
from mimids.values import Device, DeviceRow
from mimids.web_push.message import BODY_OCTETS, SALT_OCTETS, SCALAR_OCTETS, encrypt
from mimids.web_push.subscription import Subscription, is_allowed, make_subscription, origins
from mimids.web_push.vapid import VapidKey
from mimids.wire.ids import ProviderId

LOOKS_APART_SECONDS: Final = 0.1
RECHECK_SECONDS: Final = 60.0  # without a notification
ENDED_SECONDS: Final = 2.0  # between two checks for processes that have ended
PARTITIONS_AT_ONCE: Final = 256
DEVICES_AT_ONCE: Final = 64
DEVICES_RESET_AT_ONCE: Final = 500
QUICK_CALLS: Final = 32
SLOW_CALLS: Final = 16
TTL_SECONDS: Final = 28 * 86_400  # how long a push service keeps a push for a phone that is switched off
TOPIC: Final = "wake-up"  # a later push replaces an undelivered push (RFC 8030 section 5.4)
GONE: Final = frozenset({404, 410})  # RFC 8030 section 7.3
BUSY: Final = 429
FIRST_SECONDS: Final = 2.0  # before a device is tried again
CAP_SECONDS: Final = 3600.0  # the longest wait, also where a service asks for a longer one


@attrs.frozen
class WakeUpStatistics:
    """Subscriptions, devices that wait for a push, push services that fail, and pushes by their outcome."""

    subscriptions: int
    waiting: int
    failing: int
    pushed: int
    failed: int
    refused: int
    gone: int


class WakeUps:
    """The subscriptions of one provider's devices; `run` is the job that wakes them."""

    # Longer than 40 lines: one line for each part of the state of the job.
    def __init__(
        self,
        store: Store,
        clock: Clock,
        notifier: Notifier,
        push_services: PushServices | None,
        listening: Listening,
        cursors: Cursors,
        *,
        provider: ProviderId,
        settings: PushSettings,
        operator_key: OperatorKey | None,
        is_connected: Callable[[DeviceRow], bool],
        bound_hit: Callable[[str], None],
        runs_jobs: Callable[[], bool] = lambda: True,
        process: str | None = None,
    ) -> None:
        """Without `push_services` no device is woken; `is_connected` tells whether a device has a session here.

        `runs_jobs` tells whether this process is the one that wakes devices; other processes only store which devices
        were heard, and which are connected. `process` is the name of this one, None if the provider has no others.
        """
        self._store = store
        self._clock = clock
        self._notifier = notifier
        self._push_services = push_services
        self._listening = listening
        self._cursors = cursors
        self._settings = settings
        self._listed = origins(settings.endpoints)
        self._subject = settings.subject or f"https://{provider}"  # RFC 8292 section 2.1
        self._operator_key = operator_key
        self._is_connected = is_connected
        self._bound_hit = bound_hit
        self._key: VapidKey | None = None
        self._looked: LookedForNews | None = None  # None: no subscriptions
        self._candidates: set[DeviceRow] = set()  # the devices to check, each once
        self._later: set[DeviceRow] = set()  # devices that a task will check again later
        self._quiet_until: dict[DeviceRow, int] = {}  # by `Clock.running`, in milliseconds
        self._failures: dict[DeviceRow, int] = {}  # failed pushes in a row, by device
        self._backoff = Backoff(FIRST_SECONDS, CAP_SECONDS)
        self._slots = CallSlots(quick_calls=QUICK_CALLS, slow_calls=SLOW_CALLS)
        self._queue = PushQueue(clock, self._start)
        self._tasks: trio.Nursery | None = None
        self._runs_jobs = runs_jobs
        self._process = process
        self._connected: set[DeviceRow] = set()  # devices that are stored as connected here
        self._ended_processes_at = 0  # when to look for connections to processes that ended, by `Clock.running`
        self._recheck_seconds = RECHECK_SECONDS if process is None else FROZEN_SECONDS
        self._had_jobs = True
        self._pushed = self._failed = self._refused = self._gone = 0

    # --- subscriptions ----------------------------------------------------------------------------------------

    @property
    def public_key(self) -> bytes | None:
        """Return the key that devices subscribe with, an uncompressed point of P-256; None if there are no pushes."""
        return None if self._key is None else self._key.public

    async def subscribe(self, device: Device, subscription: Subscription) -> None:
        """Store a device's push subscription: the endpoint to which its wake-ups are sent.

        Raises `NotFound` without Web Push, `Malformed`, `StorageUnavailable`, and `Unauthenticated` if the device was
        removed, or got another token, since the request was admitted.
        """
        if self._key is None:
            raise NotFound("this provider sends no pushes")
        endpoint = subscription.endpoint
        if not is_allowed(endpoint, self._listed):
            raise Malformed("endpoint: a push service needs a host name and port 443, unless the operator lists it")
        url = endpoint.origin + endpoint.path
        if not await self._store.write(lambda tx: rows.put(tx, device, url, subscription.p256dh, subscription.auth)):
            raise Unauthenticated
        self._listening.watch(device.row)
        self._quiet_until.pop(device.row, None)
        self._failures.pop(device.row, None)
        self._notifier.notify(WAKE_UPS)

    async def read_subscriptions(self, changed: Collection[int] | None = None) -> None:
        """Read which of these devices (None: of all) have a subscription: another process may have changed that."""
        if self._key is None:
            return
        if changed is None:
            devices, found = self._listening.devices, await self._store.read(rows.subscribed)
        else:
            devices = [DeviceRow(device) for device in changed]
            found = await self._store.read(partial(rows.subscribed_of, devices=devices))
        subscribed = dict(found)
        for device in set(devices) - subscribed.keys():
            self._forget(device)
        for device, is_woken in subscribed.items():
            if device not in self._listening:
                self._listening.watch(device, is_woken=is_woken)
                self._candidates.add(device)
        self._notifier.notify_here(WAKE_UPS)

    async def unsubscribe(self, device: DeviceRow) -> None:
        """Delete a device's push subscription; a repeat changes nothing. Raises `StorageUnavailable`."""
        await self._store.write(lambda tx: rows.delete(tx, device))
        self._forget(device)

    def statistics(self) -> WakeUpStatistics:
        """Return the counts so far."""
        return WakeUpStatistics(
            len(self._listening),
            len(self._queue) + sum(device not in self._queue for device in self._failures),
            self._queue.failing,
            self._pushed,
            self._failed,
            self._refused,
            self._gone,
        )

    # --- the job ----------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wake devices until cancelled; report ready once the key can be used. Raises `KeyUnavailable`."""
        if self._push_services is None or not self._settings.enabled:
            task_status.started()
            await trio.sleep_forever()
        try:
            self._key = await self._store.write(lambda tx: ensure_vapid_key(tx, self._operator_key))
            for device, is_woken in await self._store.read(rows.subscribed):
                self._listening.watch(device, is_woken=is_woken)
            with self._notifier.listen(DELIVERY, WAKE_UPS) as waiter:
                async with trio.open_nursery() as self._tasks:
                    task_status.started()
                    while True:
                        with suppress(StorageUnavailable):  # the job looks again a minute later
                            await self._look()
                        await trio.sleep(LOOKS_APART_SECONDS)
                        await waiter.wait_at_most(self._clock, self._recheck_seconds)
        finally:
            if self._push_services is not None:
                self._push_services.close()
            with trio.move_on_after(1, shield=True), suppress(StorageUnavailable):
                await self._store_contacts()
                if self._process is not None:
                    await self._store.write(partial(processes.forget_connected, process=self._process))
                    await self._store.write(partial(rows.end_hearing, process=self._process))

    async def _look(self) -> None:
        """Find the devices that have news, and queue those that sleep."""
        if self._had_jobs != self._runs_jobs():
            self._had_jobs, self._looked = self._runs_jobs(), None  # another process may have left devices asleep
            self._ended_processes_at = 0
        ended = self._listening.take_ended()
        self._candidates |= ended
        await self._store_contacts()
        if self._process is not None:
            await self._tell_others(self._process, ended | self._listening.take_connected())
        if not self._listening:
            self._looked = None
            self._listening.forget_positions()
            return
        if self._looked is None:
            start = await self._store.read(rows.position)
            await self._open_positions(await self._store.read(rows.opened))
            self._candidates.update(self._listening.devices)
            self._looked = LookedForNews.up_to(start)
        complete = False
        while not complete:
            complete = await self._look_from(self._looked)
        while self._candidates:
            some = [self._candidates.pop() for _ in range(min(DEVICES_AT_ONCE, len(self._candidates)))]
            try:
                await self._queue_those_asleep(some)
            except StorageUnavailable:
                self._candidates.update(some)
                raise

    async def _look_from(self, looked: LookedForNews) -> bool:
        """Find devices that have news since the last look; return whether all partitions that moved are checked."""
        find = partial(rows.devices_with_news, looked=looked, limit=PARTITIONS_AT_ONCE)
        found, opened, following, complete = await self._store.read(find)
        self._candidates |= found
        await self._open_positions(opened)
        self._looked = following
        self._listening.note_position(following.position)
        return complete

    async def _open_positions(self, opened: Sequence[Opened]) -> None:
        """Store the positions that devices presented before the partition had a row."""
        if opened:
            now = self._clock.now()
            await self._store.write(lambda tx: rows.open_positions(tx, opened, now))
            self._candidates.update(each.device for each in opened)

    async def _store_contacts(self) -> None:
        """Store presented positions, and for each device the position before which it knows all news."""
        asleep = [device for device in self._cursors.watched() if not self._is_connected(device)]
        await self._cursors.save_of(asleep)
        if not self._runs_jobs():  # the process that wakes devices may have looked before this was stored
            self._notifier.notify(*map(asleep_topic, asleep))
        await self._store_heard()

    async def heard(self, device: DeviceRow) -> None:
        """Record that a device was heard, by a request.

        If the device was woken, the server first stores that it was heard, and then answers the request. If the answer
        came first, the device would not be woken again after a crash in between.
        """
        if self._listening.heard(device):
            with suppress(StorageUnavailable):  # the job stores it later
                await self._store_heard()

    async def _store_heard(self) -> None:
        heard = self._listening.take_contacts()
        if heard:
            try:
                woken = await self._store.write(lambda tx: rows.note_heard(tx, heard))
            except BaseException:
                self._listening.put_back(heard)
                raise
            if not self._runs_jobs():  # the process that wakes devices may have left them out when it looked for news
                self._notifier.notify(*map(asleep_topic, woken))

    async def _tell_others(self, process: str, changed: set[DeviceRow]) -> None:
        """Store which devices are connected here, for the process that wakes devices.

        That process also checks the devices of processes that have ended.
        """
        begun = {device for device in changed if self._is_connected(device)} - self._connected
        ended = {device for device in changed if not self._is_connected(device)} & self._connected
        if begun or ended:
            try:
                await self._store.write(partial(processes.note_connected, process=process, begun=begun, ended=ended))
            except StorageUnavailable:
                for device in changed:
                    self._listening.connected(device)
                raise
            self._connected = (self._connected | begun) - ended
            self._notifier.notify(*map(asleep_topic, ended))
        if self._ended_processes_at <= self._clock.running():
            self._ended_processes_at = self._clock.running() + int(ENDED_SECONDS * 1000)
            if not await self._store.read(partial(rows.is_hearing, process=process)):  # deleted after a silence
                await self._store.write(partial(rows.begin_hearing, process=process))
            if self._runs_jobs():
                await self._wake_again_after_crash()

    async def _wake_again_after_crash(self) -> None:
        """If a process has crashed, let news wake all devices again: no row says which devices it had heard."""
        crashed = await self._store.read(rows.crashed)
        last: int | None = 0
        while crashed and last is not None:
            last = await self._store.write(partial(rows.forget_woken, after=last, limit=DEVICES_RESET_AT_ONCE))
        if crashed:
            await self._store.write(processes.forget_connected_to_ended)
            self._candidates.update(self._listening.devices)
        for process in crashed:
            await self._store.write(partial(rows.end_hearing, process=process))

    def note_asleep(self, device: DeviceRow) -> None:
        """Check a device whose connection to another process has ended."""
        self._candidates.add(device)
        self._notifier.notify_here(WAKE_UPS)

    async def _queue_those_asleep(self, devices: Iterable[DeviceRow]) -> None:
        if not self._runs_jobs():
            return
        asleep = [device for device in devices if device not in self._queue and self._is_asleep(device)]
        found = await self._store.read(lambda tx: [self._due(tx, device) for device in asleep])
        for device, due in zip(asleep, found, strict=True):
            if due is None:
                self._failures.pop(device, None)
            else:
                self._queue.add(device, make_subscription(due.endpoint, due.p256dh, due.auth).endpoint.origin)

    def _is_asleep(self, device: DeviceRow) -> bool:
        """Tell whether a device may be woken now. If it may be woken later without more news, check it again then."""
        if device not in self._listening or self._is_connected(device):  # checked again when its connection ends
            self._failures.pop(device, None)
            return False
        awake = self._listening.seconds_awake(device)
        quiet = (self._quiet_until.get(device, 0) - self._clock.running()) / 1000
        if awake <= 0 and quiet <= 0:
            self._quiet_until.pop(device, None)
            return True
        if self._tasks is not None and device not in self._later:
            self._later.add(device)
            self._tasks.start_soon(self._look_later, device, awake, quiet)
        return False

    async def _look_later(self, device: DeviceRow, awake: float, quiet: float) -> None:
        if awake > 0:
            await trio.sleep(awake)  # then the quiet time is checked
        else:
            await self._clock.sleep(quiet)
        self._later.discard(device)
        self._candidates.add(device)
        self._notifier.notify(WAKE_UPS)

    def _due(self, tx: Tx, device: DeviceRow) -> PushSubscription | None:
        """Return the subscription of a device if it has news."""
        found = rows.wakeable(tx, device)
        if found is None or (self._process and processes.is_connected_elsewhere(tx, device, self._process)):
            return None
        if rows.has_welcome(tx, device, found.known.next_welcome):
            return found
        sent = self._listening.last_sent(device)
        moved = rows.moved_since(tx, device, found.known.next_stamp, limit=len(sent) + 1)
        return found if any(each.next_counter > sent.get(each.masked_key, -1) + 1 for each in moved) else None

    # --- pushes -----------------------------------------------------------------------------------------------

    def _start(self, origin: str) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(self._serve, origin)

    async def _serve(self, origin: str) -> None:
        """Wake devices of one push service, until no device waits for the service."""
        await self._queue.wait(origin)
        while (device := self._queue.take(origin)) is not None:
            await self._wake(device, origin)
            await self._queue.wait(origin)

    async def _wake(self, device: DeviceRow, origin: str) -> None:
        try:
            await self._store_contacts()
            due = await self._store.read(lambda tx: self._due(tx, device)) if self._is_asleep(device) else None
            if due is None:
                self._failures.pop(device, None)
                self._queue.done(device, origin)
                return
            subscription = make_subscription(due.endpoint, due.p256dh, due.auth)
            if subscription.endpoint.origin != origin:  # the device has subscribed again
                self._queue.done(device, origin)
                self._queue.add(device, subscription.endpoint.origin)
                return
            self._listening.woken(device)  # it may be heard before the push service has answered
            await self._settle(due, origin, await self._push(subscription))
        except CallTooSlow:
            self._bound_hit("slow-call-cancelled")
            self._wait_alone(device, origin, 0)
        except StorageUnavailable:
            self._wait_alone(device, origin, 0)

    def _wait_alone(self, device: DeviceRow, origin: str, retry_after: int) -> None:
        """Try a device again after a back-off of its own, at least after `retry_after` seconds, up to CAP_SECONDS."""
        self._failures[device] = self._failures.get(device, 0) + 1
        seconds = self._backoff.seconds(self._failures[device], retry_after)
        self._quiet_until[device] = self._clock.running() + int(seconds * 1000)
        self._queue.done(device, origin)
        self._candidates.add(device)
        self._notifier.notify(WAKE_UPS)

    async def _push(self, subscription: Subscription) -> PushAnswer | None:
        """Send a push; return None if there was no answer. Raises `CallTooSlow`."""
        if self._push_services is None or self._key is None:
            return None
        endpoint = subscription.endpoint
        now = self._clock.now() // 1000
        body = encrypt(subscription, secrets.token_bytes(SALT_OCTETS), secrets.token_bytes(SCALAR_OCTETS))
        headers = [
            ("content-encoding", "aes128gcm"),
            ("ttl", str(TTL_SECONDS)),
            ("urgency", "high"),  # RFC 8030 section 5.3: also while the battery is low
            ("topic", TOPIC),
            ("authorization", self._key.authorization(endpoint.origin, self._subject, now)),
        ]
        try:
            async with self._slots.slot(endpoint.origin, BODY_OCTETS) as slot:
                return await slot.call(partial(self._push_services.push, endpoint, headers, body))
        except PeerUnavailable:
            return None

    async def _settle(self, due: PushSubscription, origin: str, answer: PushAnswer | None) -> None:
        """Record the answer of a push service."""
        device = due.device
        if answer is None or answer.status >= 500 or answer.status == BUSY:
            self._failed += 1
            self._queue.failed(device, origin)
            self._wait_alone(device, origin, 0 if answer is None else answer.retry_after)
            return
        self._queue.answered(origin)
        self._failures.pop(device, None)
        if answer.status in GONE:
            self._gone += 1
            if await self._store.write(lambda tx: rows.delete(tx, device, due.endpoint)):
                self._forget(device)
        else:  # a push that is refused is not sent again either, before the device is heard
            accepted = 200 <= answer.status < 300
            self._pushed += accepted
            self._refused += not accepted
            if accepted:
                self._quiet_until[device] = self._clock.running() + self._settings.quiet_seconds * 1000
            if not await self._store.write(lambda tx: rows.note_woken(tx, due)):
                self._candidates.add(device)  # it was heard, or subscribed again, while the push was in flight
                self._notifier.notify(WAKE_UPS)
        self._queue.done(device, origin)

    def _forget(self, device: DeviceRow) -> None:
        self._listening.forget(device)
        self._quiet_until.pop(device, None)
        self._failures.pop(device, None)
        self._candidates.discard(device)
