"""Operator commands, run within a test's provider."""

from __future__ import annotations

from typing import Any

from mimids.ds.commands import Context, command_named
from mimids.ds.terms.reports import TOPIC
from tests.support.provider import Assembled


async def command(of: Assembled, name: str, /, **arguments: Any) -> Any:
    """Run a command and return its answer; then do what a server does after commands on terms or reports."""
    made = command_named(name)
    context = Context.of(of.config, of.services.clock.now())
    answer = await of.services.store.write(lambda tx: made.run(tx, context, made.given(arguments)))
    if made.effects:
        of.services.arrangements.forget()
        of.services.notifier.notify(TOPIC)
    return answer
