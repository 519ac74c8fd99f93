"""Commands on the server itself: what runs, and a reload of its configuration."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Final

import attrs
from cryptography.x509 import load_pem_x509_certificates

from mimids import __version__
from mimids.config import Config, ConfigError
from mimids.ds.commands.declare import Command, Context, JsonObject, needs_server
from mimids.errors import Malformed, NotFound
from mimids.store import backup, overview, processes, recoveries, reports
from mimids.store.engine.sqlite import VERSION
from mimids.store.engine.transaction import Tx
from mimids.store.processes import ProcessRow

if TYPE_CHECKING:
    from mimids.ds.services import Services


def _status(tx: Tx, context: Context) -> JsonObject:
    """Return the status of a provider whose server does not run, from the database and the files."""
    config = context.config
    devices, without_stock = overview.devices_without_stock(tx, context.now)
    peers = overview.peer_summaries(tx, config.provider, count_to=1)
    (schema,) = tx.one("SELECT max(version) FROM schema_version") or (0,)
    return {
        "provider": config.provider,
        "running": False,
        "process": None,
        "started_at": None,
        "version": __version__,
        "schema_version": schema,
        "sqlite_version": VERSION,
        "groups": overview.group_totals(tx).groups,
        "groups_held": recoveries.held_groups(tx),
        "providers": len(peers),
        "providers_behind": sum(peer.behind > 0 for peer in peers),
        "providers_failing": sum(peer.failures > 0 for peer in peers),
        "devices": devices,
        "devices_without_key_packages": without_stock,
        "reports_open": reports.count_open(tx),
        **_of_files(config),
        "listeners": [],
    }


def _of_files(config: Config) -> JsonObject:
    """Return sizes and times of files; None for a file that cannot be read."""
    found: JsonObject = {
        "disk_free_bytes": None,
        "database_bytes": None,
        "certificate_expires_at": None,
        "last_backup_at": backup.last(config.database),
    }
    with suppress(OSError):
        found["disk_free_bytes"] = shutil.disk_usage(config.data_dir).free
        found["database_bytes"] = config.database.stat().st_size
    with suppress(OSError, ValueError):
        files = {config.tls.certificate, config.tls.presented[0]}
        chains = [each for file in files for each in load_pem_x509_certificates(file.read_bytes())]
        ends: datetime = min(each.not_valid_after_utc for each in chains)
        found["certificate_expires_at"] = int(ends.timestamp() * 1000)
    return found


async def _status_of_server(services: Services, context: Context) -> JsonObject:
    answer = await services.store.read_apart(lambda tx: _status(tx, context))
    server = services.server
    listeners = [{"listener": name, "address": address} for name, address in server.addresses.items()]
    own = {"running": True, "process": os.getpid(), "started_at": server.started_at, "listeners": listeners}
    return answer | own


async def _reload(services: Services, context: Context) -> JsonObject:
    try:
        done = await services.server.reload()
    except ConfigError as error:
        raise Malformed("the configuration is not valid: " + "; ".join(error.faults)) from error
    return {**attrs.asdict(done), "changed": list(done.changed), "needs_restart": list(done.needs_restart)}


def _processes(tx: Tx, context: Context) -> JsonObject:
    return {"processes": [attrs.asdict(each) for each in processes.every_process(tx)]}


async def _processes_of_server(services: Services, context: Context) -> JsonObject:
    answer = await services.store.read_apart(lambda tx: _processes(tx, context))
    if answer["processes"]:
        return answer
    # A provider in SQLite has one process, which stores no row about itself.
    since, name = services.server.started_at, services.processes.name
    return {"processes": [attrs.asdict(ProcessRow(name, since, context.now, runs_jobs=True, lag_ms=0))]}


SERVER: Final = (
    Command(
        name="status",
        summary="Show what runs, since when, and what it needs: versions, disk, peers, last backup.",
        work=_status,
        in_server=_status_of_server,
        answer='{"provider": "a.example", "running": true, "process": 4711, "started_at": 1764000000000,'
        ' "version": "0.1.0", "schema_version": 15, "sqlite_version": "3.40.1", "groups": 3, "groups_held": 0,'
        ' "providers": 2, "providers_behind": 0, "providers_failing": 0, "devices": 5,'
        ' "devices_without_key_packages": 1, "reports_open": 0, "disk_free_bytes": 53687091200,'
        ' "database_bytes": 1048576, "certificate_expires_at": 1795000000000, "last_backup_at": 1763900000000,'
        ' "listeners": [{"listener": "public", "address": "127.0.0.1:8443"}]}',
        example="mimids status",
        writes=False,
    ),
    Command(
        name="processes",
        summary="List the processes that serve the provider, which of them runs the jobs, and how far each is behind.",
        work=_processes,
        in_server=_processes_of_server,
        answer='{"processes": [{"name": "ds1.a.example/4711/9c2a", "since": 1764000000000, "seen_at": 1764000060000,'
        ' "runs_jobs": true, "lag_ms": 3}]}',
        example="mimids processes",
        writes=False,
    ),
    Command(
        name="reload",
        summary="Read certificates, [federation], [limits] and [log] again, and say what changed.",
        work=needs_server,
        in_server=_reload,
        answer='{"changed": ["[limits] message_bytes"], "needs_restart": ["[listen] public"], "certificates": null}',
        example="mimids reload",
        hints={NotFound: "start it with `mimids serve`; it reads the configuration then"},
    ),
)
