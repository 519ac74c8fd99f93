"""Which commands a page offers, found in the table of commands by their nouns and arguments.

A page knows some arguments: the page of a user knows `user`, a row of the user's devices also knows `name`. It offers
the commands that need no other arguments, and commands whose first argument is known. A command that is added to the
table is offered without a change here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import quote, urlencode

from mimids.ds.commands import COMMANDS, Command, Effect
from mimids.http.console.parts import Hyperlink

_ADDING: Final = (
    "add",
    "allow",
    "issue",
    "mute",
)  # rows do not offer these: their arguments name something new, or they may be run several times
_GRAVE: Final = ("user remove", "device remove", "provider remove", "suspend", "delete", "terminate", "drop", "revoke",
                 "forget", "ban add")  # fmt: skip


def form_path(command: Command) -> str:
    """Return the path of a command's form."""
    return f"/console/commands/{quote(command.name.replace(' ', '/'))}"


def is_grave(command: Command) -> bool:
    """Tell whether a command removes something, or ends something that others use."""
    return Effect.REMOVED in command.effects or command.name.endswith(_GRAVE)


def offer(command: Command, known: Mapping[str, str], back: str, text: str | None = None) -> Hyperlink:
    """Return the link to a command's form with the arguments that are known; `back` is the page that offers it."""
    names = {argument.name for argument in command.arguments}
    given = {name: value for name, value in known.items() if name in names}
    return Hyperlink(
        text or command.name.replace("-", " "),
        f"{form_path(command)}?{urlencode(given | {'back': back})}",
        act=True,
        grave=is_grave(command),
    )


def named(names: Collection[str], back: str) -> list[Hyperlink]:
    """Return the commands with these names, in the order of the table; ignore a name that no command has."""
    return [offer(each, {}, back) for each in COMMANDS if each.name in names]


def of_row(noun: str, known: Mapping[str, str], fixed: Collection[str], back: str) -> list[Hyperlink]:
    """Return the commands of a noun that a row of a table offers: those that need only the known arguments.

    `fixed` has the known arguments that belong to the whole page. A command that needs only these `fixed` arguments is
    offered by the page, not by the row.
    """
    return [offer(each, known, back, _verb(each)) for each in COMMANDS if _is_of_row(each, noun, known, fixed)]


def of_page(
    known: Mapping[str, str],
    of_rows: Collection[tuple[str, Collection[str]]],
    back: str,
    *,
    without: Collection[str] = (),
) -> list[Hyperlink]:
    """Return the commands whose first argument is known.

    Leave out the commands in `without`, and those that rows of the page offer. `of_rows` has, for each table whose rows
    offer commands, the noun and the arguments that a row knows.
    """
    offered = []
    for each in COMMANDS:
        if not each.writes or not each.arguments or each.arguments[0].name not in known or each.name in without:
            continue
        if not any(_is_of_row(each, noun, dict.fromkeys(names, ""), known) for noun, names in of_rows):
            offered.append(offer(each, known, back))
    return offered


def _is_of_row(command: Command, noun: str, known: Mapping[str, str], fixed: Collection[str]) -> bool:
    if not command.writes or command.name.partition(" ")[0] != noun or _verb(command) in _ADDING:
        return False
    required = {argument.name for argument in command.arguments if argument.required}
    return bool(required) and required <= known.keys() and not required <= set(fixed)


def _verb(command: Command) -> str:
    return command.name.partition(" ")[2].replace("-", " ") or command.name
