"""Checks of a database before a server uses it; the results are sentences for the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mimids.store import acknowledged, move
from mimids.store.engine.access import Place, health_of, name_of, pending, read_here
from mimids.store.engine.sqlite import find_damage
from mimids.values import Cause

RESTORE: Final = "stop the server, keep the file, and restore the newest backup with `mimids restore --replace`"


def damage_says(database: Place, damage: str) -> Cause:
    """Return the sentence for the operator about a damaged database."""
    if not isinstance(database, Path):
        what = f"{name_of(database)} is damaged ({damage}): nothing is written to it"
        return Cause(what, "stop the server, and restore PostgreSQL's own backup")
    return Cause(f"{database} is damaged ({damage}): nothing is written to it", RESTORE)


def loss_says(database: Path) -> Cause | None:
    """Return the sentence about a database that has lost acknowledged writes, None if nothing is missing."""
    recorded = acknowledged.recorded(database)
    if recorded is None:
        return None
    with read_here(database) as tx:
        present = acknowledged.progress(tx)
    if present >= recorded:
        return None
    return Cause(
        f"{database} has lost the last {recorded - present} rows that were acknowledged: its write-ahead log was cut "
        "off or removed",
        "restore the newest backup with `mimids restore --replace`, which asks other providers for later messages, or "
        f"delete {acknowledged.file_of(database)} to serve without these rows",
    )


def why_not_served(database: Place, *, replicated: bool = False) -> Cause | None:
    """Return why a server must not use a database, None if there is no reason; the check takes up to 10 s.

    Damage is checked first, since every other read of a damaged file may fail. The caller holds the lock. With
    `replicated`, a PostgreSQL database that does not wait for a standby is refused.
    """
    if not isinstance(database, Path):
        return _why_postgresql_is_not_served(database, replicated=replicated)
    damage = find_damage(database) if database.exists() else None
    if damage is not None:
        return damage_says(database, damage)
    return _migrations_due(database) or loss_says(database) or move.why_not_used(database)


def _migrations_due(database: Place) -> Cause | None:
    due = pending(database)
    what = f"{name_of(database)}: {len(due)} migrations are due"
    return Cause(what, "make a backup, then run `mimids migrate`") if due else None


def _why_postgresql_is_not_served(url: str, *, replicated: bool) -> Cause | None:
    refusal = _migrations_due(url) or move.why_not_used(url)
    if refusal is not None or not replicated or health_of(url).standbys:
        return refusal
    what = f"{name_of(url)} waits for no standby: synchronous_standby_names is empty, or synchronous_commit is local"
    return Cause(what, "set both in PostgreSQL (synchronous_commit = on), or replicated = false in [store]")
