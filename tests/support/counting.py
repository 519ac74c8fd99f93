"""A store without threads that counts what a work asks of the database: statements, and steps of SQLite's machine.

A statement that reads more rows takes more steps, whatever the machine is busy with, so two databases can be compared
exactly. Within one step, only `count(*)` of a whole table can read many rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar, cast

import attrs

from mimids.store.engine.store import Store, StoreStatistics
from tests.support.one_connection import OneConnection

T = TypeVar("T")

STEP_SECONDS: Final = 1e-7


@attrs.frozen
class Counted:
    """The steps of each statement that was run, in order."""

    steps: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(steps for _, steps in self.steps)


class CountingConnection:
    """A connection that counts the steps of each statement; all rows are read at once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._steps = 0
        self._said: list[tuple[str, int]] = []

        def count() -> int:
            self._steps += 1
            return 0

        connection.set_progress_handler(count, 1)

    @property
    def seconds(self) -> float:
        """The time that all steps so far would take a machine, as a clock that no other load can change."""
        return self._steps * STEP_SECONDS

    def take(self) -> Counted:
        """Return what was counted since the last call."""
        said, self._said = self._said, []
        return Counted(tuple(said))

    def execute(self, sql: str, parameters: Any = ()) -> _Answer:
        return self._counted(sql, self.connection.execute, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any]) -> _Answer:
        return self._counted(sql, self.connection.executemany, list(parameters))

    def _counted(self, sql: str, run: Callable[[str, Any], sqlite3.Cursor], parameters: Any) -> _Answer:
        before = self._steps
        cursor = run(sql, parameters)
        answer = _Answer(cursor.fetchall(), cursor.rowcount, cursor.lastrowid)
        self._said.append((sql, self._steps - before))
        return answer


@attrs.define
class _Answer:
    """The result of a statement that was read to its end."""

    rows: list[Any]
    rowcount: int
    lastrowid: int | None

    def fetchall(self) -> list[Any]:
        return self.rows

    def fetchone(self) -> Any:
        return self.rows[0] if self.rows else None


class CountingStore(OneConnection):
    """A `Store` for the services of a provider, on one connection that counts."""

    def __init__(self, connection: CountingConnection) -> None:
        super().__init__(connection)

    read_apart = OneConnection.write

    def when_changed(self, forget: Callable[[], None], *tables: str) -> None:
        """Never call `forget`, since no other process writes."""

    async def truncate_log(self) -> bool:
        return True

    async def separate_rows(self) -> None:
        pass

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(0, 0, 0, 0, 0, 0, writable=True, damage="")


def counting_store(connection: CountingConnection) -> Store:
    """Return a store for `make_services`."""
    return cast("Store", CountingStore(connection))
