"""Plans of retention against a model that follows the rules partition by partition, on random groups."""

from __future__ import annotations

import sqlite3
from functools import cache
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimids.config import parse
from mimids.ds.upkeep.retention_plan import Cutoffs, GroupPlan, plan_group
from mimids.store.engine.migrate import shipped
from mimids.store.engine.transaction import Tx
from mimids.values import DAY_MILLISECONDS, Milliseconds

pytestmark = pytest.mark.sqlite_file("it fills a SQLite database in memory")

NOW = Milliseconds(1000 * DAY_MILLISECONDS)
OURS, GROUP, PROVIDERS, DEVICES = 1, 1, (2, 3), (1, 2)


def cutoffs(**keep: int) -> Cutoffs:
    return Cutoffs.of(parse({"provider": "a.example", "data_dir": ".", "retention": keep}, Path()).retention, NOW)


CUTOFFS = cutoffs()


@attrs.frozen
class Epoch:
    """A partition; `age` in days, of its one message or, without one, of the partition."""

    parent: int | None  # the number of an earlier one
    messages: int
    age: int
    terminated: bool = False
    follows: dict[int, int] = attrs.Factory(dict)  # by provider: the next counter
    # By device: the next counter, and how many days ago it was seen.
    cursors: dict[int, tuple[int, int]] = attrs.Factory(dict)
    welcome: bool = False


AGES = st.sampled_from([1, 20, 30, 40, 365, 400])


@st.composite
def epochs(draw: st.DrawFn) -> list[Epoch]:
    found: list[Epoch] = []
    for number in range(draw(st.integers(1, 8))):
        messages = draw(st.integers(0, 1))
        counters = st.integers(0, messages)
        found.append(
            Epoch(
                draw(st.integers(0, number - 1)) if number else None,
                messages,
                draw(AGES),
                draw(st.sampled_from([False, False, True])),
                draw(st.dictionaries(st.sampled_from(PROVIDERS), counters)),
                draw(st.dictionaries(st.sampled_from(DEVICES), st.tuples(counters, AGES), max_size=1)),
                draw(st.sampled_from([False] * 7 + [True])),
            )
        )
    return found


@cache
def empty() -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for migration in shipped():
        connection.executescript(migration.sql)
    return connection.serialize()


# Longer than 40 lines: one INSERT for each table.
def database(group: list[Epoch], failing: int | None = None) -> sqlite3.Connection:
    """Return a database with one group; the first follower has been failing for so many days."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.deserialize(empty())
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.execute(
        "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at) VALUES (1, 1, x'00', 1, 1, 0)"
    )
    connection.executemany("INSERT INTO peers (provider) VALUES (?)", [(each,) for each in PROVIDERS])
    if failing is not None:
        since = NOW - failing * DAY_MILLISECONDS
        connection.execute("UPDATE peers SET failing_since = ? WHERE provider = ?", (since, PROVIDERS[0]))
    for number, each in enumerate(group):
        at = NOW - each.age * DAY_MILLISECONDS
        row, parent = number + 1, None if each.parent is None else each.parent + 1
        connection.execute(
            "INSERT INTO partitions (id, group_ref, hub, masked_key, parent, next_counter, last_seq, opened_at,"
            " terminated_by) VALUES (?1, 1, 1, randomblob(32), ?2, ?3, ?1 * ?3, ?4, ?5)",
            (row, parent, each.messages, at, row if each.terminated else None),
        )
        if each.messages:
            connection.execute(
                "INSERT INTO messages (seq, partition, counter, accepted_at, kind, digest, digest_key, body)"
                " VALUES (?1, ?1, 0, ?2, 1, zeroblob(32), 0, x'00')",
                (row, at),
            )
        for provider, counter in each.follows.items():
            connection.execute(
                "INSERT INTO follows (provider, partition, next_counter) VALUES (?, ?, ?)", (provider, row, counter)
            )
        for device, (counter, age) in each.cursors.items():
            connection.execute(
                "INSERT INTO device_cursors (device, partition, next_counter, seen_at) VALUES (?, ?, ?, ?)",
                (device, row, counter, NOW - age * DAY_MILLISECONDS),
            )
        if each.welcome:
            connection.execute(
                "INSERT INTO outgoing_welcomes (welcome, partition, provider, refs, state, created_at)"
                " VALUES (1, ?, 2, x'', 'due', 0)",
                (row,),
            )
    return connection


def below(group: list[Epoch], number: int) -> list[int]:
    direct = [n for n, each in enumerate(group) if each.parent == number]
    return direct + [further for n in direct for further in below(group, n)]


# Longer than 40 lines: the rules of retention are in one place, to compare with the code.
def model(group: list[Epoch], failing: int | None) -> tuple[dict[int, tuple[set[str], bool]], set[tuple[int, int]]]:
    """Return for each partition why its message may go and whether it expires, and the superseded cursors."""
    anybody, present = ([each.messages for each in group] for _ in range(2))
    stale = set()

    def wait(number: int, counter: int, silent: bool) -> None:
        anybody[number] = min(anybody[number], counter)
        if not silent:
            present[number] = min(present[number], counter)

    for number, each in enumerate(group):
        under = below(group, number)
        for further in (number, *under) if each.welcome else ():
            wait(further, 0, silent=False)
        for provider, counter in each.follows.items():
            silent = provider == PROVIDERS[0] and failing is not None and failing > 365
            wait(number, counter, silent)
            for further in under if counter < each.messages else ():
                if provider not in group[further].follows:
                    wait(further, 0, silent)
        for device, (counter, age) in each.cursors.items():
            if any(device in group[further].cursors for further in under):
                if counter >= each.messages or age > 30:
                    stale.add((device, number + 1))
                else:
                    wait(number, counter, silent=False)
                continue
            wait(number, counter, silent=age > 365)
            for further in under:
                wait(further, 0, silent=age > 365)
    plans = {}
    for number, each in enumerate(group):
        siblings = [other for other in group if other.parent == each.parent and each.parent is not None]
        abandoned = not each.messages and any(other.messages and not other.terminated for other in siblings)
        tip = not each.terminated and not abandoned
        tip = tip and all(other.terminated for other in group if other.parent == number)
        old = 30 if anybody[number] else None, 365 if present[number] else None
        why = {f"{days} days" for days in old if days is not None and each.messages and each.age > days}
        at_once = each.age > 30 and anybody[number] >= each.messages and not each.terminated
        silently = each.age > 365 and present[number] >= each.messages
        expires = not tip and (at_once or silently)
        if why or expires:
            plans[number + 1] = why, expires
    return plans, stale


@settings(max_examples=300, deadline=None)
@given(group=epochs(), failing=st.none() | AGES)
def test_a_plan_follows_the_rules(group: list[Epoch], failing: int | None) -> None:
    connection = database(group, failing)
    plan = plan_group(Tx(connection), GROUP, OURS, ours=OURS, cutoffs=CUTOFFS)
    days = {CUTOFFS.acknowledged: "30 days", CUTOFFS.silent: "365 days"}
    made = {each.partition: ({days[part.before] for part in each.messages}, each.expires) for each in plan.partitions}
    expected, stale = model(group, failing)
    assert made == expected
    assert {(each.device, each.partition) for each in plan.cursors} == stale
    assert plan.due_at == NOW + (1 if any(each.age == 30 for each in group) else DAY_MILLISECONDS)
    assert plan.waits == any(each.messages and each.age > 30 for each in group)
    connection.close()


def plan_of(connection: sqlite3.Connection, hub: int = OURS, cutoffs: Cutoffs = CUTOFFS) -> GroupPlan:
    return plan_group(Tx(connection), GROUP, hub, ours=OURS, cutoffs=cutoffs)


def deleted_after(plan: GroupPlan) -> list[list[int]]:
    """Return after how many days the messages of each partition in a plan are deleted."""
    return [[(NOW - each.before) // DAY_MILLISECONDS for each in one.messages] for one in plan.partitions]


def test_a_group_is_due_when_its_oldest_message_is_a_month_old() -> None:
    connection = database([Epoch(None, 1, 30)])
    connection.execute("UPDATE messages SET accepted_at = accepted_at + 1000")
    plan = plan_of(connection)
    assert (plan.partitions, plan.due_at) == ((), NOW + 1001)
    connection.close()


@pytest.mark.parametrize(("days", "pause"), [(0, 1), (1, DAY_MILLISECONDS // 30), (60, DAY_MILLISECONDS)])
def test_a_group_is_looked_at_thirty_times_while_its_messages_are_kept_and_once_a_day(days: int, pause: int) -> None:
    connection = database([Epoch(None, 0, 0)])
    assert plan_of(connection, cutoffs=cutoffs(acknowledged_message_days=days)).due_at == NOW + pause
    connection.close()


@pytest.mark.parametrize(("joined", "deleted"), [(None, [[30, 365]]), (366, [[365]]), (365, [])])
def test_a_device_without_a_position_waits_for_all_messages(joined: int | None, deleted: list[list[int]]) -> None:
    """Until it is silent for a year."""
    connection = database([Epoch(None, 1, 400)])
    if joined is not None:
        connection.execute(
            "INSERT INTO devices (id, owner, name, token_digest, created_at) VALUES (1, 1, '', zeroblob(32), 0)"
        )
        connection.execute(
            "INSERT INTO participations (group_ref, device, joined_at) VALUES (?, 1, ?)",
            (GROUP, NOW - joined * DAY_MILLISECONDS),
        )
    assert deleted_after(plan_of(connection)) == deleted
    connection.close()


@pytest.mark.parametrize(("seen", "deleted"), [(366, [[365]]), (365, [])])
def test_a_device_is_silent_when_it_was_not_seen_for_a_year(seen: int, deleted: list[list[int]]) -> None:
    connection = database([Epoch(None, 1, 400, cursors={1: (0, seen)})])
    assert deleted_after(plan_of(connection)) == deleted
    connection.close()


@pytest.mark.parametrize(("age", "deleted"), [(40, []), (400, [[365]])])
def test_a_group_of_another_hub_that_no_device_fetched_from_is_kept_for_a_year(
    age: int, deleted: list[list[int]]
) -> None:
    connection = database([Epoch(None, 1, age)])
    assert deleted_after(plan_of(connection, hub=2)) == deleted
    connection.close()


@pytest.mark.parametrize("how", ["detached = 1", "expired_at = 1"])
def test_partitions_that_are_detached_or_expired_are_left_alone(how: str) -> None:
    """They make nothing due, and nothing of them is kept because somebody waits."""
    connection = database([Epoch(None, 1, 400, cursors={1: (0, 20)}), Epoch(0, 0, 20)])
    connection.execute(f"UPDATE partitions SET {how} WHERE id = 1")  # noqa: S608
    assert plan_of(connection) == GroupPlan((), (), Milliseconds(NOW + DAY_MILLISECONDS), waits=False)
    connection.close()
