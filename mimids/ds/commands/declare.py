"""A command as data: its name, its arguments, the function that runs in a transaction, and an example of its answer.

Each command is used twice: `mimids NOUN VERB` runs it under the lock of the data directory, and a running server runs
it for requests on the operator socket (docs/operator-socket.md). It is done in one transaction. `effects` names what a
running server must read again after the commit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, Self

import attrs

from mimids.config import Config, ConfigError
from mimids.errors import Malformed, MimiError
from mimids.ohttp.at_rest import OperatorKey
from mimids.store.engine.transaction import Tx, refusable
from mimids.values import Milliseconds

JsonObject = dict[str, Any]
Hints = Mapping[type[MimiError], str]

_NOT_TEXT: Final = re.compile("[\0\ud800-\udfff]")  # a surrogate stands for an octet of the shell that is not UTF-8


class ArgumentKind(Enum):
    """The type of an argument in JSON."""

    TEXT = "string"
    NUMBER = "whole number"
    TIME = "milliseconds since the epoch"
    FLAG = "true or false"
    DOCUMENT = "object"


class Effect(Enum):
    """What a running server must read again once a command is durable."""

    ACCOUNTS = "users, devices"
    WELCOMES = "Welcomes that may be sent now"
    OHTTP_KEYS = "the gateway's keys"
    POLICY = "bans, mutes, terms"
    REPORTS = "reports to pass on"


@attrs.frozen
class Context:
    """What a command knows besides the database and its arguments."""

    config: Config
    now: Milliseconds
    operator_key: OperatorKey | None

    @classmethod
    def of(cls, config: Config, now: Milliseconds) -> Self:
        """Return the context of a command that runs now; raise `ConfigError` if `[ohttp] key_file` has no valid key."""
        path = config.ohttp.key_file
        try:
            return cls(config, now, None if path is None else OperatorKey.from_file(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise ConfigError([f"[ohttp] key_file: {path}: {getattr(error, 'strerror', None) or error}"]) from error


@attrs.frozen
class Argument:
    """One argument; `flag` is its option in a shell, or None if it is positional."""

    name: str
    help: str
    sample: str | int | bool
    kind: ArgumentKind = ArgumentKind.TEXT
    required: bool = True
    flag: str | None = None
    choices: tuple[str, ...] = ()

    def read(self, value: object) -> object:
        """Return the value if it has the argument's type; raise `Malformed` if not."""
        fits = {
            ArgumentKind.TEXT: isinstance(value, str),
            ArgumentKind.NUMBER: isinstance(value, int) and not isinstance(value, bool),
            ArgumentKind.TIME: isinstance(value, int) and not isinstance(value, bool),
            ArgumentKind.FLAG: isinstance(value, bool),
            ArgumentKind.DOCUMENT: isinstance(value, dict),
        }
        if not fits[self.kind]:
            raise Malformed(f"{self.name}: expected {self.kind.value}")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise Malformed(f"{self.name}: the number is too large")
        if isinstance(value, str) and _NOT_TEXT.search(value):
            raise Malformed(f"{self.name}: expected UTF-8 without zero octets")
        if self.choices and value not in self.choices:
            raise Malformed(f"{self.name}: expected one of {', '.join(self.choices)}")
        return value


@attrs.frozen(kw_only=True)
class Command:
    """One row of the table."""

    name: str  # such as "user add"
    summary: str  # imperative, with a full stop
    work: Callable[..., JsonObject]  # work(tx, context, **arguments); raises `MimiError`
    answer: str  # an example of the answer, as JSON
    example: str  # a command line of a shell
    arguments: tuple[Argument, ...] = ()
    writes: bool = True
    effects: tuple[Effect, ...] = ()
    hints: Hints = attrs.field(factory=dict)  # for a refusal: what an operator can do

    @property
    def path(self) -> str:
        """Return the command's path on the operator socket."""
        return "/v1/" + self.name.replace(" ", "/")

    def given(self, body: Mapping[str, object]) -> dict[str, object]:
        """Return the arguments from a JSON object; unknown members are ignored. Raise `Malformed`."""
        found = {}
        for argument in self.arguments:
            value = body.get(argument.name)
            if value is not None:
                found[argument.name] = argument.read(value)
            elif argument.required:
                raise Malformed(f"{argument.name} is missing: {argument.help}")
        return found

    def sample(self) -> JsonObject:
        """Return a valid JSON object for `given`, for documents and tests."""
        return {argument.name: argument.sample for argument in self.arguments if argument.required}

    def run(self, tx: Tx, context: Context, given: Mapping[str, object]) -> JsonObject:
        """Run within a transaction and return the answer. If it raises `MimiError`, the transaction must be undone."""
        return self.work(tx, context, **given)

    def refusable(self, context: Context, given: Mapping[str, object]) -> Callable[[Tx], JsonObject | MimiError]:
        """Return the work for a write: it returns a refusal that `run` raises, with nothing of the command written."""
        return refusable(lambda tx: self.run(tx, context, given))
