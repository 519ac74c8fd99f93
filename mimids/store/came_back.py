"""Rows that a restore may have brought back: rows of the backup that may have been deleted or ended since."""

from __future__ import annotations

import attrs

from mimids.store import departures, removed
from mimids.store.engine.transaction import Tx
from mimids.store.restores import Restore
from mimids.values import Milliseconds, TokenId, hour_of
from mimids.wire.ids import UserId


@attrs.frozen
class OldDevice:
    """A device that was in the backup."""

    user_id: UserId
    name: str
    created_at: Milliseconds


@attrs.frozen
class OldToken:
    """A live bearer token that was in the backup."""

    user_id: UserId
    id: TokenId
    scheme: str
    label: str
    created_at: Milliseconds


def devices(tx: Tx, restore: Restore) -> list[OldDevice]:
    """Return the devices that came from the backup; no devices if removals were carried over."""
    rows = tx.all(
        "SELECT user_id, name, devices.created_at FROM devices JOIN users ON users.id = owner"
        " WHERE devices.id <= ? ORDER BY user_id, devices.id",
        (_last_id(restore),),
    )
    return [OldDevice(*row) for row in rows]


def tokens(tx: Tx, restore: Restore) -> list[OldToken]:
    """Return the live bearer tokens that came from the backup; no tokens if revocations were carried over."""
    rows = tx.all(
        "SELECT user_id, tokens.id, scheme, label, tokens.created_at FROM tokens JOIN users ON users.id = owner"
        " WHERE tokens.id <= ? AND state = 'live' ORDER BY user_id, tokens.id",
        (_last_id(restore),),
    )
    return [OldToken(*row) for row in rows]


def remove_devices(tx: Tx, restore: Restore) -> int:
    """Remove the devices that came from the backup; return how many."""
    for (device,) in tx.all("SELECT id FROM devices WHERE id <= ?", (_last_id(restore),)):
        departures.note_removed_device(tx, device)
    count = tx.execute("DELETE FROM devices WHERE id <= ?", (_last_id(restore),))
    removed.forget_missing(tx)
    return count


def revoke_tokens(tx: Tx, restore: Restore, now: Milliseconds) -> int:
    """Revoke the bearer tokens that came from the backup; return how many."""
    return tx.execute(
        "UPDATE tokens SET state = 'revoked', ended_at = ? WHERE state = 'live' AND id <= ?",
        (hour_of(now), _last_id(restore)),
    )


def count_bans(tx: Tx) -> tuple[int, int]:
    """Return the number of bans and of mutes."""
    found = tx.one("SELECT (SELECT count(*) FROM bans), (SELECT count(*) FROM mutes)")
    return (0, 0) if found is None else (found[0], found[1])


def _last_id(restore: Restore) -> int:
    return 0 if restore.carried_over else restore.last_id
