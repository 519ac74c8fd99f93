"""Connections to PostgreSQL: opening them, sending and reading values, and the meaning of errors.

Values are the same as with SQLite: a flag is 0 or 1, a sum is an int, a text is compared with texts only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import psycopg
from psycopg import adapt, conninfo, postgres
from psycopg.pq import Format
from psycopg.types.numeric import Int8BinaryDumper, NumericBinaryLoader
from psycopg.types.string import StrBinaryDumper

from mimids.errors import StorageUnavailable
from mimids.store.engine.store import damaged
from mimids.store.engine.transaction import Cursor, Row
from mimids.store.engine.translation import with_numbered_places

if TYPE_CHECKING:
    from psycopg.abc import AdaptContext

OLDEST: Final = 150_000  # PostgreSQL 15
PREPARED_STATEMENTS: Final = 1024  # prepared on each connection: more than the statements in store/

# Defaults, which a URL may override. A connection to a machine that is gone ends within about ten seconds.
_DEFAULTS: Final = {
    "application_name": "mimids",
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "target_session_attrs": "read-write",
}
# A process that hangs loses its transaction, and with it its locks, before others give up waiting for these locks. No
# statement waits for ever.
_SETTINGS: Final = (
    "SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '8s'; SET statement_timeout = '60s';"
    " SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3;"
    " SET tcp_user_timeout = 10000; SET client_encoding = 'UTF8'; SET timezone = 'UTC'"
)

# SQLSTATE classes that say that the database cannot work now, not that the statement is wrong: connection exceptions,
# transaction rollback, insufficient resources, operator intervention, system errors.
_STORAGE_CLASSES: Final = frozenset({"08", "40", "53", "57", "58"})
_STORAGE_STATES: Final = frozenset({
    "25006",  # read_only_sql_transaction: this server has become a standby
    "25P03",  # idle_in_transaction_session_timeout
    "55P03",  # lock_not_available
})  # fmt: skip
_CONFLICT_STATES: Final = frozenset({"40P01", "40001"})
_DAMAGE_STATES: Final = frozenset({"XX001", "XX002"})  # data_corrupted, index_corrupted


class _Flag(adapt.Dumper):
    """Send True and False as 1 and 0, as SQLite stores them."""

    oid = postgres.types["int8"].oid

    def dump(self, obj: bool) -> bytes:
        return b"1" if obj else b"0"


class _Text(StrBinaryDumper):
    """Send text with the type text, so that PostgreSQL never takes it for octets; U+0000 cannot be stored."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)


class _LoadedFlag(adapt.Loader):
    """Read a condition as 0 or 1."""

    format = Format.BINARY

    def load(self, data: Any) -> int:
        return int(bytes(data) != b"\0")


class _LoadedSum(adapt.Loader):
    """Read a sum of integers as int."""

    format = Format.BINARY

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._decimal = NumericBinaryLoader(oid, context)

    def load(self, data: Any) -> int:
        return int(self._decimal.load(data))


EVERY_TABLE: Final = "*"
_TABLE: Final = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE)\s+(\w+)")
ReadKey: TypeAlias = tuple[str, tuple[object, ...]]  # a statement and its parameters
ReadRows: TypeAlias = dict[ReadKey, list[Row]]


class _Rows:
    """The result of a read that was made ahead."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    @property
    def rowcount(self) -> int:
        return len(self._rows)

    def fetchone(self) -> Row | None:
        return self._rows[0] if self._rows else None

    def fetchall(self) -> list[Row]:
        return self._rows


class Statements:
    """A connection as `Tx` needs it: SQL with SQLite's placeholders, values in binary form."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.is_shared = False  # other processes may write beside the transaction (`Tx.run_alone`)
        self._ahead: ReadRows = {}  # rows that were read ahead and are still the same (`read_ahead`)
        self._written: set[str] = set()  # the tables to which the current work wrote
        self._unsent: list[tuple[str, list[Sequence[object]]]] = []  # writes that are sent later (`executemany`)

    def execute(self, sql: str, parameters: Sequence[object] = (), /) -> Cursor:
        """Run one statement."""
        if not sql.startswith("SELECT"):
            self._note_write(sql)
        elif self._ahead and (rows := self._ahead.pop((sql, tuple(parameters)), None)) is not None:
            return _Rows(rows)
        if not self._unsent:
            return cast("Cursor", self.connection.execute(_text(sql), parameters, binary=True))
        with self.connection.pipeline():
            self._send()
            return cast("Cursor", self.connection.execute(_text(sql), parameters, binary=True))

    def begin_work(self, ahead: ReadRows) -> None:
        """Begin a work, for which these rows were read ahead."""
        self._ahead, self._written = ahead, set()

    def end_work(self) -> set[str]:
        """End a work; return the tables to which it wrote."""
        self._ahead = {}
        return self._written

    def _note_write(self, sql: str) -> None:
        self._ahead = {}
        self._written |= tables_of(sql)

    def read_together(self, reads: Sequence[ReadKey]) -> list[list[Row]]:
        """Send the statements that wait, and then these reads, in one request; return the rows of each read."""
        with self.connection.pipeline():
            self._send()
            cursors = [self.connection.execute(_text(sql), parameters, binary=True) for sql, parameters in reads]
        return [cursor.fetchall() for cursor in cursors]

    def send_all(self) -> None:
        """Send the statements that wait, and wait for the answers."""
        if self._unsent:
            with self.connection.pipeline():
                self._send()

    def begin(self, *, is_shared: bool) -> None:
        """Begin a transaction, beside those of other processes or alone."""
        self.is_shared = is_shared
        self._unsent, self._ahead = [], {}

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        for sql, rows in unsent:
            for row in rows:
                self.connection.execute(_text(sql), row, binary=True)

    def executemany(self, sql: str, parameters: Iterable[Sequence[object]], /) -> Cursor:
        """Run one statement for each row of parameters, without waiting for each answer.

        In a transaction beside others, they are sent later: with the next read, or before the commit.
        """
        self._note_write(sql)
        if self.is_shared:
            self._unsent.append((sql, list(parameters)))
            return cast("Cursor", _Rows([]))
        cursor = self.connection.cursor()
        cursor.executemany(_text(sql), parameters)
        return cast("Cursor", cursor)


@lru_cache(maxsize=2048)
def tables_of(sql: str) -> frozenset[str]:
    """Return the names of the tables that a statement uses.

    A statement may write to more tables than it names (a DELETE with its cascades, the end of a savepoint). Then the
    answer is only EVERY_TABLE. The answer for a SELECT contains EVERY_TABLE besides its tables, so that such a write
    counts as a write to its tables.
    """
    if sql.startswith(("INSERT", "UPDATE")):
        return frozenset(_TABLE.findall(sql))
    return frozenset((EVERY_TABLE, *_TABLE.findall(sql))) if sql.startswith("SELECT") else frozenset((EVERY_TABLE,))


def _text(sql: str) -> Any:
    return with_numbered_places(sql)


def connect(url: str) -> psycopg.Connection:
    """Open a connection that commits each statement by itself outside of BEGIN and COMMIT; raise `psycopg.Error`."""
    parameters = {**_DEFAULTS, **conninfo.conninfo_to_dict(url)}
    connection = psycopg.connect(autocommit=True, cursor_factory=psycopg.RawCursor, **cast("Any", parameters))
    try:
        connection.pgconn.exec_(_SETTINGS.encode())
        connection.prepared_max = PREPARED_STATEMENTS
        for kind, dumper in ((int, Int8BinaryDumper), (bool, _Flag), (str, _Text)):
            connection.adapters.register_dumper(kind, dumper)
        connection.adapters.register_loader("bool", _LoadedFlag)
        connection.adapters.register_loader("numeric", _LoadedSum)
    except BaseException:
        connection.close()
        raise
    return connection


def where(url: str) -> str:
    """Return a name of a database for messages: its hosts and its name, without secrets."""
    found = conninfo.conninfo_to_dict(url)
    hosts = found.get("host") or found.get("hostaddr") or "the local socket"
    return f"the PostgreSQL database {found.get('dbname') or found.get('user') or ''} at {hosts}".replace("  ", " ")


def is_storage_failure(error: BaseException) -> bool:
    """Tell whether an error means that the database cannot be reached or cannot work now."""
    if not isinstance(error, psycopg.Error):
        return False
    state = error.sqlstate
    if state is None:  # libpq's own: the connection is lost, or could not be made
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return state[:2] in _STORAGE_CLASSES or state in _STORAGE_STATES


def is_conflict(error: BaseException) -> bool:
    """Tell whether a transaction was undone because of another one: deadlock_detected, serialization_failure."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _CONFLICT_STATES


def is_damage(error: BaseException) -> bool:
    """Tell whether an error means that the database's files are damaged."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _DAMAGE_STATES


def refusal(error: Exception) -> Exception:
    """Return the error that the caller is to see: `StorageUnavailable` if the database is at fault."""
    if is_damage(error):
        refused = damaged(str(error).partition("\n")[0])
    elif is_storage_failure(error):
        refused = StorageUnavailable()
    else:
        return error
    refused.__cause__ = error
    return refused
