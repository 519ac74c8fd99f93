"""Web Push subscriptions of our devices, and which devices have news (semantics: waking-devices).

Nothing is queued, and sequencing a message writes nothing here: the devices with news are found by a query over the
partitions that moved (`store.moved`), the positions that devices presented (`store.cursors`), and the inboxes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from mimids.store import moved
from mimids.store.engine.transaction import Tx
from mimids.store.moved import Looked
from mimids.values import Device, DeviceRow, Milliseconds, hour_of
from mimids.wire.ids import Counter, MaskedPartitionKey

WELCOMES_AT_ONCE: Final = 1000
HEARD_AT_ONCE: Final = 500  # devices in one statement
EARLY_POSITIONS: Final = 768  # of one device: three for each key, while the group's hash is not known
_CONTACT_BITS: Final = 29  # the same number hardly comes again while a push is in flight


@attrs.frozen(order=True)
class NewsPosition:
    """A point in time, given by the first stamp and the first inbox row that came later."""

    next_stamp: int
    next_welcome: int


@attrs.frozen
class LookedForNews:
    """How far a reader has looked for news."""

    stamps: Looked
    next_welcome: int

    @classmethod
    def up_to(cls, position: NewsPosition) -> LookedForNews:
        """Return the position of a reader that has checked everything before a point in time."""
        return cls(Looked.up_to(position.next_stamp), position.next_welcome)

    @property
    def position(self) -> NewsPosition:
        """Return the point in time before which everything was checked."""
        return NewsPosition(self.stamps.settled, self.next_welcome)


@attrs.frozen
class PushSubscription:
    """A stored subscription; `known` is the position up to which the device knew all news when it was last heard.

    `last_contact` is a number that changes when the device is heard or subscribes.
    """

    device: DeviceRow
    endpoint: str = attrs.field(repr=False)
    p256dh: bytes = attrs.field(repr=False)
    auth: bytes = attrs.field(repr=False)
    known: NewsPosition
    last_contact: int


@attrs.frozen
class Moved:
    """A partition whose key a device presented, and that got a new stamp since the device was last heard from."""

    masked_key: MaskedPartitionKey
    next_counter: Counter


@attrs.frozen
class Opened:
    """A partition that exists now, and a device that presented its key before the partition had a row."""

    device: DeviceRow
    partition: int
    early: int


def position(tx: Tx) -> NewsPosition:
    """Return the current position."""
    found = tx.one("SELECT coalesce(max(id), 0) + 1 FROM inbox")
    return NewsPosition(moved.settled(tx), int(found[0]) if found else 1)


def put(tx: Tx, device: Device, endpoint: str, p256dh: bytes, auth: bytes) -> bool:
    """Store a device's only subscription, in place of an earlier one. The device counts as knowing all news so far.

    Returns False, and stores nothing, if the device is gone or has another token now.
    """
    known = position(tx)
    stored = tx.execute(
        "INSERT INTO push_subscriptions (device, endpoint, p256dh, auth, next_stamp, next_welcome, last_contact)"
        " SELECT id, ?, ?, ?, ?, ?, ? FROM devices WHERE id = ? AND token_digest = ? ON CONFLICT (device) DO UPDATE SET"
        " endpoint = excluded.endpoint, p256dh = excluded.p256dh, auth = excluded.auth, is_woken = 0,"
        " next_stamp = excluded.next_stamp, next_welcome = excluded.next_welcome, last_contact = excluded.last_contact",
        (
            endpoint,
            p256dh,
            auth,
            known.next_stamp,
            known.next_welcome,
            secrets.randbits(_CONTACT_BITS),
            device.row,
            device.token_digest,
        ),
    )
    return stored > 0


def delete(tx: Tx, device: DeviceRow, endpoint: str | None = None) -> bool:
    """Delete the subscription of a device, if it has this `endpoint` (None: any); return whether it existed.

    The early positions of the device are deleted too.
    """
    query = "DELETE FROM push_subscriptions WHERE device = ? AND endpoint = coalesce(?, endpoint)"
    if not tx.execute(query, (device, endpoint)):
        return False
    tx.execute("DELETE FROM early_positions WHERE device = ?", (device,))
    return True


def subscribed(tx: Tx) -> list[tuple[DeviceRow, bool]]:
    """Return every device with a subscription, and whether it was woken since it was heard last."""
    return [(DeviceRow(row[0]), bool(row[1])) for row in tx.all("SELECT device, is_woken FROM push_subscriptions")]


def subscribed_of(tx: Tx, devices: Sequence[DeviceRow]) -> list[tuple[DeviceRow, bool]]:
    """Return those of some devices that have a subscription, as `subscribed` does."""
    places = ", ".join("?" * len(devices))
    rows = tx.all(f"SELECT device, is_woken FROM push_subscriptions WHERE device IN ({places})", devices)
    return [(DeviceRow(row[0]), bool(row[1])) for row in rows]


def endpoints(tx: Tx) -> list[str]:
    """Return the endpoints of all subscriptions."""
    return [row[0] for row in tx.all("SELECT endpoint FROM push_subscriptions")]


def note_heard(tx: Tx, heard: Sequence[tuple[DeviceRow, NewsPosition]]) -> list[DeviceRow]:
    """Store the positions at which devices were heard: each device may be woken again for later news.

    Returns the devices that were woken before. A stored position never goes back, because a device may have subscribed
    again since it was heard.
    """
    woken: list[DeviceRow] = []
    for start in range(0, len(heard), HEARD_AT_ONCE):
        page = [device for device, _ in heard[start : start + HEARD_AT_ONCE]]
        places = ", ".join("?" * len(page))
        query = f"SELECT device FROM push_subscriptions WHERE device IN ({places}) AND is_woken = 1"
        woken += [DeviceRow(row[0]) for row in tx.all(query, page)]
    tx.executemany(
        "UPDATE push_subscriptions SET is_woken = 0, last_contact = ?4,"
        " next_stamp = CASE WHEN next_stamp < ?1 THEN ?1 ELSE next_stamp END,"
        " next_welcome = CASE WHEN next_welcome < ?2 THEN ?2 ELSE next_welcome END WHERE device = ?3",
        [(known.next_stamp, known.next_welcome, device, secrets.randbits(_CONTACT_BITS)) for device, known in heard],
    )
    return woken


def note_woken(tx: Tx, due: PushSubscription) -> bool:
    """Record that a device gets no push before it is heard again.

    Returns False, and records nothing, if the device was heard or subscribed since `due` was read. The positions do not
    tell this: a process that hears a device may not have looked at the news yet for which the device is woken.
    """
    return (
        tx.execute(
            "UPDATE push_subscriptions SET is_woken = 1 WHERE device = ? AND last_contact = ?",
            (due.device, due.last_contact),
        )
        > 0
    )


def begin_hearing(tx: Tx, process: str) -> None:
    """Record that a process hears of devices from now on."""
    tx.execute("INSERT INTO hearing_processes (process) VALUES (?) ON CONFLICT (process) DO NOTHING", (process,))


def is_hearing(tx: Tx, process: str) -> bool:
    """Tell whether `begin_hearing` is recorded; after a long silence of the process, another one deletes the record."""
    return tx.one("SELECT 1 FROM hearing_processes WHERE process = ?", (process,)) is not None


def end_hearing(tx: Tx, process: str) -> None:
    """Record that a process has stored of which devices it heard, and hears of no more."""
    tx.execute("DELETE FROM hearing_processes WHERE process = ?", (process,))


def crashed(tx: Tx) -> list[str]:
    """Return the processes that ended without `end_hearing`."""
    rows = tx.all("SELECT process FROM hearing_processes WHERE process NOT IN (SELECT name FROM processes)")
    return [row[0] for row in rows]


def forget_woken(tx: Tx, after: int, limit: int) -> int | None:
    """Let news wake up to `limit` devices again, as if they had been heard, also if a push to them is in flight.

    Begins with the devices whose number is above `after`; returns the last number, None if there is no further device.
    """
    query = "SELECT max(device) FROM (SELECT device FROM push_subscriptions WHERE device > ? ORDER BY device LIMIT ?) d"
    last: int | None = (tx.one(query, (after, limit)) or (None,))[0]
    if last is not None:
        tx.execute(
            "UPDATE push_subscriptions SET is_woken = 0, last_contact = ? WHERE device > ? AND device <= ?",
            (secrets.randbits(_CONTACT_BITS), after, last),
        )
    return last


def note_early(tx: Tx, device: DeviceRow, hub: int, masks: Sequence[MaskedPartitionKey]) -> None:
    """Store that a device presented the key of a partition that has no row yet, because no message has come.

    For each device only the newest EARLY_POSITIONS are kept.
    """
    places = ", ".join("?" * len(masks))
    if tx.one(f"SELECT 1 FROM partitions WHERE hub = ? AND masked_key IN ({places})", (hub, *masks)) is not None:
        return
    tx.executemany(
        "INSERT INTO early_positions (device, hub, masked_key) SELECT id, ?, ? FROM devices WHERE id = ?"
        " ON CONFLICT (device, hub, masked_key) DO NOTHING",
        [(hub, mask, device) for mask in masks],
    )
    tx.execute(
        "DELETE FROM early_positions WHERE device = ?1 AND id <="
        " (SELECT id FROM early_positions WHERE device = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        (device, EARLY_POSITIONS),
    )


def opened(tx: Tx) -> list[Opened]:
    """Return all early positions whose partition exists by now; reads the whole table."""
    rows = tx.all(
        "SELECT e.device, p.id, e.id FROM early_positions e CROSS JOIN partitions p"
        " WHERE p.hub = e.hub AND p.masked_key = e.masked_key"
    )
    return [Opened(DeviceRow(row[0]), row[1], row[2]) for row in rows]


def open_positions(tx: Tx, positions: Iterable[Opened], now: Milliseconds) -> None:
    """Turn early positions into positions at the start of their partitions: the devices have no messages of them."""
    for each in positions:
        tx.execute(
            "INSERT INTO device_cursors (device, partition, next_counter, seen_at) SELECT id, ?, 0, ? FROM devices"
            " WHERE id = ? ON CONFLICT (device, partition) DO NOTHING",
            (each.partition, hour_of(now), each.device),
        )
        tx.execute("DELETE FROM early_positions WHERE id = ?", (each.early,))


def devices_with_news(
    tx: Tx, looked: LookedForNews, *, limit: int
) -> tuple[set[DeviceRow], list[Opened], LookedForNews, bool]:
    """Return devices with something new since the last look, and the early positions whose partitions exist by now.

    An early position is that of a device which presented a key before the partition had a row here.

    Also return how far the query looked, and whether it looked at everything. The query looks at
    about `limit` partitions at most. Devices that were woken already are left out.
    """
    page = moved.next_page(tx, looked.stamps, limit=limit)
    read = tx.all(
        "SELECT s.device FROM moved m CROSS JOIN device_cursors c CROSS JOIN push_subscriptions s"
        " WHERE m.stamp >= ? AND m.stamp < ? AND c.partition = m.partition AND s.device = c.device AND s.is_woken = 0",
        (page.start, page.end),
    )
    early = tx.all(
        "SELECT e.device, p.id, e.id FROM moved m CROSS JOIN partitions p CROSS JOIN early_positions e"
        " WHERE m.stamp >= ? AND m.stamp < ? AND p.id = m.partition AND e.hub = p.hub AND e.masked_key = p.masked_key",
        (page.start, page.end),
    )
    welcomed = tx.all(
        "SELECT i.id, i.device FROM inbox i WHERE i.id >= ? ORDER BY i.id LIMIT ?",
        (looked.next_welcome, WELCOMES_AT_ONCE),
    )
    next_welcome = max([looked.next_welcome, *(row[0] + 1 for row in welcomed)])
    complete = page.whole and len(welcomed) < WELCOMES_AT_ONCE
    devices = {DeviceRow(row[0]) for row in read} | {DeviceRow(row[1]) for row in welcomed}
    found = [Opened(DeviceRow(row[0]), row[1], row[2]) for row in early]
    return devices, found, LookedForNews(page.looked, next_welcome), complete


def wakeable(tx: Tx, device: DeviceRow) -> PushSubscription | None:
    """Return the subscription of a device; None if it has none, was woken already, or its user is suspended."""
    found = tx.one(
        "SELECT s.endpoint, s.p256dh, s.auth, s.next_stamp, s.next_welcome, s.last_contact FROM push_subscriptions s"
        " JOIN devices d ON d.id = s.device JOIN users u ON u.id = d.owner"
        " WHERE s.device = ? AND s.is_woken = 0 AND u.suspended_at IS NULL",
        (device,),
    )
    if found is None:
        return None
    endpoint, p256dh, auth, next_stamp, next_welcome, last_contact = found
    return PushSubscription(device, endpoint, p256dh, auth, NewsPosition(next_stamp, next_welcome), last_contact)


def moved_since(tx: Tx, device: DeviceRow, next_stamp: int, *, limit: int) -> list[Moved]:
    """Return up to `limit` partitions that a device presented and that moved, without groups that it left."""
    rows = tx.all(
        "SELECT p.masked_key, p.next_counter FROM device_cursors c CROSS JOIN partitions p CROSS JOIN moved m"
        " WHERE c.device = ? AND p.id = c.partition AND p.next_counter > c.next_counter AND m.partition = p.id"
        " AND m.stamp >= ? AND NOT EXISTS (SELECT 1 FROM participations t"
        "  WHERE t.group_ref = p.group_ref AND t.device = c.device AND t.left_at IS NOT NULL) LIMIT ?",
        (device, next_stamp, limit),
    )
    return [Moved(row[0], Counter(row[1])) for row in rows]


def has_welcome(tx: Tx, device: DeviceRow, next_welcome: int) -> bool:
    """Return whether a Welcome waits that came since a device was heard last."""
    return (
        tx.one(
            "SELECT 1 FROM inbox WHERE device = ? AND id >= ? AND acknowledged_at IS NULL LIMIT 1",
            (device, next_welcome),
        )
        is not None
    )
