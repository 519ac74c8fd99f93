"""The command `forget`: remove a user, and list who else may still hold data of the user."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.accounts import NO_USER, USER
from mimids.ds.commands.declare import Command, Context, Effect, JsonObject
from mimids.ds.devices import accounts
from mimids.store.engine.transaction import Tx
from mimids.store.traces import traces_of


def _forget(tx: Tx, context: Context, *, user: str) -> JsonObject:
    provider = context.config.provider
    row, user_id = accounts.find_user(tx, provider, user)
    traces = traces_of(tx, row, user_id, provider)
    accounts.remove_user(tx, provider, user)
    return {
        "user_id": user_id.decode(),
        "devices": traces.devices,
        "groups_hosted": traces.groups_hosted,
        "reports": traces.reports,
        "bans": traces.bans,
        "hubs": list(traces.hubs),
        "followers": list(traces.followers),
        "terms_of": list(traces.terms_of),
        "in_postgresql": context.config.store.url is not None,
    }


FORGET: Final = (
    Command(
        name="forget",
        summary="Remove a user as `user remove` does, sweep if the server runs, and show who may still hold data.",
        arguments=(USER,),
        work=_forget,
        answer='{"user_id": "mimi://a.example/u/alice", "devices": 1, "groups_hosted": 2, "reports": 0, "bans": 0,'
        ' "hubs": ["b.example"], "followers": ["c.example"], "terms_of": [],'
        ' "in_postgresql": false}',
        example="mimids forget alice",
        effects=(Effect.ACCOUNTS, Effect.REMOVED, Effect.SWEEP),
        hints=NO_USER,
    ),
)
