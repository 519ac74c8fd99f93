"""What is wrong with a database before a server uses it, in sentences for the operator."""

from __future__ import annotations

from pathlib import Path

from mimids.store import acknowledged
from mimids.store.engine.sqlite import find_damage, read_here


def damage_says(database: Path, damage: str) -> str:
    """Return the sentence for a damaged database."""
    return (
        f"{database} is damaged ({damage}): nothing is written to it; stop the server, keep the file, and restore the "
        "newest backup with `mimids restore --replace`"
    )


def loss_says(database: Path) -> str | None:
    """Return the sentence for a database that has lost acknowledged writes, None if nothing is missing."""
    recorded = acknowledged.recorded(database)
    if recorded is None:
        return None
    with read_here(database) as tx:
        present = acknowledged.progress(tx)
    if present >= recorded:
        return None
    return (
        f"{database} has lost the last {recorded - present} rows that were acknowledged: its write-ahead log was cut "
        "off or removed; restore the newest backup with `mimids restore --replace`, which asks other providers for "
        f"later messages, or delete {acknowledged.file_of(database)} to serve without these rows"
    )


def why_not_served(database: Path) -> str | None:
    """Return why a server must not use a migrated database, None if there is no reason; the check takes up to 10 s.

    The caller holds the lock.
    """
    damage = find_damage(database)
    return loss_says(database) if damage is None else damage_says(database, damage)
