"""The command `console`: a one-time link with which an operator can act in the console (http: console)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mimids.ds.commands.declare import Command, Context, JsonObject, needs_server
from mimids.errors import NotFound

if TYPE_CHECKING:
    from mimids.ds.services import Services


async def _new_link(services: Services, context: Context) -> JsonObject:
    secret, until = services.operator_sessions.new_link()
    address = services.server.addresses.get("operator", services.config.listen.operator)
    return {"link": f"http://{address}/console/enter?secret={secret}", "expires_at": until}


CONSOLE: Final = (
    Command(
        name="console",
        summary="Print a link that starts a session in the console; it works once, for a minute.",
        work=needs_server,
        in_server=_new_link,
        answer='{"link": "http://127.0.0.1:8445/console/enter?secret=c3VubnkgZGF5cw", "expires_at": 1764000060000}',
        example="mimids console",
        hints={NotFound: "start it with `mimids serve`: the console is a part of the server"},
    ),
)
