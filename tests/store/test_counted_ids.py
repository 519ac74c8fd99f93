"""Ids that are given out by counting: each has its rule for a restore."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mimids.store import counted_ids
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import read_here, write_here
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds

NOW = Milliseconds(1_764_000_000_000)
# Columns with such a name count something. A column that only refers to a counted id is named after what it refers to.
COUNTING = re.compile(r"(^|_)(seq|turn|revision|counter|serial|number|generation|version|key_id)$")
# A number of another row, of a release or of the protocol; or a position among numbers that have their rule.
REFERENCES = {
    "accepted_terms.accepted_revision",  # given out by the hub
    "accepted_terms.offered_revision",
    "device_cursors.next_counter",
    "follows.next_counter",
    "groups.version",
    "key_package_refs.version",
    "key_packages.version",
    "messages.counter",
    "offered_terms.accepted_revision",
    "partitions.last_seq",
    "proposals.seq",
    "schema_version.version",
}
# A primary key that is the id of a row elsewhere, or of the only row.
SHARED_KEYS = {
    "accepted_terms.hub",
    "audit_kept.id",
    "changes.id",
    "key_packages.id",
    "moved.partition",
    "offered_terms.provider",
    "ohttp_replay_packages.id",
    "peers.provider",
    "push_subscriptions.device",
    "schema_version.version",
    "tree_sweep.id",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "db"
    migrate(made)
    return made


def columns(tx: Tx) -> list[tuple[str, str, bool]]:
    """Return table, column, and whether the column alone is the INTEGER PRIMARY KEY, of all numbers in the schema."""
    rows = tx.all(
        "SELECT t.name, c.name, c.pk = 1 AND (SELECT max(pk) FROM pragma_table_info(t.name)) = 1"
        " FROM sqlite_schema t JOIN pragma_table_info(t.name) c"
        " WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' AND c.type = 'INTEGER' ORDER BY 1, 2"
    )
    return [(table, column, bool(key)) for table, column, key in rows]


def test_every_id_that_is_counted_has_its_rule(path: Path) -> None:
    with read_here(path) as tx:
        automatic = set(counted_ids.counted_tables(tx))
        found = columns(tx)
    counted = {f"{table}.{column}" for table, column, key in found if key and table not in automatic} - SHARED_KEYS
    counted |= {f"{table}.{column}" for table, column, _ in found if COUNTING.search(column)}
    assert counted - REFERENCES - SHARED_KEYS == set(counted_ids.RULES)


def test_the_lists_of_this_test_name_columns_that_exist(path: Path) -> None:
    with read_here(path) as tx:
        names = {f"{table}.{column}" for table, column, _ in columns(tx)}
    assert names >= REFERENCES | SHARED_KEYS | set(counted_ids.RULES)


def test_every_counted_table_continues_above_what_it_may_have_given_out(path: Path) -> None:
    last = write_here(path, lambda tx: counted_ids.outrun(tx, NOW))
    assert last == NOW * 1000 < 1 << 53
    with read_here(path) as tx:
        given: dict[str, int] = dict(tx.all("SELECT name, seq FROM sqlite_sequence"))
        assert given == dict.fromkeys(counted_ids.counted_tables(tx), last)
    assert write_here(path, lambda tx: counted_ids.outrun(tx, Milliseconds(0))) == last + counted_ids.SKIPPED_IDS


def test_ids_continue_above_those_of_the_database_that_is_replaced(path: Path, tmp_path: Path) -> None:
    migrate(tmp_path / "newer")
    far = 1 << 52
    write_here(
        tmp_path / "newer",
        lambda tx: tx.execute("INSERT INTO users (id, user_id, created_at) VALUES (?, x'61', 0)", (far,)),
    )
    with read_here(tmp_path / "newer") as newer:
        assert write_here(path, lambda tx: counted_ids.outrun(tx, NOW, newer)) == far + counted_ids.SKIPPED_IDS
