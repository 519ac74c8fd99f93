"""Recovery after a restore: which providers must still be asked which messages of our groups they have.

A group is held until all that follow it have answered. A row with group 0 is the question which of our groups a
provider knows.
"""

from __future__ import annotations

from collections.abc import Iterable

from mimids.store import providers
from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import put_setting
from mimids.wire.ids import ProviderId

ALL_GROUPS = 0
RESUME_EVERYTHING = "resume_everything"  # a setting: as follower, ask all hubs to push again


def begin(tx: Tx, ours: ProviderId, others: Iterable[ProviderId]) -> int:
    """Hold the groups of ours that others follow, which may have newer messages there; return how many.

    Also note that every known provider, and each of `others`, must be asked which of our groups it knows.
    """
    hub = providers.ensure_provider(tx, ours)
    tx.execute(
        "INSERT INTO recoveries (group_ref, provider) SELECT DISTINCT p.group_ref, f.provider FROM follows f"
        " JOIN partitions p ON p.id = f.partition WHERE p.hub = ? ON CONFLICT DO NOTHING",
        (hub,),
    )
    for domain in sorted({*providers.every_domain(tx), *others} - {ours}):
        ask(tx, ALL_GROUPS, providers.ensure_provider(tx, domain))
    put_setting(tx, RESUME_EVERYTHING, b"1")
    held = tx.one("SELECT count(DISTINCT group_ref) FROM recoveries WHERE group_ref > 0 AND answered = 0")
    return int(held[0]) if held else 0


def ask(tx: Tx, group: int, provider: int) -> None:
    """Note that a provider must be asked about a group, unless it is noted already."""
    tx.execute("INSERT INTO recoveries (group_ref, provider) VALUES (?, ?) ON CONFLICT DO NOTHING", (group, provider))


def pending(tx: Tx) -> list[tuple[int, int]]:
    """Return provider and group of each question that has no answer yet, at most 10,000."""
    rows = tx.all(
        "SELECT provider, group_ref FROM recoveries WHERE answered = 0 ORDER BY provider, group_ref LIMIT 10000"
    )
    return [(row[0], row[1]) for row in rows]


def note_answer(tx: Tx, group: int, provider: int) -> None:
    """Record a provider's answer; once all providers have answered, the group is no longer held."""
    tx.execute("UPDATE recoveries SET answered = 1 WHERE group_ref = ? AND provider = ?", (group, provider))
    tx.execute(
        "DELETE FROM recoveries WHERE group_ref = ?1"
        " AND NOT EXISTS (SELECT 1 FROM recoveries WHERE group_ref = ?1 AND answered = 0)",
        (group,),
    )


def release(tx: Tx, group: int) -> int:
    """Stop waiting for answers about a group, which is then no longer held; return how many were missing."""
    left = tx.one("SELECT count(*) FROM recoveries WHERE group_ref = ? AND answered = 0", (group,))
    tx.execute("DELETE FROM recoveries WHERE group_ref = ?", (group,))
    return int(left[0]) if left else 0


def waited_for(tx: Tx, group: int) -> list[str]:
    """Return the providers whose answer a held group waits for."""
    rows = tx.all(
        "SELECT o.domain FROM recoveries r JOIN providers o ON o.id = r.provider"
        " WHERE r.group_ref = ? AND r.answered = 0 ORDER BY o.domain",
        (group,),
    )
    return [row[0] for row in rows]


def held_groups(tx: Tx) -> int:
    """Count the groups that are held."""
    row = tx.one("SELECT count(DISTINCT group_ref) FROM recoveries WHERE answered = 0 AND group_ref > 0")
    return int(row[0]) if row else 0
