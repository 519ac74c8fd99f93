"""This machine: the database, the disk, the clock, the listeners, the stock."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

from mimids.cli.check.finding import Finding, ok, warning, wrong
from mimids.cli.places import socket_fits
from mimids.cli.progress import seconds
from mimids.config import Config, ConfigError
from mimids.config_keys import TcpAddress
from mimids.ds.commands import Context
from mimids.ds.key_packages import gateway_keys
from mimids.ohttp.at_rest import KeyUnavailable
from mimids.ohttp.keyring import Schedule
from mimids.store import overview
from mimids.store.engine import lock, migrate
from mimids.store.engine.migrate import SchemaRefused
from mimids.store.engine.sqlite import connect_to_read, read_here
from mimids.values import Milliseconds

OLDEST_SQLITE: Final = (3, 37, 0)  # STRICT tables
MIB: Final = 1024 * 1024
DISK_WRONG: Final = 100 * MIB
DISK_WARNING: Final = 1024 * MIB
CLOCK_SECONDS: Final = 300  # a message from further in the future says that this clock, or an earlier one, is off
DAY_SECONDS: Final = 86_400
_DAMAGED: Final = "stop the server, keep the file, and restore the newest backup"


def here(config: Config) -> Iterator[Finding]:
    """Look at everything that needs no other machine."""
    yield _sqlite()
    running = lock.holder(config.data_dir) if config.data_dir.is_dir() else None
    yield from _listeners(config, running)
    if not config.data_dir.is_dir():
        yield wrong("data", f"there is no directory {config.data_dir}", "`mimids migrate` makes it")
        return
    yield _disk(config)
    healthy = True
    for finding in _database(config):
        healthy = healthy and finding.mend is None
        yield finding
    if healthy:
        yield _clock(config)
        yield from _gateway(config)
        yield _stock(config)


def _sqlite() -> Finding:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        mend = "install a Python that comes with a newer SQLite"
        return wrong("sqlite", f"SQLite {sqlite3.sqlite_version} is too old", mend)
    return ok("sqlite", f"SQLite {sqlite3.sqlite_version}")


def _listeners(config: Config, running: int | None) -> Iterator[Finding]:
    if running is not None:
        yield ok("listeners", f"a server is running (process {running})")
        return
    for name in ("public", "client", "operator"):
        address = getattr(config.listen, name)
        if isinstance(address, TcpAddress) and address.port:
            yield _listener(name, address)
    yield _socket(config)


def _socket(config: Config) -> Finding:
    path = config.operator_socket
    if socket_fits(path):
        return ok("listeners", f"commands reach a running server at {path}")
    return wrong("listeners", f"{path} is too long for a socket", "write a shorter operator_socket in [listen]")


def _listener(name: str, address: TcpAddress) -> Finding:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except OSError as error:
        what = f"cannot listen on {address} ({name}): {error.strerror or error}"
        return wrong("listeners", what, f"stop what listens there, or change {name} in [listen]")
    return ok("listeners", f"{name} can listen on {address}")


def _disk(config: Config) -> Finding:
    free = shutil.disk_usage(config.data_dir).free
    what = f"{free // MIB:,} MiB free at {config.data_dir}"
    mend = "make room: a full disk refuses every write; shorter [retention] needs less of it"
    if free < DISK_WRONG:
        return wrong("disk", what, mend)
    return warning("disk", what, mend) if free < DISK_WARNING else ok("disk", what)


def _database(config: Config) -> Iterator[Finding]:
    path = config.database
    if not path.exists():
        yield wrong(
            "database", f"there is no {path}", "`mimids migrate` makes it; `mimids restore` brings a backup back"
        )
        return
    try:
        waiting = migrate.pending(path)
        if waiting:
            yield wrong("database", f"{len(waiting)} migrations are due", "make a backup, then run `mimids migrate`")
        else:
            yield _integrity(config)
    except SchemaRefused as error:
        yield wrong("database", str(error), "install the mimids that wrote it, or restore a backup")
    except sqlite3.DatabaseError as error:
        yield wrong("database", f"{path} cannot be read: {error}", _DAMAGED)


def _integrity(config: Config) -> Finding:
    """Read the whole file: pages, indexes, references."""
    with closing(connect_to_read(config.database)) as connection, seconds(f"reading {config.database}"):
        faults = [row[0] for row in connection.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
        faults += [f"{row[0]} refers to nothing" for row in connection.execute("PRAGMA foreign_key_check").fetchmany(3)]
    if faults:
        return wrong("database", f"{config.database} is damaged: {'; '.join(faults)}", _DAMAGED)
    return ok("database", f"{config.database} is whole, {config.database.stat().st_size // 1024:,} KiB")


def _clock(config: Config) -> Finding:
    with read_here(config.database) as tx:
        newest = overview.newest_moment(tx)
    ahead = newest / 1000 - time.time()
    if ahead > CLOCK_SECONDS:
        at = datetime.fromtimestamp(newest / 1000, UTC)
        what = f"the database has something of {at:%Y-%m-%d %H:%M}Z, {ahead:.0f} s from now"
        return wrong("clock", what, "set this machine's clock (chrony, systemd-timesyncd)")
    return ok("clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M}Z, not behind what the database has")


def _gateway(config: Config) -> Iterator[Finding]:
    ohttp = config.ohttp
    now = int(time.time())
    try:
        context = Context.of(config, Milliseconds(now * 1000))
        schedule = Schedule(ohttp.rotate_days * DAY_SECONDS, ohttp.grace_days * DAY_SECONDS)
        with read_here(config.database) as tx:
            keyring = gateway_keys.load(tx, schedule, context.operator_key)
    except (ConfigError, KeyUnavailable) as error:
        mend = "[ohttp] key_file names the file that the keys were encrypted under"
        yield wrong("ohttp", f"the gateway's keys cannot be read: {error}", mend)
        return
    current = keyring.current(now)
    if current is None:
        yield ok("ohttp", "no gateway key yet; `mimids serve` makes one")
    elif keyring.rotation_due_at(now) < now - DAY_SECONDS:
        yield warning("ohttp", f"key {current.key_id} is overdue for rotation", "a running server rotates it by itself")
    else:
        yield ok("ohttp", f"key {current.key_id} is served")


def _stock(config: Config) -> Finding:
    with read_here(config.database) as tx:
        devices, empty = overview.devices_without_stock(tx, Milliseconds(int(time.time() * 1000)))
    what = f"{devices - empty} of {devices} devices have KeyPackages"
    if not empty:
        return ok("stock", what)
    mend = "those without cannot be added to groups until they upload some: does their client run?"
    return warning("stock", what, mend)
