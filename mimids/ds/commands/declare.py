"""A command as data: its name, its arguments, a function of a transaction, what the answer holds.

One row serves twice: `mimids NOUN VERB` runs it under the lock of the data directory, a running server runs it for
whoever asks over the operator socket (docs/operator-socket.md). The work is a plain function of a transaction, so it
is done whole or not at all; what has to follow its commit within a running server is named by `effects`.
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
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds

JsonObject = dict[str, Any]
Hints = Mapping[type[MimiError], str]

_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")  # surrogates stand for octets of a shell that are no UTF-8


class ArgumentKind(Enum):
    """What an argument is in JSON."""

    TEXT = "string"
    NUMBER = "whole number"
    TIME = "milliseconds since the epoch"
    FLAG = "true or false"
    DOCUMENT = "object"


class Effect(Enum):
    """What a running server has to look at again once a command is durable."""

    ACCOUNTS = "users, devices"
    WELCOMES = "Welcomes that are due"
    OHTTP_KEYS = "the gateway's keys"
    POLICY = "bans, mutes, terms"
    REPORTS = "reports that are to be passed on"


@attrs.frozen
class Context:
    """What a command may know besides the database and its arguments."""

    config: Config
    now: Milliseconds
    operator_key: OperatorKey | None

    @classmethod
    def of(cls, config: Config, now: Milliseconds) -> Self:
        """Return the context of a command that runs now; raise `ConfigError` if `[ohttp] key_file` is none."""
        path = config.ohttp.key_file
        try:
            return cls(config, now, None if path is None else OperatorKey.from_file(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise ConfigError([f"[ohttp] key_file: {path}: {getattr(error, 'strerror', None) or error}"]) from error


@attrs.frozen
class Argument:
    """One argument; `flag` is how a shell gives it, None where its place says what it is."""

    name: str
    help: str
    sample: str | int | bool
    kind: ArgumentKind = ArgumentKind.TEXT
    required: bool = True
    flag: str | None = None
    choices: tuple[str, ...] = ()

    def read(self, value: object) -> object:
        """Return the value as the work takes it; raise `Malformed` if it is of another kind."""
        fits = {
            ArgumentKind.TEXT: isinstance(value, str),
            ArgumentKind.NUMBER: isinstance(value, int) and not isinstance(value, bool),
            ArgumentKind.TIME: isinstance(value, int) and not isinstance(value, bool),
            ArgumentKind.FLAG: isinstance(value, bool),
            ArgumentKind.DOCUMENT: isinstance(value, dict),
        }
        if not fits[self.kind]:
            raise Malformed(f"{self.name}: a {self.kind.value} is wanted")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise Malformed(f"{self.name}: too large a number")
        if isinstance(value, str) and _NO_TEXT.search(value):
            raise Malformed(f"{self.name}: a zero octet is in it, or what is no UTF-8")
        if self.choices and value not in self.choices:
            raise Malformed(f"{self.name}: one of {', '.join(self.choices)} is wanted")
        return value


@attrs.frozen(kw_only=True)
class Command:
    """One row of the table."""

    name: str  # "user add": a path below /v1/ with a slash for the space
    summary: str  # imperative, with a full stop
    work: Callable[..., JsonObject]  # (tx, context, **arguments)
    answer: str  # an example of what it returns, as JSON
    example: str  # a shell's command line
    arguments: tuple[Argument, ...] = ()
    writes: bool = True
    effects: tuple[Effect, ...] = ()
    hints: Hints = attrs.field(factory=dict)  # what an operator does about a refusal

    @property
    def path(self) -> str:
        """Return where a running server takes it."""
        return "/v1/" + self.name.replace(" ", "/")

    def given(self, body: Mapping[str, object]) -> dict[str, object]:
        """Return the arguments in a JSON object, unknown ones left out; raise `Malformed`."""
        found = {}
        for argument in self.arguments:
            value = body.get(argument.name)
            if value is not None:
                found[argument.name] = argument.read(value)
            elif argument.required:
                raise Malformed(f"{argument.name} is missing: {argument.help}")
        return found

    def sample(self) -> JsonObject:
        """Return an object as `given` takes it, for documents and tests."""
        return {argument.name: argument.sample for argument in self.arguments if argument.required}

    def run(self, tx: Tx, context: Context, given: Mapping[str, object]) -> JsonObject:
        """Do it within a transaction and return the answer; raise `MimiError`, and then nothing is to remain."""
        return self.work(tx, context, **given)
