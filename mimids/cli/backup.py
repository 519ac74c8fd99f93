"""`mimids backup` and `mimids restore`."""

from __future__ import annotations

import os
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from mimids.cli.places import config_option, example, json_option, load_config, require_database
from mimids.cli.progress import Progress, bar, elapsed
from mimids.cli.refusals import CommandRefused, or_refused
from mimids.cli.showing import show
from mimids.config import Config
from mimids.ds.commands import Context, JsonObject
from mimids.ds.key_packages import gateway_keys
from mimids.ohttp.keyring import Schedule
from mimids.store import arrangements, key_packages, recoveries
from mimids.store import backup as backups
from mimids.store.backup import NotABackup
from mimids.store.engine import lock, migrate
from mimids.store.engine.sqlite import connect, write_here
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds

DAY_SECONDS = 86_400
_PIECE_OCTETS = 1024 * 1024


@example("mimids backup /var/backups/mimids-monday.sqlite3")
@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@config_option
@json_option
def backup(file: Path, config_file: Path | None, as_json: bool) -> None:
    """Copy the database to FILE; the server may keep running.

    The copy is consistent. It does not contain the configuration and the certificates: copy those files too. It
    contains the gateway's private keys, so only you may read it.
    """
    config = load_config(config_file)
    require_database(config)
    if file.exists():
        raise CommandRefused(f"the file {file} already exists", "choose another name: a backup never overwrites a file")
    if not file.parent.is_dir():
        raise CommandRefused(f"the directory {file.parent} does not exist", "create it, or choose another one")
    with bar("copying", quiet=as_json) as progress:
        or_refused(lambda: _copy_database(config, file, progress))
    show("backup", {"backup": str(file), "octets": file.stat().st_size}, as_json=as_json)


def _copy_database(config: Config, file: Path, progress: Progress) -> None:
    try:
        backups.copy(config.database, file, _now(), progress)
    except sqlite3.Error as error:
        raise CommandRefused(
            f"cannot copy the database: {error}", "check the free space for FILE; the incomplete copy was deleted"
        ) from error


@example("mimids restore /var/backups/mimids-monday.sqlite3", "mimids restore --replace mimids-monday.sqlite3")
@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--replace", is_flag=True, help="Keep the present database under another name, and replace it.")
@config_option
@json_option
def restore(file: Path, replace: bool, config_file: Path | None, as_json: bool) -> None:
    """Replace the database by the backup FILE; stop the server first.

    A backup does not know what happened after it. So `restore` drops all KeyPackages, because they may have been handed
    out since (devices upload new ones), and makes a new gateway key. Groups hosted here that other providers follow
    accept no messages until these providers have sent back what was sequenced since the backup. `mimids group show`
    names the providers that a group waits for, and `mimids group release` ends the wait for one that does not answer.
    """
    config = load_config(config_file)
    answer: JsonObject = or_refused(lambda: _restore(config, file, replace=replace, quiet=as_json))
    show("restore", answer, as_json=as_json)
    if not as_json:
        click.echo("Devices have to upload new KeyPackages: `mimids check` counts the devices that have none.")


def _restore(config: Config, file: Path, *, replace: bool, quiet: bool) -> JsonObject:
    try:
        with elapsed(f"reading {file}", quiet=quiet):
            moment = backups.check(file)
    except NotABackup as error:
        raise CommandRefused(str(error)) from error
    path = config.database
    if path.exists() and not replace:
        raise CommandRefused(
            f"the database {path} already exists", "use --replace: it keeps that file under another name"
        )
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock.hold(config.data_dir):
        temporary = path.with_name(f".{path.name}.restored")
        try:
            with bar("copying", quiet=quiet) as progress:
                _copy(file, temporary, progress)
            with elapsed("migrating", quiet=quiet):
                migrate.migrate(temporary)
            retired, key_id, held = write_here(temporary, lambda tx: _prepare(tx, config))
            aside = _put_aside(path) if path.exists() else None
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    return {
        "database": str(path),
        "made_at": moment,
        "key_packages_dropped": retired,
        "ohttp_key_id": key_id,
        "groups_held": held,
        "put_aside": None if aside is None else str(aside),
    }


def _copy(source: Path, target: Path, progress: Progress) -> None:
    """Copy a file that is not in use; only the owner may read the copy."""
    target.unlink(missing_ok=True)
    total = source.stat().st_size
    with source.open("rb") as reading, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        while piece := reading.read(_PIECE_OCTETS):
            out.write(piece)
            progress(reading.tell(), total)


def _prepare(tx: Tx, config: Config) -> tuple[int, int, int]:
    """Prepare a copy for use (semantics: restore); return KeyPackages dropped, the new key's id, groups held."""
    context = Context.of(config, _now())
    schedule = Schedule(config.ohttp.rotate_days * DAY_SECONDS, config.ohttp.grace_days * DAY_SECONDS)
    retired = key_packages.retire_unclaimed(tx, context.now)
    key_id = gateway_keys.rotate(tx, schedule, context.operator_key, context.now // 1000, retire_others=True)
    held = recoveries.begin(tx, config.provider, {*config.federation.allow, *config.providers})
    arrangements.skip_revisions(tx)
    backups.unmark(tx)
    return retired, key_id, held


def _put_aside(path: Path) -> Path:
    """Rename a database that is not in use, with its write-ahead log merged into it; return the new name."""
    connect(path).close()  # closing the last connection merges the log
    aside = path.with_name(f"{path.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    path.rename(aside)
    return aside


def _now() -> Milliseconds:
    return Milliseconds(time.time_ns() // 1_000_000)
