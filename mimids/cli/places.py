"""How a command finds its provider: by `--config`, `MIMIDS_CONFIG`, or a file in the working directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from mimids.cli.refusals import CommandRefused, or_refused
from mimids.config import Config, load
from mimids.store import backup
from mimids.store.engine import migrate

F = TypeVar("F", bound=Callable[..., Any] | click.Command)

CONFIG_FILE: Final = "mimids.toml"
DEV_DIRECTORY: Final = Path("mimids-dev")
SOCKET_PATH_OCTETS: Final = 104 if sys.platform == "darwin" else 108  # with the terminating zero
_PLACES: Final = (Path(CONFIG_FILE), DEV_DIRECTORY / CONFIG_FILE)

_config = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="MIMIDS_CONFIG",
    help=f"Configuration file; default: ./{_PLACES[0]}, else ./{_PLACES[1]}.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def config_option(command: F) -> F:
    """Add the option `--config FILE` to a command."""
    return _config(command)


def json_option(command: F) -> F:
    """Add the option `--json` to a command."""
    return _json(command)


def example(*lines: str) -> Callable[[click.Command], click.Command]:
    """Add an example at the end of a command's help; the backspace stops click from wrapping it."""

    def add(command: click.Command) -> click.Command:
        command.help = "\n".join([cleandoc(command.help or ""), "", "\b", "Example:", *(f"  {line}" for line in lines)])
        return command

    return add


def find_config(given: Path | None) -> Path:
    """Return the configuration file to use; raise `CommandRefused` if there is none."""
    if given is not None:
        return given
    for place in _PLACES:
        if place.is_file():
            return place
    raise CommandRefused(
        f"no configuration found: there is neither {' nor '.join(map(str, _PLACES))} in {os.getcwd()}",
        "name it with --config FILE, make one with `mimids init DIR`, or try `mimids serve --dev`",
    )


def load_config(given: Path | None) -> Config:
    """Return the configuration; raise `CommandRefused` if it cannot be read."""
    config: Config = or_refused(lambda: load(find_config(given)))
    return config


def require_database(config: Config) -> None:
    """Raise `CommandRefused` unless the database exists and this version can use it."""
    path = config.database
    if not path.exists():
        raise CommandRefused(f"the database {path} does not exist", "`mimids migrate` creates it")
    waiting = or_refused(lambda: migrate.pending(path))
    if waiting:
        raise CommandRefused(
            f"the database {path} is of an older version: {len(waiting)} migrations have to run",
            "make a backup, then run `mimids migrate`",
        )
    refuse_backup(path)


def socket_fits(path: Path) -> bool:
    """Tell whether the path is short enough for a Unix socket; the kernel has a limit."""
    return len(os.fsencode(path.absolute())) < SOCKET_PATH_OCTETS


def refuse_backup(path: Path) -> None:
    """Raise `CommandRefused` if the database is a backup that was only copied here."""
    if backup.made_at(path) is not None:
        raise CommandRefused(
            f"{path} is a backup: using it unchanged would hand out KeyPackages and counters twice",
            "run `mimids restore BACKUP`, which turns a backup into a usable database",
        )
