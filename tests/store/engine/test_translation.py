"""Every statement of the package is one text for SQLite and PostgreSQL, and the schema translates mechanically."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import connect
from mimids.store.engine.translation import Untranslatable, rows_of, schema_of, with_numbered_places
from tests.support import postgresql
from tests.support.sql_of import Statement, statements

if TYPE_CHECKING:
    import psycopg

needs_postgresql = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))

# Functions for files of SQLite, and why PostgreSQL does not need them.
FOR_FILES_ONLY = {
    "cli.backup._newer": "restore works on files; PostgreSQL has backups of its own",
    "store.acknowledged.progress": "the log of PostgreSQL is checked by PostgreSQL",
    "store.counted_ids.outrun": "restore works on files",
    "store.counted_ids.counted_tables": "restore works on files",
    "store.counted_ids._highest": "restore works on files",
    "store.engine.token_places.watch": "the places of rows in SQLite's file",
    "store.engine.token_places.rewrite_block": "the places of rows in SQLite's file",
}
FOR_POSTGRESQL_ONLY = {
    "store.counted_ids.outrun_in_postgresql": "the sequences of PostgreSQL",
    "store.engine.postgresql.rewriting.rewrite_block": "the hidden columns of PostgreSQL",
}


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    migrate(tmp_path / "db")
    with closing(connect(tmp_path / "db")) as connection:
        yield connection


@pytest.fixture
def postgres() -> Iterator[psycopg.Connection]:
    yield from postgresql.connections(postgresql.new_database())


def common_statements() -> list[Statement]:
    return [each for each in statements() if each.function not in FOR_FILES_ONLY]


@needs_postgresql
def test_every_statement_can_be_prepared_on_both_engines(
    sqlite: sqlite3.Connection, postgres: psycopg.Connection
) -> None:
    for statement in schema_of(sqlite):
        postgres.execute(statement.encode())
    refused = []
    for each in common_statements():
        if each.function not in FOR_POSTGRESQL_ONLY:
            sqlite.execute(f"EXPLAIN {each.sql}", (None,) * count_of_places(each.sql))
        result = postgres.pgconn.prepare(b"", with_numbered_places(each.sql).encode())
        if result.error_message:
            refused.append((each.function, result.error_message.decode(), each.sql))
    assert refused == []
    assert len(common_statements()) > 500


def count_of_places(sql: str) -> int:
    return max((int(number) for number in re.findall(r"\$(\d+)", with_numbered_places(sql))), default=0)


def test_the_functions_for_files_exist() -> None:
    assert FOR_FILES_ONLY.keys() | FOR_POSTGRESQL_ONLY.keys() <= {each.function for each in statements()}


def test_every_order_by_a_column_that_may_be_null_says_where_nulls_come(sqlite: sqlite3.Connection) -> None:
    """SQLite has NULL below all values, PostgreSQL above them."""
    nullable: set[str] = set()
    certain: set[str] = set()
    for (table,) in sqlite.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"):
        for _, name, _, not_null, _, key in sqlite.execute(f"PRAGMA table_info({table})"):
            (certain if not_null or key else nullable).add(name)
    vague = []
    for each in common_statements():
        for terms in re.findall(r"ORDER BY (.*?)(?: LIMIT|\)|$)", each.sql):
            for term in terms.split(", "):
                column = term.split()[0].rpartition(".")[2]
                if column in nullable - certain and "NULLS" not in term and column not in KNOWN_THERE:
                    vague.append((each.function, term))
    assert vague == []


# Columns by which only rows are ordered in which they are known: the condition says so.
KNOWN_THERE = {"left_at", "parent"}


def test_places_are_numbered_outside_of_literals() -> None:
    assert with_numbered_places("SELECT ?, '?''?', ?") == "SELECT $1, '?''?', $2"
    assert with_numbered_places("SELECT ?2, ?1, ?2") == "SELECT $2, $1, $2"


@needs_postgresql
def test_text_is_compared_by_octets_and_the_audit_table_only_grows(
    sqlite: sqlite3.Connection, postgres: psycopg.Connection
) -> None:
    import psycopg as driver

    for statement in schema_of(sqlite):
        postgres.execute(statement.encode())
    added = [statement for statement, _ in rows_of(sqlite) if "schema_version" not in statement]
    assert added == ["INSERT INTO audit_kept VALUES (?, ?)", "INSERT INTO changes VALUES (?, ?)"]
    postgres.execute("INSERT INTO audit_kept VALUES (1, 0)")
    postgres.execute("INSERT INTO providers (domain) VALUES ('b'), ('B'), ('a-b'), ('ab')")
    assert [row[0] for row in postgres.execute("SELECT domain FROM providers ORDER BY domain")] == [
        "B",
        "a-b",
        "ab",
        "b",
    ]
    postgres.execute("INSERT INTO audit (at, actor, command, arguments) VALUES (5, 'shell 0', 'user add', '{}')")
    for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"):
        with pytest.raises(driver.errors.RaiseException):
            postgres.execute(statement.encode())
    postgres.execute("UPDATE audit_kept SET since = 6")
    assert postgres.execute("DELETE FROM audit").rowcount == 1


def test_a_trigger_of_another_kind_is_refused(sqlite: sqlite3.Connection) -> None:
    sqlite.execute("CREATE TRIGGER other AFTER INSERT ON users BEGIN DELETE FROM users; END")
    with pytest.raises(Untranslatable):
        list(schema_of(sqlite))
