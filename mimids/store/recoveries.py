"""Recovery after a restore: which providers must still be asked for messages of our groups.

A group is held until all providers that must answer have answered. A row with group 0 is the question which of our
groups a provider knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import attrs

from mimids.store import providers, restored_positions
from mimids.store.engine.transaction import Tx
from mimids.store.ohttp import put_setting
from mimids.wire.ids import GroupId, ProviderId

ALL_GROUPS = 0
RESUME_EVERYTHING = "resume_everything"  # a setting: as follower, ask all hubs to push again

_FOLLOWERS = "follows x"
_WELCOMED = "(SELECT provider, partition FROM outgoing_welcomes WHERE state = 'delivered') x"
_TO_BE_WELCOMED = "(SELECT provider, partition FROM outgoing_welcomes WHERE state IN ('held', 'due', 'offered')) x"


@attrs.frozen
class Held:
    """A group that accepts no messages until these providers have answered."""

    group: int
    group_id: GroupId
    waits_for: tuple[str, ...]


def begin(tx: Tx, ours: ProviderId, others: Iterable[ProviderId]) -> int:
    """Hold the groups of ours for which other providers may have newer messages; return how many.

    Providers that follow a group, or got a Welcome of it, must answer. If a Welcome was on its way to a provider when
    the backup was made, the provider may have got it since, so the provider is asked once. Also record that every known
    provider, and each of `others`, must be asked which of our groups it knows.
    """
    hub = providers.ensure_provider(tx, ours)
    tx.execute("UPDATE recoveries SET answered = 0")  # rows of an earlier recovery that had not ended
    for must_answer, found in ((1, _FOLLOWERS), (1, _WELCOMED), (0, _TO_BE_WELCOMED)):
        tx.execute(
            "INSERT INTO recoveries (group_ref, provider, must_answer)"
            " SELECT DISTINCT p.group_ref, x.provider, CAST(?2 AS BIGINT)"
            f" FROM {found} JOIN partitions p ON p.id = x.partition WHERE p.hub = ?1 AND x.provider <> ?1"
            " ON CONFLICT DO NOTHING",
            (hub, must_answer),
        )
    for domain in sorted({*providers.every_domain(tx), *others} - {ours}):
        ask(tx, ALL_GROUPS, providers.ensure_provider(tx, domain))
    put_setting(tx, RESUME_EVERYTHING, b"1")
    return held_groups(tx)


def ask(tx: Tx, group: int, provider: int, *, must_answer: bool = True) -> None:
    """Record that a provider must be asked about a group, unless this is recorded already.

    The group is held until the provider answers or, without `must_answer`, until the provider was asked once.
    """
    tx.execute(
        "INSERT INTO recoveries (group_ref, provider, must_answer) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (group, provider, must_answer),
    )


def open_questions(tx: Tx) -> dict[int, int]:
    """Return how many questions have no answer yet, by provider."""
    rows = tx.all("SELECT provider, count(*) FROM recoveries WHERE answered = 0 GROUP BY provider")
    return {row[0]: row[1] for row in rows}


def is_open(tx: Tx, group: int, provider: int) -> bool:
    """Tell whether a provider still has to be asked about a group; False once it has answered or was given up."""
    return (
        tx.one("SELECT 1 FROM recoveries WHERE group_ref = ? AND provider = ? AND answered = 0", (group, provider))
        is not None
    )


def questions_to(tx: Tx, provider: int, *, after: int, limit: int) -> list[int]:
    """Return the groups of a provider's next unanswered questions, in order, starting above `after`."""
    rows = tx.all(
        "SELECT group_ref FROM recoveries WHERE provider = ? AND answered = 0 AND group_ref > ?"
        " ORDER BY group_ref LIMIT ?",
        (provider, after, limit),
    )
    return [row[0] for row in rows]


def count_named(tx: Tx, provider: int) -> int:
    """Count the groups that are known only because providers named them, and about which this provider is asked."""
    found = tx.one(
        "SELECT count(*) FROM recoveries r JOIN groups g ON g.id = r.group_ref"
        " WHERE r.provider = ? AND g.creation_digest IS NULL",
        (provider,),
    )
    return int(found[0]) if found else 0


def note_answer(tx: Tx, group: int, provider: int) -> None:
    """Record a provider's answer; once all providers have answered, the group is no longer held."""
    tx.execute("UPDATE recoveries SET answered = 1 WHERE group_ref = ? AND provider = ?", (group, provider))
    _free_if_answered(tx, group)


def give_up(tx: Tx, provider: int, *, limit: int) -> bool:
    """Record that a provider did not answer: groups that do not need its answer (`ask`) stop waiting for it.

    Handles up to `limit` groups; returns whether there may be more.
    """
    rows = tx.all(
        "SELECT group_ref FROM recoveries WHERE provider = ? AND answered = 0 AND must_answer = 0 LIMIT ?",
        (provider, limit),
    )
    for (group,) in rows:
        note_answer(tx, group, provider)
    return len(rows) == limit


def release(tx: Tx, group: int, provider: int | None = None) -> int:
    """Stop waiting for the answer of one provider, or of all, about a group; return how many answers were missing.

    In the partitions that a provider without an answer follows, skip the counters for which it may have messages.
    """
    rows = tx.all("SELECT provider FROM recoveries WHERE group_ref = ? AND answered = 0", (group,))
    missing = [each for (each,) in rows if provider in (None, each)]
    for each in missing:
        restored_positions.skip_counters_of(tx, group, each)
        tx.execute("UPDATE recoveries SET answered = 1 WHERE group_ref = ? AND provider = ?", (group, each))
    _free_if_answered(tx, group)
    return len(missing)


def _free_if_answered(tx: Tx, group: int) -> None:
    if tx.one("SELECT 1 FROM recoveries WHERE group_ref = ? AND answered = 0", (group,)) is not None:
        return
    if tx.execute("DELETE FROM recoveries WHERE group_ref = ?", (group,)) and group != ALL_GROUPS:
        restored_positions.mark_group(tx, group)


def waited_for(tx: Tx, group: int) -> list[str]:
    """Return the providers whose answer a held group waits for."""
    rows = tx.all(
        "SELECT o.domain FROM recoveries r JOIN providers o ON o.id = r.provider"
        " WHERE r.group_ref = ? AND r.answered = 0 ORDER BY o.domain",
        (group,),
    )
    return [row[0] for row in rows]


def held(tx: Tx) -> list[Held]:
    """Return the groups that are held, with the providers that each waits for."""
    rows = tx.all(
        "SELECT g.id, g.group_id, o.domain FROM recoveries r JOIN groups g ON g.id = r.group_ref"
        " JOIN providers o ON o.id = r.provider WHERE r.answered = 0 ORDER BY g.id, o.domain"
    )
    groups = groupby(rows, key=lambda row: (row[0], row[1]))
    return [Held(*group, tuple(domain for _, _, domain in answers)) for group, answers in groups]


def held_groups(tx: Tx) -> int:
    """Count the held groups."""
    row = tx.one("SELECT count(DISTINCT group_ref) FROM recoveries WHERE answered = 0 AND group_ref > 0")
    return int(row[0]) if row else 0
