"""How a command finds its provider: by `--config`, `MIMIDS_CONFIG`, or a file in the working directory."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from mimids.cli.refusals import CommandRefused, or_refused
from mimids.config import Config, load
from mimids.store import backup, move
from mimids.store.engine import access

F = TypeVar("F", bound=Callable[..., Any] | click.Command)

CONFIG_FILE: Final = "mimids.toml"
DEV_DIRECTORY: Final = Path("mimids-dev")
SOCKET_PATH_OCTETS: Final = 104 if sys.platform == "darwin" else 108  # with the terminating zero
CONFIG_VARIABLE: Final = "MIMIDS_CONFIG"
_PLACES: Final = (Path(CONFIG_FILE), DEV_DIRECTORY / CONFIG_FILE)
_BEFORE: Final = "mimids.config_before"  # in click's meta: the file that was named before the command


def _config_after(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Return the file of `--config` after the command, else of `--config` before it, else of the environment."""
    if ctx.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE:
        return value
    before: Path | None = ctx.meta.get(_BEFORE)
    return before or value


def _config_before(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.meta[_BEFORE] = value


_config = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar=CONFIG_VARIABLE,
    callback=_config_after,
    help=f"Configuration file; default: ${CONFIG_VARIABLE}, else ./{_PLACES[0]}, else ./{_PLACES[1]}.",
)
_config_of_group = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_config_before,
    expose_value=False,
    help="Configuration file; --config may also follow the command.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def config_option(command: F) -> F:
    """Add the option `--config FILE` to a command."""
    return _config(command)


def config_option_of_group(group: F) -> F:
    """Add the option `--config FILE` to a group of commands; it applies to the command that follows."""
    return _config_of_group(group)


def refuse_config_before(ctx: click.Context, command: click.Command) -> None:
    """Raise `UsageError` if a configuration was named before a command that takes none."""
    if _BEFORE in ctx.meta and all(parameter.name != "config_file" for parameter in command.params):
        raise click.UsageError(f"`mimids {command.name}` takes no --config", ctx)


def json_option(command: F) -> F:
    """Add the option `--json` to a command."""
    return _json(command)


def example(*lines: str) -> Callable[[click.Command], click.Command]:
    """Add an example at the end of a command's help; the backspace stops click from wrapping it."""

    def add(command: click.Command) -> click.Command:
        command.help = "\n".join([cleandoc(command.help or ""), "", "\b", "Example:", *(f"  {line}" for line in lines)])
        return command

    return add


def program() -> str:
    """Return the quoted command that starts this program again: "mimids" if a shell finds it, or as it was started."""
    started, found = Path(sys.argv[0]), shutil.which("mimids")
    if started.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m mimids"
    if started.name != "mimids" or not started.exists() or (found is not None and Path(found).samefile(started)):
        return "mimids"
    return shlex.quote(str(started.absolute()))


def find_config(given: Path | None) -> Path:
    """Return the configuration file to use; raise `CommandRefused` if there is none."""
    if given is not None:
        return given
    for place in _PLACES:
        if place.is_file():
            return place
    raise CommandRefused(
        f"no configuration found: there is neither {' nor '.join(map(str, _PLACES))} in {os.getcwd()}",
        f"name it with --config FILE or in the environment variable {CONFIG_VARIABLE}, make one with"
        " `mimids init DIR`, or try `mimids serve --dev`",
    )


def load_config(given: Path | None) -> Config:
    """Return the configuration; raise `CommandRefused` if it cannot be read."""
    try:
        config: Config = or_refused(lambda: load(find_config(given)))
    except CommandRefused as refused:
        if given is not None and is_of_environment():
            raise CommandRefused(f"{refused.message} ({CONFIG_VARIABLE} names it)", refused.fix) from refused
        raise
    return config


def is_of_environment() -> bool:
    """Tell whether only the environment names the configuration of the command that runs."""
    ctx = click.get_current_context(silent=True)
    return (
        ctx is not None
        and ctx.get_parameter_source("config_file") is ParameterSource.ENVIRONMENT
        and _BEFORE not in ctx.meta
    )


def require_database(config: Config, *, moving: bool = False) -> None:
    """Raise `CommandRefused` unless the database exists and this version can use it.

    A database that is being moved can only be used by the move itself (`moving`).
    """
    place, path = config.place, access.name_of(config.place)
    if not or_refused(lambda: access.exists(place)):
        raise CommandRefused(f"the database {path} does not exist", "`mimids migrate` creates it")
    waiting = or_refused(lambda: access.pending(place))
    if waiting:
        raise CommandRefused(
            f"the database {path} is of an older version: {len(waiting)} migrations have to run",
            "make a backup, then run `mimids migrate`",
        )
    refuse_backup(place)
    unused = None if moving else move.why_not_used(place)
    if unused is not None:
        raise CommandRefused(unused.what, unused.fix)


def socket_fits(path: Path) -> bool:
    """Tell whether the path is short enough for a Unix socket; the kernel has a limit."""
    return len(os.fsencode(path.absolute())) < SOCKET_PATH_OCTETS


def refuse_backup(path: access.Place) -> None:
    """Raise `CommandRefused` if the database is a backup that was only copied here."""
    if backup.made_at(path) is not None:
        raise CommandRefused(
            f"{access.name_of(path)} is a backup: using it unchanged would hand out KeyPackages and counters twice",
            "run `mimids restore BACKUP`, which turns a backup into a usable database",
        )
