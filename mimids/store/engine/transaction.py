"""The interface of a transaction: statements in, rows out. It does not depend on SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

from mimids.errors import MimiError

T = TypeVar("T")
Row = tuple[Any, ...]


class Cursor(Protocol):
    """The result of one statement."""

    @property
    def rowcount(self) -> int:
        """How many rows the statement changed."""

    @property
    def lastrowid(self) -> int | None:
        """The id of the row that an INSERT added."""

    def fetchone(self) -> Any:
        """Return the next row, or None."""

    def fetchall(self) -> list[Any]:
        """Return the remaining rows."""


class SqlConnection(Protocol):
    """What `Tx` needs of a database connection; `sqlite3.Connection` has it."""

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        """Run one statement."""

    def executemany(self, sql: str, parameters: Any, /) -> Cursor:
        """Run one statement for each row of parameters."""


class Tx:
    """A transaction: runs statements with their parameters and returns rows as tuples.

    Use it only inside the function that it was passed to: it belongs to one thread and one transaction.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: SqlConnection) -> None:
        self._connection = connection

    def execute(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run one statement and return how many rows it changed."""
        return self._connection.execute(sql, params).rowcount

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Run the block under a savepoint: if it raises, undo what it wrote and raise the error again."""
        self._connection.execute("SAVEPOINT work")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK TO work")
            self._connection.execute("RELEASE work")
            raise
        self._connection.execute("RELEASE work")

    def insert(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run an INSERT of one row and return its rowid, which means nothing if ON CONFLICT skipped the row."""
        return cast("int", self._connection.execute(sql, params).lastrowid)

    def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of parameters."""
        self._connection.executemany(sql, rows)

    def one(self, sql: str, params: Sequence[object] = ()) -> Row | None:
        """Return the first row, or None."""
        return cast("Row | None", self._connection.execute(sql, params).fetchone())

    def all(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        """Return all rows; the statement bounds their number with LIMIT where it can be large."""
        return self._connection.execute(sql, params).fetchall()


Work = Callable[[Tx], T]
"""A function that runs inside one transaction."""


def refusable(work: Work[T]) -> Work[T | MimiError]:
    """Return a work that returns the `MimiError` that `work` raises, with everything `work` wrote undone.

    It takes a savepoint, which costs about as much as one more statement. Use it for rare writes, such as commands.
    """

    def run(tx: Tx) -> T | MimiError:
        try:
            with tx.savepoint():
                return work(tx)
        except MimiError as refusal:
            return refusal

    return run
