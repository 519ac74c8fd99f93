"""Where a command finds its provider: `--config`, `MIMIDS_CONFIG`, or what lies in the working directory."""

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
SOCKET_PATH_OCTETS: Final = 104 if sys.platform == "darwin" else 108  # with the zero at its end
_PLACES: Final = (Path(CONFIG_FILE), DEV_DIRECTORY / CONFIG_FILE)

_config = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="MIMIDS_CONFIG",
    help=f"Configuration; default: ./{_PLACES[0]}, else ./{_PLACES[1]}.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def config_option(command: F) -> F:
    """Give a command `--config FILE`."""
    return _config(command)


def json_option(command: F) -> F:
    """Give a command `--json`."""
    return _json(command)


def example(*lines: str) -> Callable[[click.Command], click.Command]:
    """Let a command's help end with an example, which click must not re-flow: that is what a backspace asks for."""

    def add(command: click.Command) -> click.Command:
        command.help = "\n".join([cleandoc(command.help or ""), "", "\b", "Example:", *(f"  {line}" for line in lines)])
        return command

    return add


def find_config(given: Path | None) -> Path:
    """Return the configuration file that is meant; raise `CommandRefused` if there is none."""
    if given is not None:
        return given
    for place in _PLACES:
        if place.is_file():
            return place
    raise CommandRefused(
        f"no configuration: there is no {' and no '.join(map(str, _PLACES))} in {os.getcwd()}",
        "name one with --config FILE, write one with `mimids init DIR`, or try `mimids serve --dev`",
    )


def load_config(given: Path | None) -> Config:
    """Return the configuration; raise `CommandRefused`."""
    config: Config = or_refused(lambda: load(find_config(given)))
    return config


def require_database(config: Config) -> None:
    """Raise `CommandRefused` unless the database is there and this code may use it."""
    path = config.database
    if not path.exists():
        raise CommandRefused(f"there is no database {path}", "`mimids migrate` makes it")
    waiting = or_refused(lambda: migrate.pending(path))
    if waiting:
        raise CommandRefused(f"{path} is older than this mimids", "copy the file, then `mimids migrate` brings it up")
    require_present(path)


def socket_fits(path: Path) -> bool:
    """Tell whether a Unix socket may have this path: the kernel takes no longer ones."""
    return len(os.fsencode(path.absolute())) < SOCKET_PATH_OCTETS


def require_present(path: Path) -> None:
    """Raise `CommandRefused` for a backup that was copied into place."""
    if backup.made_at(path) is not None:
        raise CommandRefused(f"{path} is a backup, and a backup is a past", "`mimids restore` makes a present of it")
