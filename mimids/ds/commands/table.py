"""All commands, in the order of the help and the documents."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.accounts import ACCOUNTS
from mimids.ds.commands.audit import AUDIT
from mimids.ds.commands.bearer_tokens import TOKENS
from mimids.ds.commands.clock import CLOCK
from mimids.ds.commands.console import CONSOLE
from mimids.ds.commands.declare import Command
from mimids.ds.commands.devices import DEVICES
from mimids.ds.commands.forget import FORGET
from mimids.ds.commands.gateway import GATEWAY
from mimids.ds.commands.group_contents import GROUP_CONTENTS
from mimids.ds.commands.groups import GROUPS
from mimids.ds.commands.policy import POLICY
from mimids.ds.commands.providers import PROVIDERS
from mimids.ds.commands.removals import REMOVALS
from mimids.ds.commands.reports import REPORTS
from mimids.ds.commands.restored import RESTORED
from mimids.ds.commands.server import SERVER
from mimids.ds.commands.user_details import USER_DETAILS
from mimids.ds.commands.welcomes import WELCOMES

COMMANDS: Final[tuple[Command, ...]] = (
    *ACCOUNTS,
    *USER_DETAILS,
    *DEVICES,
    *REMOVALS,
    *TOKENS,
    *FORGET,
    *GATEWAY,
    *GROUPS,
    *GROUP_CONTENTS,
    *WELCOMES,
    *PROVIDERS,
    *POLICY,
    *REPORTS,
    *CLOCK,
    *AUDIT,
    *RESTORED,
    *CONSOLE,
    *SERVER,
)

_BY_NAME: Final = {command.name: command for command in COMMANDS}


def command_named(name: str) -> Command:
    """Return the command with a name such as "user add"; raise `KeyError` if there is none."""
    return _BY_NAME[name]
