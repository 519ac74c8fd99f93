"""A command as data: its name, its arguments, the function that runs in a transaction, and an example of its answer.

Each command is used twice: `mimids NOUN VERB` runs it under the lock of the data directory, and a running server runs
it for requests on the operator socket (docs/operator-socket.md). Each run is one transaction, in which a command that
writes is also recorded in the audit table. `effects` names what a running server must read again after the commit.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Self, cast

import attrs

from mimids.config import Config, ConfigError
from mimids.ds.commands.recorded import Named, persons, recorded
from mimids.errors import Malformed, MimiError, NotFound
from mimids.ohttp.at_rest import OperatorKey
from mimids.store import audit
from mimids.store.engine.transaction import Tx, refusable
from mimids.values import DeviceRow, Milliseconds

if TYPE_CHECKING:
    from mimids.ds.services import Services

JsonObject = dict[str, Any]
Hints = Mapping[type[MimiError], str]

NAMES: Final = 10_000  # in one argument; adding so many users takes about 200 ms of the writer
_NOT_TEXT: Final = re.compile("[\0\ud800-\udfff]")  # Python reads octets that are not UTF-8 as surrogates


class ArgumentKind(Enum):
    """The type of an argument in JSON."""

    TEXT = "string"
    NUMBER = "whole number"
    TIME = "milliseconds since the epoch"
    FLAG = "true or false"
    DOCUMENT = "object"
    NAMES = "list of strings"


class Effect(Enum):
    """The rows and caches that a running server must read again after the commit of a command."""

    ACCOUNTS = "users, devices"
    REMOVED = "what removed users and devices leave: saved rates, deleted octets in the write-ahead log"
    MESSAGES = "cached messages of groups that were deleted"
    SWEEP = "expired data"
    DELIVERY = "what may be pushed to other providers now"
    WELCOMES = "Welcomes that may be sent now"
    OHTTP_KEYS = "the gateway's keys"
    SIGNATURE_KEYS = "the provider's signature keys"
    POLICY = "bans, mutes, terms"
    FEDERATION = "which other providers are allowed"
    REPORTS = "reports to pass on"
    REPLACED = "groups that another group replaces"


@attrs.frozen
class Running:
    """What only a running server knows."""

    streams: Callable[[DeviceRow], int]  # returns the number of open streams of a device


@attrs.frozen
class Context:
    """The data that a command gets besides the database and its arguments.

    `actor` names who runs the command, for the audit table: "shell UID", "socket UID" or "console SESSION".
    """

    config: Config
    now: Milliseconds
    operator_key: OperatorKey | None
    actor: str
    running: Running | None = None  # None outside a running server

    @classmethod
    def of(cls, config: Config, now: Milliseconds, actor: str = "", running: Running | None = None) -> Self:
        """Return the context of a command that runs now, by default for the user of this process in a shell.

        Raises `ConfigError` if `[ohttp] key_file` has no valid key.
        """
        return cls(config, now, read_operator_key(config), actor or f"shell {os.geteuid()}", running)


def read_operator_key(config: Config) -> OperatorKey | None:
    """Return the key in `[ohttp] key_file`, None without one; raise `ConfigError` if it is not valid."""
    path = config.ohttp.key_file
    try:
        return None if path is None else OperatorKey.from_file(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError([f"[ohttp] key_file: {path}: {getattr(error, 'strerror', None) or error}"]) from error


InServer = Callable[["Services", Context], Awaitable[JsonObject]]


@attrs.frozen
class Argument:
    """One argument; `flag` is its option in a shell, or None if it is positional.

    The audit table does not store a `secret` argument (a token, a key, a note). If `named` is set, the argument names a
    user or a device of ours, and the audit table stores its number instead.
    """

    name: str
    help: str
    sample: str | int | bool
    kind: ArgumentKind = ArgumentKind.TEXT
    required: bool = True
    unless: str | None = None  # an argument that may be given instead
    flag: str | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False
    named: Named | None = None

    def read(self, value: object) -> object:
        """Return the value if it has the argument's type; raise `Malformed` if not."""
        fits = {
            ArgumentKind.TEXT: isinstance(value, str),
            ArgumentKind.NUMBER: isinstance(value, int) and not isinstance(value, bool),
            ArgumentKind.TIME: isinstance(value, int) and not isinstance(value, bool),
            ArgumentKind.FLAG: isinstance(value, bool),
            ArgumentKind.DOCUMENT: isinstance(value, dict),
            ArgumentKind.NAMES: isinstance(value, list | tuple) and all(isinstance(each, str) for each in value),
        }
        if not fits[self.kind]:
            raise Malformed(f"{self.name}: expected {self.kind.value}")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise Malformed(f"{self.name}: the number is too large")
        if isinstance(value, str) and _NOT_TEXT.search(value):
            raise Malformed(f"{self.name}: expected UTF-8 without zero octets")
        if self.kind is ArgumentKind.NAMES:
            names = cast("Sequence[str]", value)
            if len(names) > NAMES or any(_NOT_TEXT.search(each) for each in names):
                raise Malformed(f"{self.name}: expected at most {NAMES} strings of UTF-8 without zero octets")
        if self.choices and value not in self.choices:
            raise Malformed(f"{self.name}: expected one of {', '.join(self.choices)}")
        return value


def needs_server(tx: Tx, context: Context) -> JsonObject:
    """Raise `NotFound`. This is the `work` of commands that only a running server can do."""
    raise NotFound("no server runs on this data directory")


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
    in_server: InServer | None = None  # what a running server does instead of `work`
    reads_running: bool = False  # it only reads, and a running server can answer more
    effects: tuple[Effect, ...] = ()
    hints: Hints = attrs.field(factory=dict)  # what an operator can do after a refusal
    # ends(tx, context, **arguments), after the commit: the devices whose sessions a running server ends.
    ends: Callable[..., list[DeviceRow]] | None = None
    asks: str = ""  # what a person is asked before the command runs; may name arguments in braces

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
            elif argument.required and not body.get(argument.unless or ""):
                raise Malformed(f"{argument.name} is missing: {argument.help}")
        return found

    def sample(self) -> JsonObject:
        """Return a valid JSON object for `given`, for documents and tests."""
        return {argument.name: argument.sample for argument in self.arguments if argument.required}

    def run(self, tx: Tx, context: Context, given: Mapping[str, object]) -> JsonObject:
        """Run within a transaction and return the answer. If it raises `MimiError`, the transaction must be undone."""
        if not self.writes:
            return self.work(tx, context, **given)
        named = {each.name: each.named for each in self.arguments if each.named is not None}
        before = persons(tx, context.config.provider, named, given) if named else {}
        answer = self.work(tx, context, **given)
        after = persons(tx, context.config.provider, named, given) if named else {}
        public = {each.name: given[each.name] for each in self.arguments if each.name in given and not each.secret}
        arguments = json.dumps(recorded(public, before, after))
        audit.record(tx, context.now, context.actor, self.name, arguments)
        return answer

    def refusable(self, context: Context, given: Mapping[str, object]) -> Callable[[Tx], JsonObject | MimiError]:
        """Return `run` as a work for `Store.write`: if it is refused, it undoes its writes and returns the refusal."""
        return refusable(lambda tx: self.run(tx, context, given))
