"""The commands `mimids NOUN VERB`, made from the table of commands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import click

from mimids.cli import running
from mimids.cli.places import config_option, config_option_of_group, json_option, load_config
from mimids.cli.refusals import CommandRefused
from mimids.cli.showing import say, show
from mimids.ds.commands import COMMANDS, Argument, ArgumentKind, Command
from mimids.ds.commands.times import time_from_text
from mimids.printable import printable
from mimids.values import Milliseconds

_NOUNS: Final = {
    "user": "Users of this provider.",
    "device": "Devices of its users.",
    "token": "Bearer tokens, which allow others to fetch a user's KeyPackages.",
    "signature-key": "Keys with which this provider proposes to remove the leaves of removed devices.",
    "ohttp": "Keys of the OHTTP gateway.",
    "group": "Groups that this provider hosts or follows.",
    "welcome": "Welcomes that are not delivered yet.",
    "provider": "Other providers.",
    "ban": "Banned users and providers.",
    "limit": "Rate limits, and muted users.",
    "report": "Reports about users and providers.",
    "clock": "The time by which retention deletes data.",
}


class _Time(click.ParamType[int]):
    """A time: a span from now, or a date."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return time_from_text(value, Milliseconds(int(time.time() * 1000)))
        except ValueError:
            self.fail(f"{value!r} is not a time; write 90d, 12h, 30m, or a date such as 2027-01-31", param, ctx)


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
    if argument.kind is ArgumentKind.NAMES:
        return click.Option(names, multiple=True, help=f"{text[:-1]}; repeat the option for each value.")
    if argument.kind is ArgumentKind.FLAG:
        return click.Option(names, is_flag=True, default=None, help=text)
    return click.Option(names, type=kind, required=argument.required, help=text)


def _help(command: Command) -> str:
    """Return the help text: what the command does, its arguments, an example."""
    positional = [(argument.name.upper(), argument.help) for argument in command.arguments if argument.flag is None]
    lines = [command.summary, ""]
    if positional:
        width = max(10, *(len(name) for name, _ in positional))
        lines += ["\b", *(f"{name:<{width}} {text}" for name, text in positional), ""]
    return "\n".join([*lines, "\b", "Example:", f"  {command.example}"])


def _ask(question: str) -> None:
    """Raise `CommandRefused` unless a person says yes."""
    try:
        agreed = click.confirm(printable(question), err=True)
    except click.Abort:
        say(err=True)
        raise CommandRefused("nobody answered, so nothing was done", "in a script, add `--yes`") from None
    if not agreed:
        raise CommandRefused("nothing was done")


def _click_command(command: Command) -> click.Command:
    def call(config_file: Path | None, as_json: bool, yes: bool = True, **arguments: Any) -> None:
        config = load_config(config_file)
        given = {name: value for name, value in arguments.items() if value not in (None, ())}
        if not yes:
            _ask(command.asks.format(**given))
        show(command.name, running.run(config, command, given), as_json=as_json)

    made = click.Command(
        command.name.rpartition(" ")[2],
        callback=call,
        params=[_parameter(argument) for argument in command.arguments],
        help=_help(command),
        short_help=command.summary,
    )
    if command.asks:
        made.params.append(click.Option(["--yes"], is_flag=True, help="Do not ask first."))
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
            groups[noun] = config_option_of_group(click.Group(noun, help=_NOUNS[noun]))
            to.add_command(groups[noun])
        groups[noun].add_command(_click_command(command))
