"""Fewer requests to PostgreSQL: all reads of a batch are made in one request, and its writes in another.

A statement that waits for its answer costs ten times as much as one that does not: the process and the database take
turns, and each turn may wait for a core. So a work may come with a function that makes its reads (`Store.write`,
`ahead`). This function runs first, on a recorder that only notes the statements. The noted statements of all works of
a batch are sent together. Later, a work that makes such a read gets the rows that are already there.

Rows that were read ahead are used only while they are certain to be the same. Once the work has written something, it
does not get them any more. It does not get them either if an earlier work of the batch with one of the same locks wrote
to one of their tables: then the reads of these rows are made again, together, before the work runs. Other processes
change nothing that a work reads, because the batch holds the locks that the work named.

What a work writes with `Tx.executemany` is sent with the next read that has to be made, or before the commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from mimids.store.engine.locks import Lock
from mimids.store.engine.postgresql.connection import ReadKey, ReadRows, Statements, tables_of
from mimids.store.engine.queued_work import QueuedWork
from mimids.store.engine.transaction import Ahead, Cursor, Tx


class _NoRows:
    """The result of a statement that was only noted."""

    rowcount = 0

    def fetchone(self) -> None:
        return None

    def fetchall(self) -> list[Any]:
        return []


_NO_ROWS: Final = _NoRows()


class _Recorder:
    """A connection that notes reads."""

    def __init__(self) -> None:
        self.noted: list[ReadKey] = []

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        self.noted.append((sql, tuple(parameters)))
        return cast("Cursor", _NO_ROWS)

    def executemany(self, sql: str, parameters: Any, /) -> Cursor:
        raise TypeError("a function that reads ahead must not write")


class ReadAhead:
    """What the works of a batch read ahead, within one transaction."""

    def __init__(self, statements: Statements, jobs: Sequence[QueuedWork], usual: set[str]) -> None:
        """Make the reads of all works, except reads whose rows an earlier work of the batch will probably change.

        `usual` has the tables to which earlier batches wrote; this batch adds its tables.
        """
        self._statements = statements
        self._usual = usual
        self._noted = [_noted(job.ahead) for job in jobs]
        self._changed: dict[Lock, set[str]] = {}  # the tables to which works with this lock wrote
        locked: set[Lock] = set()
        now: list[list[ReadKey]] = []
        for job, noted in zip(jobs, self._noted, strict=True):
            locks = job.locks or frozenset()
            is_first = locked.isdisjoint(locks)
            locked |= locks
            now.append([key for key in noted if is_first or usual.isdisjoint(tables_of(key[0]))])
        rows = iter(statements.read_together([key for keys in now for key in keys]))
        self._found: list[ReadRows] = [{key: next(rows) for key in keys} for keys in now]

    def run(self, index: int, job: QueuedWork, tx: Tx) -> Any:
        """Run the work of `job`, which is at `index` in the batch."""
        locks = job.locks or frozenset()
        changed = set[str]().union(*(self._changed.get(lock, ()) for lock in locks))
        found = self._found[index]
        if changed:
            found = {key: rows for key, rows in found.items() if changed.isdisjoint(tables_of(key[0]))}
        missing = [key for key in self._noted[index] if key not in found]
        if missing:
            found.update(zip(missing, self._statements.read_together(missing), strict=True))
        self._statements.begin_work(found)
        try:
            return job.work(tx)
        finally:
            written = self._statements.end_work()
            self._usual |= written
            for lock in locks:
                self._changed.setdefault(lock, set()).update(written)


def _noted(ahead: Ahead | None) -> list[ReadKey]:
    recorder = _Recorder()
    if ahead is not None:
        ahead(Tx(recorder))
    return recorder.noted
