"""The operator socket: the table of commands as endpoints on a Unix socket (docs/operator-socket.md).

Who may open the socket may do everything that the operator may: its file belongs to the server's user and is closed
to everybody else (mode 0600), so there is no token. `mimids NOUN VERB` uses it while a server runs, and so does an
account system that adds users and devices.
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
from mimids.http.api.endpoints import Access, Call, Endpoint, Listener, json_answer, json_object

_PROBLEMS: Final[tuple[type[MimiError], ...]] = (Malformed, NotFound, NameTaken, QuotaExceeded, StorageUnavailable)


def _endpoint(command: Command) -> Endpoint:
    schema = ", ".join(
        f'"{argument.name}": {argument.kind.value}{"" if argument.required else " (optional)"}'
        for argument in command.arguments
    )
    return Endpoint(
        name=command.name,
        listener=Listener.OPERATOR,
        method="POST",
        path=command.path,
        access=Access.ANYONE,  # that the file lets through
        request=json_object(command.given, f"{{{schema}}}", json.dumps(command.sample())),
        answer=json_answer(command.answer, command.answer),
        handler=_handler(command),
        summary=command.summary,
        problems=_PROBLEMS,
    )


def _handler(command: Command) -> Callable[[Services, Call[JsonObject]], Awaitable[JsonObject]]:
    async def handle(services: Services, call: Call[JsonObject]) -> JsonObject:
        context = Context.of(services.config, services.clock.now())
        if not command.writes:
            return await services.store.read(lambda tx: command.run(tx, context, call.body))
        # Whoever hangs up does not recall the write, so what has to follow it follows: a removed device is out.
        with trio.CancelScope(shield=True):
            answer = await services.store.write_or_refuse(command.refusable(context, call.body))
            await _take_up(command.effects, services)
        return answer

    return handle


async def _take_up(effects: tuple[Effect, ...], services: Services) -> None:
    """Let what is kept in memory, and whoever waits, see what was just committed."""
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


OPERATOR_SOCKET: Final[tuple[Endpoint, ...]] = tuple(map(_endpoint, COMMANDS))
