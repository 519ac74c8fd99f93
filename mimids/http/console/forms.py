"""The form of a command: a field for each argument, and the arguments that a filled form stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

import attrs

from mimids.ds.commands import Argument, ArgumentKind, Command, JsonObject
from mimids.ds.commands.times import time_from_text
from mimids.errors import Malformed
from mimids.values import Milliseconds

_HINTS: Final[Mapping[ArgumentKind, str]] = {
    ArgumentKind.TIME: "90d, 12h, 30m, or a date such as 2027-01-31",
    ArgumentKind.NAMES: "one on each line",
    ArgumentKind.DOCUMENT: "a JSON object",
}
_LINES: Final = (ArgumentKind.NAMES, ArgumentKind.DOCUMENT)  # these kinds have a field of several lines


@attrs.frozen
class FormField:
    """One field; `kind` is "text", "number", "check", "choice" or "lines"."""

    name: str
    kind: str
    help: str
    value: str
    required: bool
    choices: tuple[str, ...] = ()
    hint: str = ""

    @property
    def label(self) -> str:
        """Return the name as words."""
        return self.name.replace("_", " ")


def fields(command: Command, filled: Mapping[str, str]) -> list[FormField]:
    """Return the fields of a command, with what was filled in."""
    return [_field(argument, filled.get(argument.name, "")) for argument in command.arguments]


def question(command: Command, filled: Mapping[str, str]) -> str:
    """Return the question to the operator before a command runs, with the filled-in arguments; usually it is empty."""
    return re.sub(r"\{(\w+)\}", lambda found: filled.get(found[1]) or f"this {found[1]}", command.asks)


def _field(argument: Argument, value: str) -> FormField:
    kind = "text"
    if argument.choices:
        kind = "choice"
    elif argument.kind is ArgumentKind.FLAG:
        kind = "check"
    elif argument.kind is ArgumentKind.NUMBER:
        kind = "number"
    elif argument.kind in _LINES:
        kind = "lines"
    required = argument.required and argument.unless is None
    hint = _HINTS.get(argument.kind, "")
    return FormField(argument.name, kind, argument.help, value, required, argument.choices, hint)


def arguments(command: Command, filled: Mapping[str, str], now: Milliseconds) -> JsonObject:
    """Return the arguments of a filled form, without empty fields; raise `Malformed` if one of them is not valid."""
    given = {}
    for argument in command.arguments:
        text = filled.get(argument.name, "").strip()
        if text:
            given[argument.name] = _value(argument, text, now)
    return command.given(given)


def _value(argument: Argument, text: str, now: Milliseconds) -> object:
    try:
        if argument.kind is ArgumentKind.NUMBER:
            # for a text with too many digits: a number that the check of the range refuses
            return int(text) if len(text) <= len(str(1 << 64)) else 1 << 64
        if argument.kind is ArgumentKind.TIME:
            return time_from_text(text, now)
        if argument.kind is ArgumentKind.DOCUMENT:
            return json.loads(text)
    except (ValueError, RecursionError):
        expected = _HINTS.get(argument.kind, argument.kind.value)
        raise Malformed(f"{argument.name}: expected {expected}") from None
    if argument.kind is ArgumentKind.FLAG:
        return text == "yes"
    if argument.kind is ArgumentKind.NAMES:
        return text.split()
    return text
