"""The page on the health of this provider: disk, certificate, clock, keys, and groups still held since a restore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

import attrs
import trio

from mimids.ds.services import Services
from mimids.http.api.operator import MIB, machine_readings
from mimids.http.api.public import installed_version
from mimids.http.console import offers
from mimids.http.console.answers import NOTHING
from mimids.http.console.parts import Cell, DataTable, Hyperlink, PageSection, group_title, moment, number
from mimids.http.console.snapshot import Snapshot
from mimids.store import backup, recoveries, restores
from mimids.store.damage import damage_says
from mimids.wire.base64url import base64url


def health_page(seen: Snapshot, *, machine: PageSection) -> str:
    """Return the page; `machine` has the facts that are not in the database."""
    acts = {
        name: offers.named((name,), seen.back)
        for name in ("clock confirm", "ohttp rotate", "signature-key rotate", "restored")
    }
    sections = [
        machine,
        _held(seen),
        seen.section("Clock", "clock show", acts=acts["clock confirm"]),
        seen.section("Keys of the OHTTP gateway", "ohttp keys", acts=acts["ohttp rotate"]),
        seen.section("Signature keys of this provider", "signature-key list", acts=acts["signature-key rotate"]),
        *_came_back(seen, acts["restored"]),
    ]
    return seen.page("Health", sections)


def _held(seen: Snapshot) -> PageSection:
    """Return the groups that are held since a restore, with the act that releases a group."""
    rows: list[list[Cell]] = []
    for each in recoveries.held(seen.tx):
        id_ = base64url(each.group_id)
        link = Hyperlink(group_title(each.group_id), f"/console/groups/{quote(seen.ours)}/{id_}")
        rows.append([link, ", ".join(each.waits_for), offers.of_page({"group": id_}, (), seen.back)])
    table = DataTable(("group", "waits for", "actions"), rows, "no group is held")
    return PageSection("Groups held since a restore", "held", [table])


def _came_back(seen: Snapshot, acts: Sequence[Hyperlink]) -> list[PageSection]:
    """Return when the database was restored, with the act that revokes devices and tokens from the backup.

    Return nothing if the database was never restored.
    """
    past = restores.history(seen.tx)
    facts: list[tuple[str, Cell]] = [
        (name, moment(at))
        for each in past[-1:]
        for name, at in (("backup made", each.backup_made_at), ("restored", each.restored_at))
    ]
    return [PageSection("Restored from a backup", "restored", facts=facts, acts=acts)] if past else []


async def machine_section(services: Services) -> PageSection:
    """Return the facts that are not in the database."""
    config, server = services.config, services.server
    readings = await trio.to_thread.run_sync(machine_readings, config)
    backed_up_at = await trio.to_thread.run_sync(backup.last, config.database)
    numbers: Mapping[str, float] = {
        f"{each.prefix} {name}": value for each in readings for name, value in attrs.asdict(each.numbers).items()
    }
    store = services.store.statistics()
    facts: list[tuple[str, Cell]] = [
        ("version", installed_version()),
        ("runs since", moment(server.started_at) if server.started_at else NOTHING),
        ("listeners", ", ".join(f"{name} {address}" for name, address in server.addresses.items()) or NOTHING),
        ("last backup", NOTHING if backed_up_at is None else moment(backed_up_at)),
        ("database", str(damage_says(services.config.place, store.damage)) if store.damage else "no damage found"),
        ("disk", "takes writes" if store.writable else "takes no writes: free some space"),
        ("free on the disk", _size(numbers.get("disk free_bytes"))),
        ("size of the database", _size(numbers.get("disk database_bytes"))),
        ("certificate ends", _time(numbers.get("certificate expires_seconds"))),
        ("open streams and waiting requests", number(services.sessions.statistics().open)),
    ]
    return PageSection("This provider", "machine", facts=facts)


def _size(octets: float | None) -> str:
    return "unknown" if octets is None else f"{number(round(octets / MIB))} MiB"


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else moment(round(seconds * 1000))
