"""Checks of this machine: listeners, disk, database, clock, gateway keys, stock."""

from __future__ import annotations

import shlex
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

from mimids import causes
from mimids.cli.check.files import data, files, unusable
from mimids.cli.check.finding import Finding, ok, warning, wrong
from mimids.cli.check.push import push_key
from mimids.cli.places import socket_fits
from mimids.cli.progress import elapsed
from mimids.config import Config, ConfigError
from mimids.config_keys import TcpAddress
from mimids.ds.commands.declare import read_operator_key
from mimids.ds.commands.groups import group_name
from mimids.ds.elapsed import JUMP_MILLISECONDS
from mimids.ds.key_packages import gateway_keys
from mimids.ohttp.at_rest import KeyUnavailable
from mimids.ohttp.keyring import Schedule
from mimids.store import move, overview, recoveries, seen_time
from mimids.store.damage import RESTORE, loss_says, why_not_served
from mimids.store.engine import lock
from mimids.store.engine.access import exists, health_of, name_of, pending, read_here
from mimids.store.engine.migrate import SchemaRefused
from mimids.store.engine.sqlite import connect_to_read
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url

OLDEST_SQLITE: Final = (3, 37, 0)  # STRICT tables
MIB: Final = 1024 * 1024
DISK_WRONG: Final = 100 * MIB
DISK_WARNING: Final = 1024 * MIB
CLOCK_SECONDS: Final = 300  # rows from further in the future show that the clock is wrong now or was wrong before
DAY_SECONDS: Final = 86_400
DATABASE_CLOCK_SECONDS: Final = 1.0


def here(config: Config) -> Iterator[Finding]:
    """Check everything that needs no other machine."""
    yield _sqlite()
    fault = unusable(config)
    yield from _listeners(config, _running(config) if fault is None else None)
    if fault is not None:
        yield fault
        return
    yield from data(config)
    yield _disk(config)
    yield from files(config)
    healthy = True
    for finding in _database(config):
        healthy = healthy and finding.fix is None
        yield finding
    if healthy:
        yield _clock(config)
        yield from _jump(config)
        yield from _gateway(config)
        yield push_key(config)
        yield _stock(config)
        yield from _held(config)


def quick(config: Config) -> Iterator[Finding]:
    """Make the checks that take only a moment, for a server that has started.

    Skip the slow ones.
    """
    yield _disk(config)
    yield from files(config)
    yield _clock(config)
    yield from _jump(config)
    yield from _gateway(config)
    yield push_key(config)


def _sqlite() -> Finding:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        fix = "install a Python with a newer SQLite"
        oldest = ".".join(map(str, OLDEST_SQLITE))
        return wrong("sqlite", f"SQLite {sqlite3.sqlite_version} is older than {oldest}", fix)
    return ok("sqlite", f"SQLite {sqlite3.sqlite_version}")


def _running(config: Config) -> int | None:
    """Return the process of the running server, None if no server runs, or if another user holds the lock."""
    try:
        return lock.holder(config.data_dir)
    except PermissionError:
        return None  # the check of the files says so


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
        cause = causes.of_listener(name, str(address), error)
        return wrong("listeners", cause.what, cause.fix)
    return ok("listeners", f"{name} can listen on {address}")


def _disk(config: Config) -> Finding:
    free = shutil.disk_usage(config.data_dir).free
    what = f"{free // MIB:,} MiB free at {config.data_dir}"
    fix = "free some space, or set shorter times in [retention]: with a full disk every write is refused"
    if free < DISK_WRONG:
        return wrong("disk", what, fix)
    return warning("disk", what, fix) if free < DISK_WARNING else ok("disk", what)


def _database(config: Config) -> Iterator[Finding]:
    path = name_of(config.place)
    try:
        if not exists(config.place):
            yield wrong(
                "database", f"{path} does not exist", "`mimids migrate` creates it; `mimids restore` restores a backup"
            )
            return
        waiting = pending(config.place)
        if waiting:
            yield wrong(
                "database", f"{len(waiting)} migrations have to run", "make a backup, then run `mimids migrate`"
            )
        elif config.store.url is not None:
            yield from _postgresql(config, config.store.url)
        else:
            yield _integrity(config)
            lost = loss_says(config.database)
            unused = lost or move.why_not_used(config.place)
            if unused is not None:
                yield wrong("database", unused.what, unused.fix)
    except SchemaRefused as error:
        yield wrong("database", error.cause.what, error.cause.fix)
    except sqlite3.DatabaseError as error:
        yield wrong("database", f"{path} cannot be read: {error}", RESTORE)


def _postgresql(config: Config, url: str) -> Iterator[Finding]:
    """Check that PostgreSQL acknowledges a write only when it is on disk (if so configured, also at a standby)."""
    refusal = why_not_served(url, replicated=config.store.replicated)
    if refusal is not None:
        yield wrong("database", refusal.what, refusal.fix)
    health = health_of(url)
    if not health.durable:
        what = f"{name_of(url)} may lose acknowledged writes when its machine stops"
        yield wrong("database", what, "set fsync, full_page_writes and synchronous_commit to on in PostgreSQL")
    elif refusal is None:
        yield ok("database", f"{name_of(url)} is PostgreSQL {health.version}")
    if health.keeps_times:
        what = "PostgreSQL stores the moment of each transaction, so also when each KeyPackage was fetched"
        yield warning("privacy", what, "set track_commit_timestamp to off in PostgreSQL (docs/privacy.md)")
    seconds = abs(health.now / 1000 - time.time())
    if seconds > DATABASE_CLOCK_SECONDS:
        what = f"the clocks of this machine and of PostgreSQL differ by {seconds:.1f} s"
        yield warning("clock", what, "set both clocks (chrony, systemd-timesyncd)")


def _integrity(config: Config) -> Finding:
    """Check the whole file: pages, indexes, foreign keys."""
    with closing(connect_to_read(config.database)) as connection, elapsed(f"reading {config.database}"):
        faults = [row[0] for row in connection.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
        faults += [
            f"a row of {row[0]} refers to a row that does not exist"
            for row in connection.execute("PRAGMA foreign_key_check").fetchmany(3)
        ]
    if faults:
        return wrong("database", f"{config.database} is damaged: {'; '.join(faults)}", RESTORE)
    return ok("database", f"{config.database} is not damaged, {config.database.stat().st_size // 1024:,} KiB")


def _clock(config: Config) -> Finding:
    with read_here(config.place) as tx:
        newest = overview.newest_moment(tx)
    ahead = newest / 1000 - time.time()
    if ahead > CLOCK_SECONDS:
        at = datetime.fromtimestamp(newest / 1000, UTC)
        what = f"the database has rows of {at:%Y-%m-%d %H:%M}Z, {ahead:.0f} s in the future"
        return wrong("clock", what, "set the clock of this machine (chrony, systemd-timesyncd)")
    return ok("clock", f"the clock says {datetime.now(UTC):%Y-%m-%d %H:%M}Z; no row of the database is newer")


def _jump(config: Config) -> Iterator[Finding]:
    """Report a jump of the clock if retention still uses the time before the jump."""
    with read_here(config.place) as tx:
        seen = seen_time.load(tx)
        confirmed = seen is not None and (seen.confirmed is not None or seen_time.is_confirmed(tx))
    if seen is not None and abs(seen.ahead) > JUMP_MILLISECONDS:
        what = f"the clock jumped by {seen.ahead // 3_600_000} hours; retention still uses the time before the jump"
        fix = (
            "nothing to do: the clock is confirmed, and retention uses its time a day later"
            if confirmed
            else "set the clock if it is wrong; if it is right, run `mimids clock confirm`"
        )
        yield warning("clock", what, fix)


def _gateway(config: Config) -> Iterator[Finding]:
    ohttp = config.ohttp
    now = int(time.time())
    try:
        key = read_operator_key(config)
        schedule = Schedule(ohttp.rotate_days * DAY_SECONDS, ohttp.grace_days * DAY_SECONDS)
        with read_here(config.place) as tx:
            keyring = gateway_keys.load(tx, schedule, key)
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


def _held(config: Config) -> Iterator[Finding]:
    with read_here(config.place) as tx:
        held = recoveries.held(tx)
    for each in held:
        name = group_name(each.group_id) or base64url(each.group_id)
        what = f"the group {name} accepts no messages since a restore, until {', '.join(each.waits_for)} answers"
        fix = f"if a provider will never answer: `mimids group release {shlex.quote(name)} --provider PROVIDER`"
        yield warning("restore", what, fix)


def _stock(config: Config) -> Finding:
    with read_here(config.place) as tx:
        devices, empty = overview.devices_without_stock(tx, Milliseconds(int(time.time() * 1000)))
    what = f"{devices - empty} of {devices} devices have KeyPackages"
    if not empty:
        return ok("stock", what)
    fix = "check that the clients of the other devices run: a device without KeyPackages cannot be added to groups"
    return warning("stock", what, fix)
