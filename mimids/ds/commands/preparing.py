"""Preparing a database that was set back to an earlier state, so that a server can use it (semantics: restore)."""

from __future__ import annotations

import secrets
from typing import Final

import attrs

from mimids.ds.commands.declare import Context
from mimids.ds.key_packages import gateway_keys
from mimids.ohttp.keyring import Schedule
from mimids.store import (
    arrangements,
    counted_ids,
    departures,
    federation_rules,
    group_deletion,
    key_packages,
    recoveries,
    restored_positions,
    restores,
)
from mimids.store.carried_over import CarriedOver, carry_over
from mimids.store.engine.transaction import Tx
from mimids.store.restores import Restore
from mimids.values import Milliseconds

DAY_SECONDS: Final = 86_400


@attrs.frozen
class Prepared:
    """What `prepare` did."""

    key_packages_dropped: int
    ohttp_key_id: int
    groups_held: int
    carried_over: CarriedOver | None


def prepare(tx: Tx, context: Context, moment: Milliseconds, newer: Tx | None = None) -> Prepared:
    """Prepare a database that was set back to its state at `moment`, so that a server can use it.

    `newer` is the database that the prepared one replaces; None if `newer` cannot be read, or in PostgreSQL.
    """
    config, now = context.config, context.now
    schedule = Schedule(config.ohttp.rotate_days * DAY_SECONDS, config.ohttp.grace_days * DAY_SECONDS)
    retired = key_packages.retire_unclaimed(tx)
    carried = None if newer is None else carry_over(tx, newer, now)
    group_deletion.delete_reserved(tx, config.provider, now)
    more = secrets.randbelow(counted_ids.SKIPPED_IDS)
    if config.store.url is None:
        last_id = counted_ids.outrun(tx, now, newer, more=more)
    else:
        last_id = counted_ids.outrun_in_postgresql(tx, now, more=more)
    departures.search_again(tx)
    key_id = gateway_keys.renew(tx, schedule, context.operator_key, now // 1000, newer=newer)
    config.federation.decide(federation_rules.every_rule(tx))
    held = recoveries.begin(tx, config.provider, config.named_providers)
    restored_positions.mark_free_groups(tx, config.provider)
    arrangements.skip_revisions(tx, now, more=secrets.randbelow(arrangements.SKIPPED))
    restores.note(tx, Restore(moment, now, last_id, carried_over=carried is not None))
    return Prepared(retired, key_id, held, carried)
