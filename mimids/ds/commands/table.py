"""All commands, in the order of the help and the documents."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.accounts import ACCOUNTS
from mimids.ds.commands.declare import Command
from mimids.ds.commands.gateway import GATEWAY
from mimids.ds.commands.groups import GROUPS
from mimids.ds.commands.policy import POLICY
from mimids.ds.commands.providers import PROVIDERS
from mimids.ds.commands.reports import REPORTS

COMMANDS: Final[tuple[Command, ...]] = (*ACCOUNTS, *GATEWAY, *GROUPS, *PROVIDERS, *POLICY, *REPORTS)

_BY_NAME: Final = {command.name: command for command in COMMANDS}


def command_named(name: str) -> Command:
    """Return the command with a name such as "user add"; raise `KeyError` if there is none."""
    return _BY_NAME[name]
