"""The commands `mimids NOUN VERB`, made from the table of commands."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from mimids.cli import running
from mimids.cli.places import config_option, json_option, load_config
from mimids.cli.showing import show
from mimids.ds.commands import COMMANDS, Argument, ArgumentKind, Command

_SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400}
_NOUNS: Final = {
    "user": "Users of this provider.",
    "device": "Devices of its users.",
    "token": "Bearer tokens, which allow others to fetch a user's KeyPackages.",
    "ohttp": "Keys of the OHTTP gateway.",
    "group": "Groups that this provider hosts or follows.",
    "provider": "Other providers.",
    "ban": "Banned users and providers.",
    "limit": "Rate limits, and muted users.",
    "report": "Reports about users and providers.",
}


class _Time(click.ParamType[int]):
    """A time: a span from now, or a date."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        span = re.fullmatch(r"([0-9]{1,6})([mhd])", value)
        if span:
            return (int(time.time()) + int(span[1]) * _SECONDS[span[2]]) * 1000
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time; write 90d, 12h, 30m, or a date such as 2027-01-31", param, ctx)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


_TYPES: Final[dict[ArgumentKind, click.ParamType[Any]]] = {
    ArgumentKind.TEXT: click.STRING,
    ArgumentKind.NUMBER: click.INT,
    ArgumentKind.TIME: _Time(),
}


def _parameter(argument: Argument) -> click.Parameter:
    kind = click.Choice(argument.choices) if argument.choices else _TYPES.get(argument.kind)
    if argument.flag is None:
        return click.Argument([argument.name], type=kind, required=argument.required)
    names, text = [argument.flag, argument.name], argument.help[:1].upper() + argument.help[1:] + "."
    if argument.kind is ArgumentKind.FLAG:
        return click.Option(names, is_flag=True, default=None, help=text)
    return click.Option(names, type=kind, required=argument.required, help=text)


def _help(command: Command) -> str:
    """Return the help text: what the command does, its arguments, an example."""
    positional = [(argument.name.upper(), argument.help) for argument in command.arguments if argument.flag is None]
    lines = [command.summary, ""]
    if positional:
        lines += ["\b", *(f"{name:<10} {text}" for name, text in positional), ""]
    return "\n".join([*lines, "\b", "Example:", f"  {command.example}"])


def _click_command(command: Command) -> click.Command:
    def call(config_file: Path | None, as_json: bool, **arguments: Any) -> None:
        config = load_config(config_file)
        given = {name: value for name, value in arguments.items() if value is not None}
        show(command.name, running.run(config, command, given), as_json=as_json)

    made = click.Command(
        command.name.rpartition(" ")[2],
        callback=call,
        params=[_parameter(argument) for argument in command.arguments],
        help=_help(command),
        short_help=command.summary,
    )
    return json_option(config_option(made))


def add_nouns(to: click.Group) -> None:
    """Add every command of the table, each verb below its noun."""
    groups: dict[str, click.Group] = {}
    for command in COMMANDS:
        noun, _, verb = command.name.partition(" ")
        if not verb:
            to.add_command(_click_command(command))
            continue
        if noun not in groups:
            groups[noun] = click.Group(noun, help=_NOUNS[noun])
            to.add_command(groups[noun])
        groups[noun].add_command(_click_command(command))
