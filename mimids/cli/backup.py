"""`mimids backup` and `mimids restore`."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import attrs
import click

from mimids.cli.owners import make_data_dir
from mimids.cli.places import config_option, example, json_option, load_config, require_database
from mimids.cli.progress import Progress, bar, elapsed
from mimids.cli.refusals import CommandRefused, or_refused
from mimids.cli.showing import say, show
from mimids.config import Config
from mimids.ds.commands import Context, JsonObject
from mimids.ds.commands.preparing import Prepared, prepare
from mimids.errors import MimiError
from mimids.store import acknowledged, audit, ohttp, restores
from mimids.store import backup as backups
from mimids.store.backup import NotABackup
from mimids.store.engine import lock, migrate, token_places
from mimids.store.engine.migrate import SchemaRefused
from mimids.store.engine.sqlite import connect, files_of, read_here, write_here
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds

_PIECE_OCTETS = 1024 * 1024
_NAME_TIME: Final = "%Y%m%dT%H%M%SZ"  # the time in the name of a copy; sorting names sorts by time


@example("mimids backup /var/backups/mimids-monday.sqlite3", "mimids backup /var/backups/mimids --keep 14")
@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="Keep the newest NUMBER copies in the directory FILE; delete older copies that this command has named.",
)
@config_option
@json_option
def backup(file: Path, keep: int | None, config_file: Path | None, as_json: bool) -> None:
    """Copy the database to FILE; the server may keep running. If FILE is a directory, name the copy by the time.

    The copy is consistent. It does not contain the configuration, the certificates and the key file: copy those files
    too, to another place. The copy shows who knows whom, so only its owner can read it. It contains no private key of
    the gateway.
    """
    config = load_config(config_file)
    _require_file(config)
    require_database(config)
    if keep is not None and not file.is_dir():
        raise CommandRefused(f"{file} is not a directory", "create it: --keep counts the copies in a directory")
    directory = file if file.is_dir() else None
    if directory is not None:
        file = directory / f"{config.provider}-{datetime.now(UTC):{_NAME_TIME}}.sqlite3"
    if file.exists():
        raise CommandRefused(f"the file {file} already exists", "choose another name: a backup never overwrites a file")
    if not file.parent.is_dir():
        raise CommandRefused(f"the directory {file.parent} does not exist", "create it, or choose another directory")
    with bar("copying", quiet=as_json) as progress:
        or_refused(lambda: _copy_database(config, file, progress))
    if config.data_dir.stat().st_uid == os.geteuid():  # the server must be able to write the file, too
        backups.note(config.database, _now())
    answer: JsonObject = {"backup": str(file), "octets": file.stat().st_size}
    if directory is not None and keep is not None:
        answer["deleted"] = len(_delete_old(directory, config, keep))
    show("backup", answer, as_json=as_json)


def _require_file(config: Config) -> None:
    """Raise `CommandRefused` if the provider is stored in PostgreSQL."""
    if config.store.url is not None:
        raise CommandRefused(
            "this command is for SQLite files, and the provider is stored in PostgreSQL",
            "use PostgreSQL's own backups: pg_basebackup, with the write-ahead log archived;"
            " after restoring one, run `mimids restored --set-back`",
        )


def _delete_old(directory: Path, config: Config, keep: int) -> list[Path]:
    """Delete all but the newest `keep` copies that `backup` has named; return the deleted ones."""
    pattern = re.compile(re.escape(config.provider) + r"-\d{8}T\d{6}Z\.sqlite3")
    old = sorted(path for path in directory.iterdir() if pattern.fullmatch(path.name))[:-keep]
    for path in old:
        path.unlink()
    return old


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
@click.option("--replace", is_flag=True, help="Replace the present database, and keep it under another name.")
@config_option
@json_option
def restore(file: Path, replace: bool, config_file: Path | None, as_json: bool) -> None:
    """Replace the database by the backup FILE; stop the server first.

    A backup does not know what happened after it. So `restore` drops all KeyPackages, because they may have been handed
    out since (devices upload new ones), and makes a new gateway key. Groups hosted here that other providers follow
    accept no messages until these providers have sent back what was sequenced since the backup. `mimids group show`
    names the providers that a group waits for, and `mimids group release` ends the wait for a provider that does not
    answer.

    With --replace, the command takes over removals, revocations, bans and acknowledged Welcomes from the replaced
    database, if it can read that database. Without --replace, `mimids restored` shows which devices and tokens may be
    valid again.
    """
    config = load_config(config_file)
    _require_file(config)
    answer: JsonObject = or_refused(lambda: _restore(config, file, replace=replace, quiet=as_json))
    show("restore", answer, as_json=as_json)
    if not as_json:
        say("Devices have to upload new KeyPackages: `mimids check` counts the devices that have none.")
        if answer["put_aside_has_keys"]:
            say(f"{answer['put_aside']} is damaged, so it still has private keys of the gateway: delete it soon")
        if answer["carried_over"] is None:
            say("Removed devices and revoked tokens may be valid again: `mimids restored` shows them.")


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
    make_data_dir(config)
    with lock.hold(config.data_dir):
        temporary = path.with_name(f".{path.name}.restored")
        try:
            with bar("copying", quiet=quiet) as progress:
                _copy(file, temporary, progress)
            with elapsed("migrating", quiet=quiet):
                migrate.migrate(temporary)
            with elapsed("preparing", quiet=quiet), _newer(path, temporary, moment) as newer:
                prepared = write_here(temporary, lambda tx: _prepare(tx, config, moment, newer))
            aside, has_keys = _put_aside(path) if path.exists() else (None, False)
            acknowledged.forget(path)  # a warning that the copy is older would tell the operator nothing new
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    return {
        "database": str(path),
        "made_at": moment,
        "key_packages_dropped": prepared.key_packages_dropped,
        "ohttp_key_id": prepared.ohttp_key_id,
        "groups_held": prepared.groups_held,
        "put_aside": None if aside is None else str(aside),
        "put_aside_has_keys": has_keys,
        "carried_over": None if prepared.carried_over is None else attrs.asdict(prepared.carried_over),
    }


def _copy(source: Path, target: Path, progress: Progress) -> None:
    """Copy a file that is not in use; only the owner may read the copy."""
    target.unlink(missing_ok=True)
    total = source.stat().st_size
    with source.open("rb") as reading, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        while piece := reading.read(_PIECE_OCTETS):
            out.write(piece)
            progress(reading.tell(), total)


def _prepare(tx: Tx, config: Config, moment: Milliseconds, newer: Tx | None) -> Prepared:
    """Prepare a copy for use; `newer` is the database that the copy replaces, if that can be used."""
    context = Context.of(config, _now())
    prepared = prepare(tx, context, moment, newer)
    backups.unmark(tx)
    audit.record(tx, context.now, context.actor, "restore", json.dumps({"made_at": moment}))
    return prepared


@contextmanager
def _newer(path: Path, copy: Path, moment: Milliseconds) -> Iterator[Tx | None]:
    """Yield the database that is replaced, or None.

    None means that it cannot be read, is of an older version, or is not a later state of the database in the backup.
    """
    with ExitStack() as opened:
        newer: Tx | None = None
        try:
            if path.exists() and not migrate.pending(path):
                tx = opened.enter_context(read_here(path))
                with read_here(copy) as backup_tx:
                    related = restores.descends(tx, backup_tx, moment)
                if related and tx.all("PRAGMA quick_check(1)") == [("ok",)]:
                    newer = tx
        except (sqlite3.Error, MimiError, SchemaRefused):
            pass  # a damaged database is the usual reason for a restore
        yield newer


def _put_aside(path: Path) -> tuple[Path, bool]:
    """Rename a database that is not in use, after merging its write-ahead log if possible.

    The gateway's private keys in it are overwritten: nothing needs them any more. Returns the new name, and whether the
    keys are still there because the database is damaged.
    """
    has_keys = True
    with suppress(sqlite3.Error), closing(connect(path)) as connection:  # a damaged database keeps its log
        connection.execute("PRAGMA secure_delete=ON")
        ohttp.blank_keys(Tx(connection))
        token_places.rewrite_all(Tx(connection))
        has_keys = False
    # Closing the last connection merged the log.
    aside = path.with_name(f"{path.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    for file in files_of(path):
        if file.exists():
            file.rename(aside.with_name(aside.name + file.name.removeprefix(path.name)))
    return aside, has_keys


def _now() -> Milliseconds:
    return Milliseconds(time.time_ns() // 1_000_000)
