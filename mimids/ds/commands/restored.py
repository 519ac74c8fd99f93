"""The command `restored`: list the rights that may have come back with a backup, and revoke them."""

from __future__ import annotations

from typing import Final

from mimids.ds.commands.declare import Argument, ArgumentKind, Command, Context, Effect, JsonObject
from mimids.ds.commands.preparing import prepare
from mimids.errors import Malformed, NotFound
from mimids.store import came_back, overview, processes, recoveries, restores
from mimids.store.engine.member import FROZEN_SECONDS
from mimids.store.engine.transaction import Tx

DEVICES: Final = "devices"
TOKENS: Final = "tokens"
ALL: Final = "all"


def _restored(tx: Tx, context: Context, *, revoke: str | None = None, set_back: bool = False) -> JsonObject:
    if set_back:
        _prepare(tx, context)
    past = restores.history(tx)
    if not past:
        raise NotFound("this database was never restored from a backup")
    last = past[-1]
    devices_removed = came_back.remove_devices(tx, last) if revoke in (DEVICES, ALL) else 0
    tokens_revoked = came_back.revoke_tokens(tx, last, context.now) if revoke in (TOKENS, ALL) else 0
    bans, mutes = came_back.count_bans(tx)
    return {
        "backup_made_at": last.backup_made_at,
        "restored_at": last.restored_at,
        "carried_over": last.carried_over,
        "groups_held": recoveries.held_groups(tx),
        "devices": [
            {"user_id": each.user_id.decode(), "device_id": each.name, "created_at": each.created_at}
            for each in came_back.devices(tx, last)
        ],
        "tokens": [
            {
                "user_id": each.user_id.decode(),
                "id": each.id,
                "scheme": each.scheme,
                "label": each.label,
                "created_at": each.created_at,
            }
            for each in came_back.tokens(tx, last)
        ],
        "bans": bans,
        "mutes": mutes,
        "devices_removed": devices_removed,
        "tokens_revoked": tokens_revoked,
    }


def _prepare(tx: Tx, context: Context) -> None:
    """Prepare a database that PostgreSQL's own tools set back; raise `Malformed` for SQLite or while a server runs."""
    if context.config.store.url is None:
        raise Malformed("set_back is for PostgreSQL: `mimids restore` restores a file")
    seen_last = max((each.seen_at for each in processes.every_process(tx)), default=0)
    if context.running is not None or seen_last > context.now - FROZEN_SECONDS * 1000:
        raise Malformed("a server runs on this database: stop all servers that use it first")
    prepare(tx, context, overview.newest_moment(tx))


RESTORED: Final = (
    Command(
        name="restored",
        summary="Show what may have come back with the restored backup: devices, bearer tokens, bans.",
        arguments=(
            Argument(
                "revoke",
                "remove these devices (their users must add them again), revoke these bearer tokens, or both",
                ALL,
                required=False,
                flag="--revoke",
                choices=(DEVICES, TOKENS, ALL),
            ),
            Argument(
                "set_back",
                "first prepare a database that PostgreSQL's own tools set back to an earlier state: no server may run",
                True,
                ArgumentKind.FLAG,
                required=False,
                flag="--set-back",
            ),
        ),
        work=_restored,
        answer='{"backup_made_at": 1764000000000, "restored_at": 1764100000000, "carried_over": false,'
        ' "groups_held": 0,'
        ' "devices": [{"user_id": "mimi://a.example/u/alice", "device_id": "phone", "created_at": 1763000000000}],'
        ' "tokens": [{"user_id": "mimi://a.example/u/alice", "id": 1, "scheme": "unique", "label": "bob",'
        ' "created_at": 1763000000000}], "bans": 0, "mutes": 0, "devices_removed": 0, "tokens_revoked": 0}',
        example="mimids restored --revoke all",
        effects=(Effect.ACCOUNTS, Effect.REMOVED),
    ),
)
