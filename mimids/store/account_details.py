"""Details of a user for the operator: devices with their stock, groups, and storage."""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds, UserRow


@attrs.frozen
class DeviceDetails:
    """A device in a list."""

    row: DeviceRow
    name: str
    created_at: Milliseconds
    seen_on: Milliseconds | None  # the start of the day (UTC) on which it was last seen
    key_packages: int  # in stock, without last resorts
    last_resorts: int
    welcomes: int  # Welcomes that the device has not acknowledged
    groups: int  # groups of other hubs in which the device takes part: their messages are pushed here
    push_endpoint: str | None  # the push service that wakes the device; None without a subscription
    is_woken: bool = attrs.field(converter=bool)  # whether the device was woken since it was last heard


@attrs.frozen
class Storage:
    """Octets that are stored for a user alone."""

    key_packages: int
    welcomes: int


def devices_with_details(tx: Tx, user: UserRow, now: Milliseconds) -> list[DeviceDetails]:
    """Return a user's devices, in the order they were added."""
    in_stock = (
        "(SELECT count(*) FROM key_packages k WHERE k.device = d.id AND k.expires_at > ?2 AND k.last_resort = {})"
    )
    rows = tx.all(
        f"SELECT d.id, d.name, d.created_at, d.seen_on, {in_stock.format(0)}, {in_stock.format(1)},"
        " (SELECT count(*) FROM inbox i WHERE i.device = d.id AND i.acknowledged_at IS NULL),"
        " (SELECT count(*) FROM participations t WHERE t.device = d.id AND t.left_at IS NULL),"
        " s.endpoint, coalesce(s.is_woken, 0)"
        " FROM devices d LEFT JOIN push_subscriptions s ON s.device = d.id WHERE d.owner = ?1 ORDER BY d.id",
        (user, now),
    )
    return [DeviceDetails(*row) for row in rows]


def storage_of(tx: Tx, user: UserRow) -> Storage:
    """Return a user's stored octets: KeyPackages, and Welcomes that the devices have not acknowledged."""
    found = tx.one(
        "SELECT (SELECT coalesce(sum(length(k.body)), 0) FROM devices d JOIN key_packages k ON k.device = d.id"
        "  WHERE d.owner = ?1),"
        " (SELECT coalesce(sum(length(w.body)), 0) FROM devices d JOIN inbox i ON i.device = d.id"
        "  JOIN welcomes w ON w.id = i.welcome WHERE d.owner = ?1 AND i.acknowledged_at IS NULL)",
        (user,),
    )
    return Storage(*(found or (0, 0)))
