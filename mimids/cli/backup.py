"""`mimids backup` and `mimids restore`."""

from __future__ import annotations

import os
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from mimids.cli.places import config_option, example, json_option, load_config, require_database
from mimids.cli.progress import Progress, bar, seconds
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
    """Make a consistent copy of the database, beside a running server.

    Configuration and certificates are files of their own: copy them too. The copy holds the gateway's private keys,
    and is readable by you alone.
    """
    config = load_config(config_file)
    require_database(config)
    if file.exists():
        raise CommandRefused(f"there is a file {file} already", "choose another name: a backup replaces nothing")
    if not file.parent.is_dir():
        raise CommandRefused(f"there is no directory {file.parent}", "make it, or choose another")
    with bar("copying", quiet=as_json) as progress:
        or_refused(lambda: _copy_database(config, file, progress))
    show("backup", {"backup": str(file), "octets": file.stat().st_size}, as_json=as_json)


def _copy_database(config: Config, file: Path, progress: Progress) -> None:
    try:
        backups.copy(config.database, file, _now(), progress)
    except sqlite3.Error as error:
        raise CommandRefused(f"the copy failed: {error}", "nothing of it was kept; is there room for it?") from error


@example("mimids restore /var/backups/mimids-monday.sqlite3", "mimids restore --replace mimids-monday.sqlite3")
@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--replace", is_flag=True, help="Put the database that is there aside, under another name.")
@config_option
@json_option
def restore(file: Path, replace: bool, config_file: Path | None, as_json: bool) -> None:
    """Put a backup in place of the database; the server must not be running.

    What may have been handed out since the backup is not handed out again: KeyPackages in stock are dropped (devices
    upload new ones), and the gateway gets a new key. Groups hosted here that other providers follow take no messages
    until these have said what was sequenced since, which comes back from them. `mimids group show` says whom a group
    waits for; `mimids group release` ends the wait for one that will never answer.
    """
    config = load_config(config_file)
    answer: JsonObject = or_refused(lambda: _restore(config, file, replace=replace, quiet=as_json))
    show("restore", answer, as_json=as_json)
    if not as_json:
        click.echo("Devices have to upload KeyPackages again: `mimids check` counts those that have not.")


def _restore(config: Config, file: Path, *, replace: bool, quiet: bool) -> JsonObject:
    try:
        with seconds(f"reading {file}", quiet=quiet):
            moment = backups.check(file)
    except NotABackup as error:
        raise CommandRefused(str(error)) from error
    path = config.database
    if path.exists() and not replace:
        raise CommandRefused(f"there is a database {path}", "--replace puts it aside, under another name")
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock.hold(config.data_dir):
        coming = path.with_name(f".{path.name}.restored")
        try:
            with bar("copying", quiet=quiet) as progress:
                _copy(file, coming, progress)
            with seconds("migrating", quiet=quiet):
                migrate.migrate(coming)
            retired, key_id, held = write_here(coming, lambda tx: _make_present(tx, config))
            aside = _put_aside(path) if path.exists() else None
            coming.rename(path)
        finally:
            coming.unlink(missing_ok=True)
    return {
        "database": str(path),
        "made_at": moment,
        "key_packages_dropped": retired,
        "ohttp_key_id": key_id,
        "groups_held": held,
        "put_aside": None if aside is None else str(aside),
    }


def _copy(source: Path, target: Path, progress: Progress) -> None:
    """Copy a file that nobody uses, for its owner only."""
    target.unlink(missing_ok=True)
    total = source.stat().st_size
    with source.open("rb") as reading, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        while piece := reading.read(_PIECE_OCTETS):
            out.write(piece)
            progress(reading.tell(), total)


def _make_present(tx: Tx, config: Config) -> tuple[int, int, int]:
    """Make up for what the backup cannot know; return what was dropped, the new key, and groups held.

    (semantics: limits-and-retention)
    """
    context = Context.of(config, _now())
    schedule = Schedule(config.ohttp.rotate_days * DAY_SECONDS, config.ohttp.grace_days * DAY_SECONDS)
    retired = key_packages.retire_unclaimed(tx, context.now)
    key_id = gateway_keys.rotate(tx, schedule, context.operator_key, context.now // 1000, retire_others=True)
    held = recoveries.begin(tx, config.provider, {*config.federation.allow, *config.providers})
    arrangements.skip_revisions(tx)
    backups.unmark(tx)
    return retired, key_id, held


def _put_aside(path: Path) -> Path:
    """Rename a database that nobody uses, its write-ahead log folded into it; return its new name."""
    connect(path).close()  # the last connection takes the log down
    aside = path.with_name(f"{path.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    path.rename(aside)
    return aside


def _now() -> Milliseconds:
    return Milliseconds(time.time_ns() // 1_000_000)
