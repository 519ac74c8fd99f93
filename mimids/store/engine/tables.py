"""The tables of a database as data, for moving all rows from one database to another (`store/move.py`).

The tables are those that the migrations make; both engines have the same. `SqliteTables` reads and writes them in a
file, `postgresql/tables.py` in PostgreSQL.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final, Protocol

import attrs

from mimids.store.engine.lock import hold
from mimids.store.engine.migrate import in_memory, shipped
from mimids.store.engine.sqlite import connect, files_of
from mimids.store.engine.transaction import Row, Tx

MARK: Final = "move"  # the row of `settings` that marks a database as one end of a move; this row is not moved
NOT_MOVED: Final = frozenset({"connected_devices", "hearing_processes", "processes"})  # rows of running processes
# Columns with stamps of `moved`, and with positions in these stamps. Each database numbers stamps in its own way. So
# all of them begin at 0 in the target, and the server checks again what each follower has.
_STAMPS: Final = frozenset({"stamp", "next_stamp"})
FILLED: Final = frozenset({"audit_kept", "changes", "schema_version"})  # have rows in an empty database
PAGE_ROWS: Final = 256


class EndFailed(Exception):
    """A database at one end of a move cannot be used; the message is for the operator."""


@attrs.frozen
class Column:
    """A column, with its type in SQLite: INTEGER, TEXT, BLOB or REAL."""

    name: str
    kind: str


@attrs.frozen
class MovedTable:
    """A table. Without a primary key, `key` is empty, and all rows are read and written at once."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    id: str | None  # the column of a primary key that is one INTEGER
    counted: bool  # an id is never given out again (AUTOINCREMENT)

    @property
    def column_names(self) -> str:
        """Return the quoted names of the columns, for SQL."""
        return _quoted([column.name for column in self.columns])

    @property
    def moved_rows(self) -> str:
        """Return the SQL condition that selects the rows to move."""
        return f"name <> '{MARK}'" if self.name == "settings" else "1 = 1"

    @property
    def insert(self) -> str:
        """Return the statement that adds a row."""
        return f"INSERT INTO {self.name} ({self.column_names}) VALUES ({', '.join('?' * len(self.columns))})"


class Tables(Protocol):
    """One end of a move. Each statement of `sql` is committed by itself, except within `transaction`."""

    sql: Tx

    def transaction(self) -> AbstractContextManager[None]:
        """Commit all statements of the block together, or none of them."""

    def append(self, table: MovedTable, rows: Sequence[Row]) -> None:
        """Add rows, durably and all together."""

    def drop_references(self) -> list[str]:
        """Stop checking foreign keys; return the statements that `check_references` needs. Call it in a transaction."""

    def check_references(self, statements: Sequence[str]) -> None:
        """Check foreign keys from now on; raise `EndFailed` if a row refers to nothing. Call it in a transaction."""

    def last_ids(self) -> dict[str, int]:
        """Return the last id that was given out, by table."""

    def set_last_ids(self, ids: Mapping[str, int]) -> None:
        """Give out only higher ids from now on. Call it in a transaction."""


# --- what both engines share ------------------------------------------------------------------------------------


@cache
def moved_tables() -> tuple[MovedTable, ...]:
    """Return the tables whose rows are moved, each after the tables that it refers to.

    `changes` is the last, because adding rows to other tables changes it in PostgreSQL.
    """
    with closing(in_memory(shipped())) as model:
        found = model.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        tables = {name: _table(model, name, sql) for name, sql in found.fetchall() if name not in NOT_MOVED}
        references = {
            name: {row[2] for row in model.execute(f"PRAGMA foreign_key_list({name})")} - {name}
            for name in sorted(tables)
        }
    order = [name for name in TopologicalSorter(references).static_order() if name != "changes"]
    return tuple(tables[name] for name in [*order, "changes"])


def _table(model: sqlite3.Connection, name: str, sql: str) -> MovedTable:
    rows = model.execute(f"PRAGMA table_info({name})").fetchall()
    key = [row for row in rows if row[5]]
    is_id = len(key) == 1 and key[0][2] == "INTEGER"
    return MovedTable(
        name,
        tuple(Column(row[1], row[2]) for row in rows),
        tuple(row[1] for row in sorted(key, key=lambda row: row[5])),
        key[0][1] if is_id else None,
        "AUTOINCREMENT" in sql,
    )


def count(tables: Tables, table: MovedTable) -> int:
    """Return the number of rows to move."""
    return _number(tables.sql, f"SELECT count(*) FROM {table.name} WHERE {table.moved_rows}")


def highest_id(sql: Tx, table: MovedTable) -> int:
    """Return the highest id of a row, 0 if there is no row."""
    return _number(sql, f'SELECT coalesce(max("{table.id}"), 0) FROM {table.name}')


def is_empty(tables: Tables, table: MovedTable) -> bool:
    """Tell whether a table has no rows."""
    return tables.sql.one(f"SELECT 1 FROM {table.name} LIMIT 1") is None


def last_key(tables: Tables, table: MovedTable) -> Row | None:
    """Return the highest primary key, None if there are no rows."""
    order = ", ".join(f'"{name}" DESC' for name in table.key)
    found = f"SELECT {_quoted(table.key)} FROM {table.name} WHERE {table.moved_rows} ORDER BY {order} LIMIT 1"
    return tables.sql.one(found)


def pages(tables: Tables, table: MovedTable, after: Row | None = None) -> Iterator[list[Row]]:
    """Yield the rows of a table in the order of the primary key, those with a higher key than `after`.

    In texts, U+FFFD replaces U+0000, which PostgreSQL cannot store.
    """
    read = ", ".join("0" if column.name in _STAMPS else f'"{column.name}"' for column in table.columns)
    select = f"SELECT {read} FROM {table.name} WHERE {table.moved_rows}"
    if not table.key:
        order = ", ".join(f'"{column.name}" NULLS FIRST' for column in table.columns)
        yield tables.sql.all(f"{select} ORDER BY {order}")
        return
    names, places = _quoted(table.key), ", ".join("?" * len(table.key))
    page = f"{select} AND ({names}) > ({places}) ORDER BY {names} LIMIT {PAGE_ROWS}"
    rows = (
        tables.sql.all(f"{select} ORDER BY {names} LIMIT {PAGE_ROWS}") if after is None else tables.sql.all(page, after)
    )
    while rows:
        yield [tuple(map(_storable, row)) for row in rows] if _has_zeros(rows) else rows
        rows = tables.sql.all(page, _key_in_order(table, rows[-1]))


def digest(found: Iterator[list[Row]]) -> tuple[int, bytes]:
    """Return the number of rows, and a SHA-256 that is the same for the same rows in either engine."""
    hashed, total = hashlib.sha256(), 0
    for page in found:
        total += len(page)
        for row in page:
            hashed.update(b"%d:" % len(row) + b"".join(map(_octets, row)))
    return total, hashed.digest()


def _octets(value: object) -> bytes:
    match value:
        case None:
            return b"n;"
        case bytes():
            return b"b%d:" % len(value) + value
        case str():
            text = value.encode()
            return b"t%d:" % len(text) + text
        case _:  # int and float, whose text is exact
            return repr(value).encode() + b";"


def _has_zeros(rows: Sequence[Row]) -> bool:
    return any(isinstance(value, str) and "\0" in value for row in rows for value in row)


def _storable(value: object) -> object:
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _key_in_order(table: MovedTable, row: Row) -> Row:
    values = {column.name: value for column, value in zip(table.columns, row, strict=True)}
    return tuple(values[name] for name in table.key)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _number(sql: Tx, query: str) -> int:
    found = sql.one(query)
    return 0 if found is None else int(found[0])


# --- SQLite -----------------------------------------------------------------------------------------------------


class SqliteTables:
    """The tables of a SQLite file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.sql = Tx(connection)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all statements of the block together, or none of them."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def append(self, table: MovedTable, rows: Sequence[Row]) -> None:
        """Add rows, durably and all together."""
        with self.transaction():
            self.sql.executemany(table.insert, rows)

    def drop_references(self) -> list[str]:
        """Do nothing: foreign keys are not checked on this connection."""
        return []

    def check_references(self, statements: Sequence[str]) -> None:
        """Check all foreign keys; raise `EndFailed` if a row refers to nothing."""
        dangling = self._connection.execute("PRAGMA foreign_key_check").fetchone()
        if dangling is not None:
            raise EndFailed(f"a row of {dangling[0]} refers to a row of {dangling[2]} that does not exist")

    def last_ids(self) -> dict[str, int]:
        """Return the last id that was given out, by table."""
        counted: dict[str, int] = dict(self.sql.all("SELECT name, coalesce(seq, 0) FROM sqlite_sequence"))
        ids = [table for table in moved_tables() if table.id is not None]
        return {table.name: max(counted.get(table.name, 0), highest_id(self.sql, table)) for table in ids}

    def set_last_ids(self, ids: Mapping[str, int]) -> None:
        """Give out only higher ids from now on."""
        for table in moved_tables():
            if table.counted and ids[table.name]:
                self.sql.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table.name,))
                self.sql.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table.name, ids[table.name]))


@contextmanager
def open_file(path: Path) -> Iterator[SqliteTables]:
    """Open a migrated file; raise `Locked` if a server uses it, and `EndFailed` if it cannot be used."""
    try:
        with hold(path.parent), closing(connect(path)) as connection:
            connection.execute("PRAGMA foreign_keys=OFF")
            yield SqliteTables(connection)
    except sqlite3.Error as error:
        raise EndFailed(f"{path}: {error}") from error


def delete_file(path: Path) -> None:
    """Delete a database that is not in use."""
    for file in files_of(path):
        file.unlink(missing_ok=True)
