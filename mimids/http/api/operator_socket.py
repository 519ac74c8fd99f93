"""The operator socket: the table of commands as endpoints on a Unix socket (docs/operator-socket.md).

There is no token: the socket's file belongs to the server's user and has mode 0600, and a process that can open it may
do everything that the operator may. `mimids NOUN VERB` uses the socket while a server runs. An account system that adds
users and devices uses the socket too.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Final

from mimids.ds.commands import COMMANDS, Command, JsonObject
from mimids.ds.commands.performing import perform
from mimids.ds.services import Services
from mimids.errors import Malformed, MimiError, NameTaken, NotFound, QuotaExceeded, StorageUnavailable
from mimids.http.api.bodies import json_answer, json_object
from mimids.http.api.endpoints import AnyEndpoint, Call, Endpoint, Listener
from mimids.http.header_names import SHELL_AGENT
from mimids.values import Operator

_PROBLEMS: Final[tuple[type[MimiError], ...]] = (Malformed, NotFound, NameTaken, QuotaExceeded, StorageUnavailable)


def _endpoint(command: Command) -> Endpoint[Operator, JsonObject, JsonObject]:
    schema = ", ".join(
        f'"{argument.name}": {argument.kind.value}{"" if argument.required else " (optional)"}'
        for argument in command.arguments
    )
    return Endpoint(
        name=command.name,
        listener=Listener.OPERATOR,
        method="POST",
        path=command.path,
        caller=Operator,
        request=json_object(command.given, f"{{{schema}}}", json.dumps(command.sample())),
        answer=json_answer(JsonObject, command.answer, command.answer),
        handler=_handler(command),
        summary=command.summary,
        problems=_PROBLEMS,
    )


def _handler(command: Command) -> Callable[[Services, Call[Operator, JsonObject]], Awaitable[JsonObject]]:
    async def handle(services: Services, call: Call[Operator, JsonObject]) -> JsonObject:
        return await perform(services, command, call.body, _actor(call))

    return handle


def _actor(call: Call[Operator, JsonObject]) -> str:
    """Return who runs a command, for the audit table."""
    kind = "shell" if call.headers.get("user-agent") == SHELL_AGENT else "socket"
    return f"{kind} {'unknown' if call.user is None else call.user}"


OPERATOR_SOCKET: Final[tuple[AnyEndpoint, ...]] = tuple(map(_endpoint, COMMANDS))
