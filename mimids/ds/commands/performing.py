"""Running a command in a serving process: the transaction, then the services read changed rows again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import trio

from mimids.ds.commands.declare import Command, Context, Effect, JsonObject, Running
from mimids.ds.notifier import DELIVERY, DEPARTURES, OUTGOING
from mimids.ds.services import Services
from mimids.ds.terms import reports
from mimids.errors import NotFound, StorageUnavailable
from mimids.store import audit, removed
from mimids.store.federation_rules import every_rule


async def perform(services: Services, command: Command, given: Mapping[str, object], actor: str) -> JsonObject:
    """Run a command with the arguments that `Command.given` returned; return its answer once it has taken effect.

    `actor` is recorded in the audit table: "socket UID", "shell UID" or "console SESSION". Raises the `MimiError` of a
    refused command.
    """
    context = Context.of(services.config, services.clock.now(), actor, Running(services.streams.open_of))
    if command.in_server is not None:
        with trio.CancelScope(shield=True):  # the command took effect, so it must be recorded too
            answer = await command.in_server(services, context)
            if command.writes:
                await _record(services, command, context)
        return answer
    if not command.writes:
        if command.reads_running:
            await services.last_seen.save()
        return await services.store.read_apart(lambda tx: command.run(tx, context, given))
    # The write stays if the caller disconnects, so its effects must still be applied: a removed device is cut off.
    with trio.CancelScope(shield=True):
        if Effect.REMOVED in command.effects:
            await services.cursors.save()  # cursors show which groups a removed device is in
        answer = await services.store.write_or_refuse(command.refusable(context, given))
        await _apply(command.effects, services)
        if (ended := command.ends) is not None:
            with suppress(NotFound):  # the device was removed meanwhile, which ended its sessions
                await services.sessions.end(await services.store.read(lambda tx: ended(tx, context, **given)))
    return answer


async def _record(services: Services, command: Command, context: Context) -> None:
    """Record a command in the audit table; if the disk takes no writes, log it instead."""
    try:
        await services.store.write(lambda tx: audit.record(tx, context.now, context.actor, command.name, "{}"))
    except StorageUnavailable:
        services.telemetry.log.warning("not in the audit table", command=command.name, actor=context.actor)


async def _apply(effects: tuple[Effect, ...], services: Services) -> None:
    """Clear the caches and notify the jobs that a committed command concerns."""
    for effect in effects:
        if effect is Effect.ACCOUNTS:
            services.devices.forget()
            await services.sessions.end_refused()
        elif effect is Effect.REMOVED:
            await services.rates.save()  # the counts of the removed devices and users
            await services.store.write(removed.forget_rates_of_missing)
            await services.store.truncate_log()
            services.notifier.notify(DEPARTURES)
        elif effect is Effect.MESSAGES:
            services.recent.clear()
        elif effect is Effect.SWEEP:
            services.sweeper.sweep_soon()
        elif effect is Effect.DELIVERY:
            services.notifier.notify(DELIVERY)
        elif effect is Effect.WELCOMES:
            services.notifier.notify(OUTGOING)
        elif effect is Effect.OHTTP_KEYS:
            await services.ohttp_keys.refresh()
            await services.store.truncate_log()
        elif effect is Effect.SIGNATURE_KEYS:
            await services.provider_keys.refresh()
            await services.store.truncate_log()
        elif effect is Effect.POLICY:
            services.offered_terms.forget()
            services.accepted_terms.forget()
        elif effect is Effect.FEDERATION:
            await use_federation_rules(services)
        elif effect is Effect.REPORTS:
            services.notifier.notify(reports.TOPIC)
        elif effect is Effect.REPLACED:
            services.notifier.notify_all()


async def use_federation_rules(services: Services) -> None:
    """Use the operator's rules on other providers; retry at once the calls to providers that are allowed now."""
    federation, us = services.config.federation, services.config.provider
    rules = await services.store.read(every_rule)
    refused = [name for name in {*federation.decided, *rules} if not federation.allows(name, us=us)]
    federation.decide(rules)
    for name in refused:
        if federation.allows(name, us=us):
            services.callers.note(name)
