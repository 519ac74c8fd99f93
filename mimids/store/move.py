"""Moving a provider from one database to another: all rows are copied, and compared at the end.

Both databases are marked with a row of `settings`, and no server uses a database with such a mark:

source
    `leaving` while rows are copied; `left` once the target has all of them. Then the gateway's private keys in the
    source are overwritten, as the last step: nobody would delete them there in time. Nothing else is changed.
target
    `arriving` while rows are copied; `arrived` once it is complete. A server may use a target that is `arrived`.

The marks of both ends have the same random id, so that an interrupted move is recognised when the command runs again.
The move then goes on after the rows that the target already has. This works because rows are copied in the order of
their primary keys, in transactions of a few megabytes.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

import attrs

from mimids.store.engine.access import Place, name_of, read_here
from mimids.store.engine.tables import (
    FILLED,
    MARK,
    EndFailed,
    MovedTable,
    Tables,
    count,
    digest,
    is_empty,
    last_key,
    moved_tables,
    pages,
)
from mimids.store.engine.transaction import Row, Tx
from mimids.store.ohttp import blank_keys, put_setting, setting
from mimids.values import Cause

LEAVING: Final = "leaving"
LEFT: Final = "left"
ARRIVING: Final = "arriving"
ARRIVED: Final = "arrived"
CHUNK_OCTETS: Final = 8 * 1024 * 1024  # of rows, roughly, in one transaction of the target
CHUNK_ROWS: Final = 20_000

Progress = Callable[[int, int], None]  # is called with the number of rows that are done, and of all rows


class MoveRefused(Exception):
    """The move cannot begin or go on; `cause` is for the operator."""

    def __init__(self, what: str, fix: str) -> None:
        self.cause = Cause(what, fix)
        super().__init__(str(self.cause))


@attrs.frozen
class Mark:
    """The record of a move in its source or target: the move's id, its state there, and the other database."""

    id: str
    state: str
    other: str  # the name of the other end
    references: tuple[str, ...] = ()  # statements that make the target check foreign keys again


@attrs.frozen
class MoveSummary:
    """How much was moved."""

    tables: int
    rows: int


def mark_of(tx: Tx) -> Mark | None:
    """Return the mark of a database, None if the database is not an end of a move."""
    stored = setting(tx, MARK)
    if stored is None:
        return None
    fields = json.loads(stored)
    return Mark(**{**fields, "references": tuple(fields["references"])})


def why_not_used(place: Place) -> Cause | None:
    """Return why a server must not use a database that is or was moved; None if a server may use it."""
    with read_here(place) as tx:
        mark = mark_of(tx)
    name = name_of(place)
    match mark:
        case Mark(state="leaving"):
            what = f"{name} is being moved to {mark.other}"
            return Cause(what, "go on with `mimids move --to ...`, or give up with `mimids move --cancel`")
        case Mark(state="left"):
            return Cause(f"{name} was moved to {mark.other}", "name that database in the configuration ([store] url)")
        case Mark(state="arriving"):
            what = f"{name} is not complete: the move from {mark.other} has not ended"
            return Cause(what, "go on with `mimids move`, with the configuration that names the other database")
    return None


def cancel(source: Tables, name: str) -> None:
    """Let a server use the source again, although a move has begun; raise `MoveRefused` if the move has ended."""
    mark = mark_of(source.sql)
    if mark is None or mark.state != LEAVING:
        what = f"{name} was moved to {mark.other}" if mark and mark.state == LEFT else f"no move of {name} has begun"
        raise MoveRefused(what, "only a move that has not ended can be given up")
    source.sql.execute("DELETE FROM settings WHERE name = ?", (MARK,))


def move(
    source: Tables,
    target: Tables,
    names: tuple[str, str],
    *,
    copying: AbstractContextManager[Progress],
    comparing: AbstractContextManager[Progress],
) -> MoveSummary:
    """Copy what the target does not have yet, compare all rows, and let a server use the target from then on.

    `names` are the names of source and target for messages. Raises `MoveRefused` and `EndFailed`.
    """
    mark = _begin(source, target, names)
    if mark.state == ARRIVED:
        _set_mark(source.sql, Mark(mark.id, LEFT, names[1]))
        blank_keys(source.sql)
        return MoveSummary(len(moved_tables()), sum(count(source, table) for table in moved_tables()))
    totals = {table.name: count(source, table) for table in moved_tables()}
    with copying as progress:
        done = 0
        for table in moved_tables():
            for rows in _missing(source, target, table):
                target.append(table, rows)
                done += len(rows)
                progress(done, sum(totals.values()))
    with comparing as progress:
        _compare(source, target, progress, sum(totals.values()))
    with target.transaction():
        target.check_references(mark.references)
        _set_mark(target.sql, Mark(mark.id, ARRIVING, names[0]))
    ids = source.last_ids()
    _set_mark(source.sql, Mark(mark.id, LEFT, names[1]))
    with target.transaction():
        target.set_last_ids(ids)
        _set_mark(target.sql, Mark(mark.id, ARRIVED, names[0]))
    blank_keys(source.sql)
    return MoveSummary(len(totals), sum(totals.values()))


def _begin(source: Tables, target: Tables, names: tuple[str, str]) -> Mark:
    """Mark both ends, unless the move has begun before; return the target's mark."""
    leaving, arriving = mark_of(source.sql), mark_of(target.sql)
    if leaving is not None and leaving.state in (LEAVING, LEFT) and arriving is not None and arriving.id == leaving.id:
        return arriving
    if leaving is not None and leaving.state == LEFT:
        raise MoveRefused(f"{names[0]} was moved to {leaving.other}", "name that database in the configuration")
    if arriving is not None and arriving.state == ARRIVING:
        what = f"{names[1]} has a part of another move, from {arriving.other}"
        raise MoveRefused(what, "name an empty database: drop this one and make it again")
    if not all(is_empty(target, table) for table in moved_tables() if table.name not in FILLED):
        what = f"{names[1]} is not empty: it has the data of a provider"
        raise MoveRefused(what, "name an empty database, or a file that does not exist")
    if leaving is None or leaving.state != LEAVING:
        leaving = Mark(secrets.token_hex(8), LEAVING, names[1])
        _set_mark(source.sql, leaving)
    with target.transaction():
        mark = Mark(leaving.id, ARRIVING, names[0], tuple(target.drop_references()))
        for table in moved_tables():
            if table.name in FILLED:
                target.sql.execute(f"DELETE FROM {table.name}")
            if table.name == "schema_version":  # without these rows, the target is not a database of mimids
                target.sql.executemany(table.insert, [row for page in pages(source, table) for row in page])
        _set_mark(target.sql, mark)
    return mark


def _set_mark(tx: Tx, mark: Mark) -> None:
    put_setting(tx, MARK, json.dumps(attrs.asdict(mark)).encode())


def _missing(source: Tables, target: Tables, table: MovedTable) -> Iterator[list[Row]]:
    """Yield the rows of the source that the target does not have, in chunks."""
    if not table.key:
        if is_empty(target, table):
            yield from filter(None, pages(source, table))
        return
    chunk: list[Row] = []
    octets = 0
    for page in pages(source, table, last_key(target, table)):
        chunk += page
        octets += sum(len(value) for row in page for value in row if isinstance(value, bytes | str))
        if octets >= CHUNK_OCTETS or len(chunk) >= CHUNK_ROWS:
            yield chunk
            chunk, octets = [], 0
    if chunk:
        yield chunk


def _compare(source: Tables, target: Tables, progress: Progress, total: int) -> None:
    """Raise `EndFailed` if a table has other rows in the target than in the source."""
    done, different = 0, []
    for table in moved_tables():
        rows, ours = digest(pages(source, table))
        if (rows, ours) != digest(pages(target, table)):
            different.append(table.name)
        done += rows
        progress(done, total)
    if different:
        raise EndFailed(f"these tables have other rows in the target than in the source: {', '.join(different)}")
