"""Which subscribed devices are awake, and the position before which each knows all news; kept in memory only.

A device is awake while it has a stream or a waiting request, and for a moment after a request. A device that is awake
fetches news by itself. When a device was last heard (by a request or by octets on its stream), it knew everything that
was stored at that time. Later messages and Welcomes wake it. If the device of a stream is gone, the server notices this
only a minute later. So what counts is when the device last sent something, not when its connection ended.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Final

import attrs
import trio

from mimids.store.push_subscriptions import NewsPosition
from mimids.values import DeviceRow
from mimids.wire.ids import Counter, MaskedPartitionKey

AWAKE_SECONDS: Final = 0.5  # after a request: another request may follow
AWAKE_AFTER_WAIT_SECONDS: Final = 5.0  # after a waiting request, which is usually made again at once
POSITIONS: Final = 4096  # remembered
POSITIONS_APART_SECONDS: Final = 0.05  # so they cover more than the time for which a dead stream stays open
SENT_PARTITIONS: Final = 64  # remembered for each device


@attrs.define
class _Watched:
    """What is known of a subscribed device."""

    is_woken: bool
    awake_until: float = 0.0  # trio's time
    contact: NewsPosition | None = None  # the position up to which the device knows all news, if it is not stored yet
    sent: dict[MaskedPartitionKey, Counter] = attrs.field(factory=dict)  # the place of the device's own last message


class Listening:
    """The devices with a subscription."""

    def __init__(self, on_heard: Callable[[], None] = lambda: None, *, tells_others: bool = False) -> None:
        """`on_heard` is called when a woken device is heard, and when a device may sleep from now on.

        With `tells_others`, the caller tells other processes which devices are awake here (`take_connected`).
        """
        self._on_heard = on_heard
        self._tells_others = tells_others
        self._connected: set[DeviceRow] = set()  # devices that may have connected since `take_connected`
        self._watched: dict[DeviceRow, _Watched] = {}
        self._contacts: set[DeviceRow] = set()  # devices with a contact that is not stored
        self._ended: set[DeviceRow] = set()  # devices whose connection ended since `take_ended`
        self._times: list[float] = []
        self._positions: list[NewsPosition] = []

    def __len__(self) -> int:
        return len(self._watched)

    def __contains__(self, device: object) -> bool:
        return device in self._watched

    @property
    def devices(self) -> list[DeviceRow]:
        """Return all devices with a subscription."""
        return list(self._watched)

    # --- what the others tell ---------------------------------------------------------------------------------

    def watch(self, device: DeviceRow, *, is_woken: bool = False) -> None:
        """Start to watch a device that has subscribed, even if it had a subscription before."""
        self._watched[device] = _Watched(is_woken)
        self.connected(device)

    def forget(self, device: DeviceRow) -> None:
        """Stop watching a device that has no subscription any more."""
        self._watched.pop(device, None)
        self._contacts.discard(device)
        self._connected.discard(device)
        self._ended.discard(device)

    def heard(self, device: DeviceRow) -> bool:
        """Record that a device was heard now, by a request; return whether it was woken since it was heard last."""
        watched = self._watched.get(device)
        if watched is None:
            return False
        now = trio.current_time()
        watched.awake_until = max(watched.awake_until, now + AWAKE_SECONDS)
        self._note(device, watched, now)
        return watched.is_woken

    def connected(self, device: DeviceRow) -> None:
        """Record the start of a stream or a waiting request."""
        if self._tells_others and device in self._watched:
            self._connected.add(device)
            self._on_heard()

    def ended(self, device: DeviceRow, heard_at: float | None) -> None:
        """Record the end of a stream that was last heard at `heard_at`, or of a waiting request (None)."""
        watched = self._watched.get(device)
        if watched is None:
            return
        if heard_at is None:
            watched.awake_until = trio.current_time() + AWAKE_AFTER_WAIT_SECONDS
        else:
            self._note(device, watched, heard_at)
        self._ended.add(device)
        self._on_heard()

    def sent(self, device: DeviceRow, partition: MaskedPartitionKey, counter: Counter) -> None:
        """Record the place of a device's own message: this message and those before it do not wake the device."""
        watched = self._watched.get(device)
        if watched is not None:
            watched.sent.pop(partition, None)
            watched.sent[partition] = counter
            if len(watched.sent) > SENT_PARTITIONS:
                del watched.sent[next(iter(watched.sent))]

    # --- what the job asks ------------------------------------------------------------------------------------

    def note_position(self, position: NewsPosition) -> None:
        """Record that everything before a position is stored by now."""
        now = trio.current_time()
        if self._times and now - self._times[-1] < POSITIONS_APART_SECONDS and len(self._times) > 1:
            self._times.pop()
            self._positions.pop()
        self._times.append(now)
        self._positions.append(position)
        del self._times[:-POSITIONS], self._positions[:-POSITIONS]

    def forget_positions(self) -> None:
        """Forget the positions, while the job does not look for news."""
        self._times.clear()
        self._positions.clear()

    def take_contacts(self) -> list[tuple[DeviceRow, NewsPosition]]:
        """Return the contacts that have to be stored, and count them as stored."""
        taken = []
        for device in self._contacts:
            watched = self._watched[device]
            if watched.contact is not None:
                taken.append((device, watched.contact))
                watched.contact, watched.is_woken = None, False
        self._contacts.clear()
        return taken

    def put_back(self, contacts: Iterable[tuple[DeviceRow, NewsPosition]]) -> None:
        """Count contacts as not stored again, because a write of them failed."""
        for device, position in contacts:
            watched = self._watched.get(device)
            if watched is not None:
                watched.contact = position if watched.contact is None else max(watched.contact, position)
                self._contacts.add(device)

    def take_connected(self) -> set[DeviceRow]:
        """Return the devices that may have connected since the last call."""
        connected, self._connected = self._connected, set()
        return connected

    def take_ended(self) -> set[DeviceRow]:
        """Return the devices whose connection ended since the last call."""
        ended, self._ended = self._ended, set()
        return ended

    def seconds_awake(self, device: DeviceRow) -> float:
        """Return for how long a device counts as awake without a connection, 0 if it does not."""
        watched = self._watched.get(device)
        return 0.0 if watched is None else max(0.0, watched.awake_until - trio.current_time())

    def last_sent(self, device: DeviceRow) -> dict[MaskedPartitionKey, Counter]:
        """Return, for each partition, where the device's own last message is."""
        watched = self._watched.get(device)
        return {} if watched is None else watched.sent

    def woken(self, device: DeviceRow) -> None:
        """Record that a device was woken."""
        watched = self._watched.get(device)
        if watched is not None:
            watched.is_woken = True

    def _note(self, device: DeviceRow, watched: _Watched, at: float) -> None:
        index = bisect_right(self._times, at)
        # Before the first position nothing is known: the stored position stays, and the device may be woken again.
        position = self._positions[index - 1] if index else NewsPosition(0, 0)
        watched.contact = position if watched.contact is None else max(watched.contact, position)
        self._contacts.add(device)
        if watched.is_woken:
            self._on_heard()
