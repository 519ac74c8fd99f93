"""The commands of an operator or an account system, as one table."""

from mimids.ds.commands.declare import Argument, ArgumentKind, Command, Context, Effect, JsonObject
from mimids.ds.commands.table import COMMANDS, command_named

__all__ = [
    "COMMANDS",
    "Argument",
    "ArgumentKind",
    "Command",
    "Context",
    "Effect",
    "JsonObject",
    "command_named",
]
