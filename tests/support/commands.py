"""Operator commands, run within a test's provider."""

from __future__ import annotations

from typing import Any

from mimids.ds.commands import Context, command_named
from mimids.ds.terms.reports import TOPIC
from tests.support.provider import Assembled


async def command(of: Assembled, name: str, /, **arguments: Any) -> Any:
    """Run an operator's command, and notify the jobs that read what it changed."""
    made = command_named(name)
    context = Context.of(of.config, of.services.clock.now())
    answer = await of.services.store.write_or_refuse(made.refusable(context, made.given(arguments)))
    if made.effects:
        of.services.offered_terms.forget()
        of.services.accepted_terms.forget()
        of.services.notifier.notify(TOPIC)
    return answer
