"""The tables of a database in PostgreSQL, for a move (`store/engine/tables.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Final

import psycopg

from mimids.store.engine.lock import Locked
from mimids.store.engine.member import FROZEN_SECONDS
from mimids.store.engine.postgresql.connection import Statements, connect, where
from mimids.store.engine.postgresql.member import JOBS_LOCK
from mimids.store.engine.tables import EndFailed, MovedTable, highest_id, moved_tables
from mimids.store.engine.transaction import Row, Tx

_TYPES: Final = {"INTEGER": "int8", "TEXT": "text", "BLOB": "bytea", "REAL": "float8"}
# A transaction that checks all rows may take long. No other session waits for its locks.
_SETTINGS: Final = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0"
_ALIVE: Final = (
    "SELECT 1 FROM processes WHERE seen_at >= CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) - ?"
)


class PostgresqlTables:
    """The tables of a database in PostgreSQL."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self.sql = Tx(Statements(connection))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all statements of the block together, or none of them."""
        with self._connection.transaction():
            yield

    def append(self, table: MovedTable, rows: Sequence[Row]) -> None:
        """Add rows, durably and all together."""
        copy_in = f"COPY {table.name} ({table.column_names}) FROM STDIN (FORMAT BINARY)"
        with self._connection.cursor().copy(copy_in.encode()) as copy:
            copy.set_types([_TYPES[column.kind] for column in table.columns])
            for row in rows:
                copy.write_row(row)

    def drop_references(self) -> list[str]:
        """Drop the foreign keys, so that rows may come in any order; return the statements that add them again."""
        found = self.sql.all(
            "SELECT CAST(CAST(conrelid AS regclass) AS text), CAST(conname AS text), pg_get_constraintdef(oid)"
            " FROM pg_constraint WHERE contype = 'f' AND connamespace = CAST(current_schema() AS regnamespace)"
            " ORDER BY 1, 2"
        )
        for table, name, _ in found:
            self.sql.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"')
        return [f'ALTER TABLE {table} ADD CONSTRAINT "{name}" {definition}' for table, name, definition in found]

    def check_references(self, statements: Sequence[str]) -> None:
        """Add the foreign keys again; raise `EndFailed` if a row refers to nothing."""
        for statement in statements:
            try:
                self.sql.execute(statement)
            except psycopg.errors.ForeignKeyViolation as error:
                raise EndFailed(str(error.diag.message_primary)) from error

    def last_ids(self) -> dict[str, int]:
        """Return the last id that was given out, by table."""
        ids = {}
        for table in moved_tables():
            if table.id is not None:
                query = f"SELECT coalesce(pg_sequence_last_value(CAST({_sequence(table)} AS regclass)), 0)"
                (last,) = self.sql.one(query) or (0,)
                ids[table.name] = max(int(last), highest_id(self.sql, table))
        return ids

    def set_last_ids(self, ids: Mapping[str, int]) -> None:
        """Give out only higher ids from now on."""
        for table in moved_tables():
            if table.id is not None and ids[table.name]:
                self.sql.all(f"SELECT setval({_sequence(table)}, ?)", (ids[table.name],))


@contextmanager
def open_database(url: str) -> Iterator[PostgresqlTables]:
    """Open a migrated database; raise `Locked` if a process serves it, and `EndFailed` if it cannot be used.

    Until the end of the block no process can run the jobs, and no other move can begin.
    """
    try:
        with closing(connect(url)) as connection:
            connection.pgconn.exec_(_SETTINGS.encode())
            tables = PostgresqlTables(connection)
            taken = tables.sql.one("SELECT pg_try_advisory_lock(?)", (JOBS_LOCK,))
            if taken != (1,) or tables.sql.one(_ALIVE, (int(FROZEN_SECONDS * 1000),)) is not None:
                raise Locked(where(url), None)
            yield tables
    except psycopg.Error as error:
        raise EndFailed(f"{where(url)}: {str(error).strip().partition(chr(10))[0]}") from error


def _sequence(table: MovedTable) -> str:
    return f"pg_get_serial_sequence('{table.name}', '{table.id}')"
