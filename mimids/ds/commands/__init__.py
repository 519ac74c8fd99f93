"""What an operator or an account system may ask of a provider, as one table."""

from mimids.ds.commands.declare import Argument, Command, Context, Effect, JsonObject, Kind
from mimids.ds.commands.table import COMMANDS, command_named

__all__ = ["COMMANDS", "Argument", "Command", "Context", "Effect", "JsonObject", "Kind", "command_named"]
