"""`mimids move`: from a SQLite file to PostgreSQL, and back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click

from mimids.cli.owners import make_data_dir, require_owner
from mimids.cli.places import config_option, example, json_option, load_config, program, require_database
from mimids.cli.progress import bar
from mimids.cli.refusals import CommandRefused, or_refused
from mimids.cli.showing import say, show
from mimids.config import Config, ConfigError, parse
from mimids.ds.commands import JsonObject
from mimids.store import acknowledged
from mimids.store import move as moving
from mimids.store.damage import why_not_served
from mimids.store.engine import lock
from mimids.store.engine.access import Place, exists, migrate, name_of, open_tables, pending
from mimids.store.engine.tables import EndFailed

SQLITE: Final = "sqlite"  # as the target: the file in data_dir
AGAIN: Final = "correct this and run the same command again: it goes on from the rows that were already copied"


@example('mimids move --to "postgresql://mimids@db1/mimids?sslmode=verify-full"', "mimids move --to sqlite")
@click.command()
@click.option("--to", metavar="URL", help="An empty database in PostgreSQL, or `sqlite`: the file in data_dir.")
@click.option("--cancel", is_flag=True, help="Give up a move that has not ended: serve the present database again.")
@config_option
@json_option
def move(to: str | None, cancel: bool, config_file: Path | None, as_json: bool) -> None:
    """Copy all data to another database: from SQLite to PostgreSQL, or back. Stop all servers first.

    The configuration names the present database. Everything is copied with its ids, keys and bearer tokens, and
    compared afterwards, table by table. If the command is interrupted, run it again: it goes on where it was. When it
    begins, it marks the present database, so that no server uses it. At the end, name the new database in the
    configuration.
    """
    config = load_config(config_file)
    if (to is None) != cancel:
        raise click.UsageError("give either --to or --cancel")
    require_database(config, moving=True)
    if isinstance(config.place, Path):
        or_refused(lambda: require_owner(config))
    if to is None:
        _or_refused(lambda: _cancel(config.place))
        show("move", {"database": name_of(config.place), "cancelled": True}, as_json=as_json)
        return
    target = _target(config, to)
    answer: JsonObject = _or_refused(lambda: _move(config, target, quiet=as_json))
    show("move", answer, as_json=as_json)
    if not as_json:
        setting = f'[store] url = "{target}"' if isinstance(target, str) else "no url in [store]"
        say(f"Write this into the configuration: {setting}", f"Then: {program()} check, and {program()} serve")
        say(f"{answer['from']} keeps everything but the gateway's keys: delete it once the new database has a backup")


def _target(config: Config, to: str) -> Place:
    """Return the other database; raise `CommandRefused` if it cannot be one end of the move."""
    if to == SQLITE:
        target: Place = config.database
    else:
        try:
            target = str(parse({"provider": config.provider, "store": {"url": to}}, config.data_dir).store.url)
        except ConfigError as error:
            raise CommandRefused(f"--to {to} is not a database", "\n".join(error.faults)) from error
    if isinstance(target, Path) == isinstance(config.place, Path):
        raise CommandRefused(
            f"the data is in {name_of(config.place)}, which is of the same kind as --to {to}",
            "copy files with `mimids backup` and `mimids restore`, and databases in PostgreSQL with its own tools",
        )
    return target


def _move(config: Config, target: Place, *, quiet: bool) -> JsonObject:
    source = config.place
    fault = why_not_served(source)
    if fault is not None and moving.why_not_used(source) is None:
        raise CommandRefused(fault.what, fault.fix)
    if isinstance(target, Path):
        make_data_dir(config)
    with ExitStack() as stack:
        here = stack.enter_context(open_tables(source))
        _make(config, target)
        there = stack.enter_context(open_tables(target))
        names = name_of(source), name_of(target)
        moved = moving.move(
            here, there, names, copying=bar("copying", quiet=quiet), comparing=bar("comparing", quiet=quiet)
        )
    if isinstance(target, Path):
        acknowledged.forget(target)
    return {"from": names[0], "to": names[1], "tables": moved.tables, "rows": moved.rows}


def _make(config: Config, target: Place) -> None:
    """Make the tables of the target if it has none; raise `CommandRefused` if they are of another version."""
    if exists(target):
        if pending(target):
            raise CommandRefused(f"{name_of(target)} is of an older version", "name an empty database")
        return
    if isinstance(target, Path):
        with lock.hold(config.data_dir):
            migrate(target)
    else:
        migrate(target)


def _cancel(source: Place) -> None:
    with open_tables(source) as tables:
        moving.cancel(tables, name_of(source))


def _or_refused(do: Callable[[], Any]) -> Any:
    try:
        return or_refused(do)
    except moving.MoveRefused as refused:
        raise CommandRefused(refused.cause.what, refused.cause.fix) from refused
    except EndFailed as failed:
        raise CommandRefused(str(failed), AGAIN) from failed
