"""Checks of this machine: listeners, disk, database, clock, gateway keys, stock."""

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
from mimids.cli.progress import elapsed
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
CLOCK_SECONDS: Final = 300  # rows from further in the future show that the clock is wrong, or was
DAY_SECONDS: Final = 86_400
_DAMAGED: Final = "stop the server, keep the file, and restore the newest backup with `mimids restore`"


def here(config: Config) -> Iterator[Finding]:
    """Check everything that needs no other machine."""
    yield _sqlite()
    running = lock.holder(config.data_dir) if config.data_dir.is_dir() else None
    yield from _listeners(config, running)
    if not config.data_dir.is_dir():
        yield wrong("data", f"the directory {config.data_dir} does not exist", "`mimids migrate` creates it")
        return
    yield _disk(config)
    healthy = True
    for finding in _database(config):
        healthy = healthy and finding.fix is None
        yield finding
    if healthy:
        yield _clock(config)
        yield from _gateway(config)
        yield _stock(config)


def _sqlite() -> Finding:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        fix = "install a Python with a newer SQLite"
        oldest = ".".join(map(str, OLDEST_SQLITE))
        return wrong("sqlite", f"SQLite {sqlite3.sqlite_version} is older than {oldest}", fix)
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
        return ok("listeners", f"commands will reach a running server at {path}")
    return wrong(
        "listeners", f"the path {path} is too long for a Unix socket", "set a shorter operator_socket in [listen]"
    )


def _listener(name: str, address: TcpAddress) -> Finding:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except OSError as error:
        what = f"cannot listen on {address} ({name}): {error.strerror or error}"
        return wrong("listeners", what, f"stop the process that listens there, or change {name} in [listen]")
    return ok("listeners", f"{name} can listen on {address}")


def _disk(config: Config) -> Finding:
    free = shutil.disk_usage(config.data_dir).free
    what = f"{free // MIB:,} MiB free at {config.data_dir}"
    fix = "free some space, or set shorter times in [retention]: with a full disk every write is refused"
    if free < DISK_WRONG:
        return wrong("disk", what, fix)
    return warning("disk", what, fix) if free < DISK_WARNING else ok("disk", what)


def _database(config: Config) -> Iterator[Finding]:
    path = config.database
    if not path.exists():
        yield wrong(
            "database", f"{path} does not exist", "`mimids migrate` creates it; `mimids restore` restores a backup"
        )
        return
    try:
        waiting = migrate.pending(path)
        if waiting:
            yield wrong(
                "database", f"{len(waiting)} migrations have to run", "make a backup, then run `mimids migrate`"
            )
        else:
            yield _integrity(config)
    except SchemaRefused as error:
        yield wrong("database", str(error), "install the version of mimids that wrote it, or restore a backup")
    except sqlite3.DatabaseError as error:
        yield wrong("database", f"{path} cannot be read: {error}", _DAMAGED)


def _integrity(config: Config) -> Finding:
    """Check the whole file: pages, indexes, foreign keys."""
    with closing(connect_to_read(config.database)) as connection, elapsed(f"reading {config.database}"):
        faults = [row[0] for row in connection.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
        faults += [
            f"a row of {row[0]} refers to a row that does not exist"
            for row in connection.execute("PRAGMA foreign_key_check").fetchmany(3)
        ]
    if faults:
        return wrong("database", f"{config.database} is damaged: {'; '.join(faults)}", _DAMAGED)
    return ok("database", f"{config.database} is not damaged, {config.database.stat().st_size // 1024:,} KiB")


def _clock(config: Config) -> Finding:
    with read_here(config.database) as tx:
        newest = overview.newest_moment(tx)
    ahead = newest / 1000 - time.time()
    if ahead > CLOCK_SECONDS:
        at = datetime.fromtimestamp(newest / 1000, UTC)
        what = f"the database has rows of {at:%Y-%m-%d %H:%M}Z, {ahead:.0f} s in the future"
        return wrong("clock", what, "set the clock of this machine (chrony, systemd-timesyncd)")
    return ok("clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M}Z, not before the newest row of the database")


def _gateway(config: Config) -> Iterator[Finding]:
    ohttp = config.ohttp
    now = int(time.time())
    try:
        context = Context.of(config, Milliseconds(now * 1000))
        schedule = Schedule(ohttp.rotate_days * DAY_SECONDS, ohttp.grace_days * DAY_SECONDS)
        with read_here(config.database) as tx:
            keyring = gateway_keys.load(tx, schedule, context.operator_key)
    except (ConfigError, KeyUnavailable) as error:
        fix = "set key_file in [ohttp] to the file with which the keys were encrypted"
        yield wrong("ohttp", f"the gateway's keys cannot be read: {error}", fix)
        return
    current = keyring.current(now)
    if current is None:
        yield ok("ohttp", "there is no gateway key yet; `mimids serve` makes one")
    elif keyring.rotation_due_at(now) < now - DAY_SECONDS:
        yield warning(
            "ohttp",
            f"the rotation of gateway key {current.key_id} is overdue",
            "start the server: it rotates keys by itself",
        )
    else:
        yield ok("ohttp", f"gateway key {current.key_id} is in use")


def _stock(config: Config) -> Finding:
    with read_here(config.database) as tx:
        devices, empty = overview.devices_without_stock(tx, Milliseconds(int(time.time() * 1000)))
    what = f"{devices - empty} of {devices} devices have KeyPackages"
    if not empty:
        return ok("stock", what)
    fix = "check that the clients of the others run: a device without KeyPackages cannot be added to groups"
    return warning("stock", what, fix)
