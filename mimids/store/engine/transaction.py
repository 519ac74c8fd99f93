"""The interface of a transaction: statements in, rows out. It does not depend on SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar, cast

import attrs

from mimids.errors import MimiError
from mimids.tracebacks import release_frames

T = TypeVar("T")
Item = TypeVar("Item")
Row = tuple[Any, ...]


class Cursor(Protocol):
    """The result of one statement."""

    @property
    def rowcount(self) -> int:
        """How many rows the statement changed."""

    def fetchone(self) -> Any:
        """Return the next row, or None."""

    def fetchall(self) -> list[Any]:
        """Return the remaining rows."""


class SqlConnection(Protocol):
    """The methods that `Tx` needs of a database connection; `sqlite3.Connection` has them."""

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        """Run one statement."""

    def executemany(self, sql: str, parameters: Any, /) -> Cursor:
        """Run one statement for each row of parameters."""


class MustRunAlone(Exception):
    """A work needs a lock that it did not name, so it has to be run again, alone."""


class Tx:
    """A transaction: runs statements with their parameters and returns rows as tuples.

    Use it only inside the function that it was passed to: it belongs to one thread and one transaction.
    """

    __slots__ = ("_after_commit", "_connection")

    def __init__(self, connection: SqlConnection, after_commit: list[Callable[[], None]] | None = None) -> None:
        """`after_commit` collects the calls to make after the commit; if it is None, they are made at once."""
        self._connection = connection
        self._after_commit = after_commit

    def after_commit(self, call: Callable[[], None]) -> None:
        """Make `call` on the writer's thread once the transaction is durable; do nothing if the transaction is undone.

        Use it for caches of stored rows. The call must not raise, wait, or use the transaction.
        """
        if self._after_commit is None:
            call()
        else:
            self._after_commit.append(call)

    def run_alone(self) -> None:
        """Go on only if no other process commits anything meanwhile; otherwise the work is run again, alone.

        A work that named its locks calls this before it reads or changes something that these locks do not cover.
        """
        if getattr(self._connection, "is_shared", False):  # with SQLite, a transaction is always alone
            raise MustRunAlone

    def execute(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run one statement and return how many rows it changed."""
        return self._connection.execute(sql, params).rowcount

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Run the block under a savepoint: if it raises, undo what it wrote and raise the error again."""
        calls = len(self._after_commit or ())
        self._connection.execute("SAVEPOINT work")
        try:
            yield
        except BaseException:
            del (self._after_commit or [])[calls:]
            self._connection.execute("ROLLBACK TO work")
            self._connection.execute("RELEASE work")
            raise
        self._connection.execute("RELEASE work")

    def insert(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run an INSERT of one row that ends with RETURNING; return the id of the row."""
        return cast("int", self._connection.execute(sql, params).fetchone()[0])

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


@attrs.frozen
class WorkTogether(Generic[Item, T]):
    """A work that the store may run together with other works of the same batch, by one call of the same `run`.

    `run` gets the items of the works, and returns an answer for each. If it raises, each work is run by itself.
    """

    run: Callable[[Tx, Sequence[Item]], Sequence[T]]
    item: Item

    def __call__(self, tx: Tx) -> T:
        """Run this work alone."""
        return self.run(tx, [self.item])[0]


Ahead = Callable[[Tx], object]
"""A function that makes reads of a work, those that do not depend on each other; it gets no rows."""


def refusable(work: Work[T]) -> Work[T | MimiError]:
    """Wrap `work`: if it raises a `MimiError`, undo its writes and return the error instead.

    It takes a savepoint, which costs about as much as one more statement. Use it for rare writes, such as commands.
    """

    def run(tx: Tx) -> T | MimiError:
        try:
            with tx.savepoint():
                return work(tx)
        except MimiError as refusal:
            return release_frames(refusal)

    return run
