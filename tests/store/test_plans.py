"""Every statement of the package finds its rows by an index, apart from exceptions that say why."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import connect
from tests.support.sql_of import plan, statements

# Functions that may read whole tables or sort, and why. A name that ends with a point stands for a module.
_LIST = "a list of everything, which the operator asked for; on a reader of its own"
_ONE_GROUP = "the partitions of one group, for the operator or after a restore"
_SMALL = "a table of a few rows"
_RESTORE = "runs once, after a restore"
_PROVIDERS = "a row for each other provider"
_WAITING = "a partial index of what still waits, which is read whole"
EXCEPTIONS = {
    "store.account_details.": "the devices of one user, for the operator",
    "store.accounts.all_users": _LIST,
    "store.participations.of_refused": "suspended users, and what was requested and never pushed; after some commands",
    "store.push_subscriptions.subscribed": "at the start",
    "store.push_subscriptions.crashed": "a row for each process",
    "store.push_subscriptions.opened": "at the start",
    "store.push_subscriptions.endpoints": "for mimids check",
    "store.accounts.devices_of": "the devices of one user",
    "store.acknowledged.": "sqlite_sequence: a row for each table",
    "store.arrangements.": _PROVIDERS,
    "store.bans.": "bans and mutes, which the operator made; kept in memory",
    "store.came_back.": _RESTORE,
    "store.carried_over.": _RESTORE,
    "store.counted_ids.": _RESTORE,
    "store.damage.": _SMALL,
    "store.departures.": "the departures are bounded for each hub; groups and partitions are found from them",
    "store.engine.postgresql.rewriting.": "for PostgreSQL, whose plans are not looked at here",
    "store.engine.token_places.": "of a temporary table; reads all tokens once, in the first sweep after the start",
    "store.federation_rules.": "what the operator decided on other providers",
    "store.group_deletion.": "runs when the operator deletes a group, or after a restore",
    "store.group_storage.": _ONE_GROUP,
    "store.key_packages.find_known": "at most two rows",
    "store.key_packages.retire_unclaimed": _RESTORE,
    "store.ohttp.keys": _SMALL,
    "store.ohttp.blank_keys": _SMALL,
    "store.ohttp.forget_answers": "the first rows in the order of the table, up to a limit",
    "store.overview.group_summaries": _LIST,
    "store.overview.group_summary": _ONE_GROUP,
    "store.overview.group_summaries_of_id": _ONE_GROUP,
    "store.overview.partition_summaries": _ONE_GROUP,
    "store.overview.newest_moment": "runs once, before the first sweep of a database",
    "store.overview.commits_of_others": "for a demonstration",
    "store.overview.devices_without_stock": "a look into an index for each device; the page is kept if that takes long",
    "store.overview.stock_by_suite": "the stock of all devices; the page is kept if that takes long",
    "store.overview._behind": "the rows that the inner statement found, up to a limit",
    "store.overview.peer_lags": _PROVIDERS,
    "store.overview.peer_summaries": _PROVIDERS,
    "store.overview.newest_groups": "the last rows in the order of the table, up to a limit; forks in use",
    "store.overview.summaries_of_rows": "one group at a time, up to a limit",
    "store.listing.groups_beginning_with": "a look into an index for each provider",
    "store.overview.group_totals": "counts the entries of an index of groups, and forks in use",
    "store.participations.end_of_removed": _RESTORE,
    "store.partitions.partitions_of_group": _ONE_GROUP,
    "store.partitions.newest_of_hub": _RESTORE,
    "store.partitions.forks_of_hub": "open branches, in the order of an index",
    "store.partitions.way_up": "so many levels above one partition",
    "store.proposals.self_removes_that_begin": "what the inner statement found, up to a limit",
    "store.welcomes.is_group_expected": "the first row of an index",
    "store.partitions.attached_of_epoch": "the partitions of one epoch of a group, for an external commit",
    "store.partitions.attach": "what the recursive part of the statement found",
    "store.terminations._spread_termination": "what the recursive part of the statement found",
    "store.tips.open_tips": "what the inner statement found, up to a limit",
    "store.processes.": _SMALL,
    "store.proposals.newest_of_type": "the proposals of one epoch",
    "store.provider_keys.add_of_device": "the keys of one device, where it has too many",
    "store.provider_keys.all_keys": _SMALL,
    "store.provider_keys.retire": _SMALL,
    "store.provider_keys.delete_retired": _SMALL,
    "store.peers.": _PROVIDERS,
    "store.providers.": _PROVIDERS,
    "store.rates.load": "runs once, at the start",
    "store.recoveries.": _RESTORE,
    "store.restored_positions.": _RESTORE,
    "store.removed._forget": "runs when the operator removes a device or a user",
    "store.traces.": "runs when the operator asks what is stored of a user",
    "store.reports.newest": "the last rows in the order of the table, up to a limit",
    "store.reports.count_open": _WAITING,
    "store.reports.next_to_replay": _WAITING,
    "store.groups.unmatched_bytes": "what one hub pushed of groups without a device of ours, which has a limit",
    "store.retention.follows_behind": "the followers of one group",
    "store.retention.unmatched_groups": "a partial index of groups without a device of ours, which is read whole",
    "store.trees.": "tree_sweep has one row; of tree_notes any rows are read, up to a limit",
    "store.waiting_welcomes.waiting": "what still waits, for the operator",
    "store.welcomes.drop_references": _WAITING,
    "store.welcomes.deliver_again": "runs once, after another provider was restored",
    "store.welcomes.due_pairs": _WAITING,
    "store.welcomes.due_senders": _WAITING,
    "store.welcomes.match_group": "the first row in the order of an index",
    "store.welcomes.try_soon": _WAITING,
    "store.welcomes.providers_put_off": _WAITING,
}

_MUCH = ("TEMP B-TREE", "(provider=?)", "(hub=?)")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    migrate(tmp_path / "db")
    connection = connect(tmp_path / "db")
    yield connection
    connection.close()


def is_excepted(function: str) -> bool:
    return function in EXCEPTIONS or f"{function.rpartition('.')[0]}." in EXCEPTIONS


def analyse(connection: sqlite3.Connection) -> None:
    """Let the planner believe in tables of a million rows, and in partial indexes of a hundredth of them."""
    connection.execute("ANALYZE")
    indexes = connection.execute("SELECT tbl_name, name, sql FROM sqlite_schema WHERE type = 'index'").fetchall()
    for table, index, sql in indexes:
        columns = len(connection.execute(f"PRAGMA index_info({index})").fetchall())
        rows, found = (10_000, 1) if " WHERE " in (sql or "") else (1_000_000, 100)
        numbers = " ".join(str(max(1, found // 10**column)) for column in range(columns))
        connection.execute("INSERT INTO sqlite_stat1 VALUES (?, ?, ?)", (table, index, f"{rows} {numbers}"))
    connection.execute("ANALYZE sqlite_schema")


def reads_too_much(connection: sqlite3.Connection, sql: str) -> list[str]:
    """Return the lines of a plan that read a whole table, or all that one provider has in it, or sort.

    A subquery in a FROM is judged by its own lines; one that is counted is called `counted`.
    """
    found = [line for line in plan(connection, sql) if line.startswith("SCAN ") or any(each in line for each in _MUCH)]
    return [
        line
        for line in found
        if "CONSTANT" not in line and not re.search(r"\(subquery|SCAN (counted|stock|side|used)\b", line)
    ]


def test_no_statement_reads_a_whole_table_or_sorts(database: sqlite3.Connection) -> None:
    assert offenders(database) == []


def test_no_statement_reads_a_whole_table_where_the_database_was_analysed(database: sqlite3.Connection) -> None:
    """With statistics, the planner may sort the few rows of a partition that it found by another index."""
    analyse(database)
    assert [line for line in offenders(database) if "SCAN" in line[1]] == []


def offenders(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    return [
        (each.function, line)
        for each in statements()
        if not is_excepted(each.function)
        for line in reads_too_much(connection, each.sql)
    ]


def test_a_statement_without_an_index_is_seen(database: sqlite3.Connection) -> None:
    assert reads_too_much(database, "SELECT 1 FROM messages WHERE accepted_at = ?") == ["SCAN messages"]
    (line,) = reads_too_much(database, "SELECT 1 FROM partitions WHERE group_ref = ? ORDER BY last_seq")
    assert "TEMP B-TREE" in line
    (line,) = reads_too_much(database, "SELECT 1 FROM follows WHERE provider = ? AND next_counter = 0")
    assert "(provider=?)" in line


def test_the_commits_of_a_partition_are_read_from_their_own_index(database: sqlite3.Connection) -> None:
    """Any other index would read all messages of the partition, with each message that is sent to it."""
    (commits_of,) = [each.sql for each in statements() if each.function == "store.messages.commits_of"]
    ((*_, plan),) = database.execute(f"EXPLAIN QUERY PLAN {commits_of}", (1,)).fetchall()
    assert "COVERING INDEX commits" in plan


def test_the_statements_of_all_parts_are_found() -> None:
    found = {each.function for each in statements()}
    assert {"store.follows.settle", "store.messages.append", "store.welcomes.sweep_page"} <= found
    assert len(found) > 200
