"""The operator socket: the table of commands as endpoints on a Unix socket (docs/operator-socket.md).

There is no token: the socket's file belongs to the server's user and has mode 0600, and a process that can open it may
do everything that the operator may. `mimids NOUN VERB` uses the socket while a server runs. So does an account system
that adds users and devices.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mimids.ds.commands import COMMANDS, Command, Context, Effect, JsonObject
from mimids.ds.notifier import OUTGOING
from mimids.ds.services import Services
from mimids.ds.terms import reports
from mimids.errors import Malformed, MimiError, NameTaken, NotFound, QuotaExceeded, StorageUnavailable
from mimids.http.api.bodies import json_answer, json_object
from mimids.http.api.endpoints import AnyEndpoint, Call, Endpoint, Listener
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
        context = Context.of(services.config, services.clock.now())
        if not command.writes:
            return await services.store.read(lambda tx: command.run(tx, context, call.body))
        # A caller that disconnects does not undo the write, so its effects must follow: a removed device is cut off.
        with trio.CancelScope(shield=True):
            answer = await services.store.write_or_refuse(command.refusable(context, call.body))
            await _apply(command.effects, services)
        return answer

    return handle


async def _apply(effects: tuple[Effect, ...], services: Services) -> None:
    """Clear the caches and notify the jobs that a committed command concerns."""
    for effect in effects:
        if effect is Effect.ACCOUNTS:
            services.devices.forget()
        elif effect is Effect.WELCOMES:
            services.notifier.notify(OUTGOING)
        elif effect is Effect.OHTTP_KEYS:
            await services.ohttp_keys.refresh()
        elif effect is Effect.POLICY:
            services.offered_terms.forget()
            services.accepted_terms.forget()
        elif effect is Effect.REPORTS:
            services.notifier.notify(reports.TOPIC)


OPERATOR_SOCKET: Final[tuple[AnyEndpoint, ...]] = tuple(map(_endpoint, COMMANDS))
