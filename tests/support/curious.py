"""A curious administrator: reads every file of a provider, and every row of every table, with knowledge of nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import attrs

from mimids.store.engine.access import Place, read_here
from tests.support.postgresql import is_in_postgresql
from tests.support.tables import table_names

ALIKE = 3  # a fetch counts against a device and against its user
FIRST_TIME = 1_000_000_000_000  # an integer from here on is a time in milliseconds: September 2001


@attrs.frozen
class Table:
    """All rows of a table."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def column(self, name: str) -> list[Any]:
        at = self.columns.index(name)
        return [row[at] for row in self.rows]


def tables_of(database: Place) -> dict[str, Table]:
    """Return every table of a database, read beside a server that uses it."""
    found = {}
    with read_here(database) as tx:
        for name in table_names(tx):
            cursor: Any = tx._connection.execute(f"SELECT * FROM {name}")  # noqa: S608  # names from the schema
            found[name] = Table(name, tuple(each[0] for each in cursor.description), tuple(cursor))
    return found


def hidden_columns_of(url: str) -> dict[str, Table]:
    """Return every table of a database in PostgreSQL, with what PostgreSQL stores of each row besides.

    The first two columns are the number of the transaction that wrote the row, and the order of the rows in the file.
    """
    found = {}
    with read_here(url) as tx:
        for (name,) in tx.all("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"):
            cursor: Any = tx._connection.execute(
                f"SELECT CAST(CAST(xmin AS text) AS bigint), row_number() OVER (ORDER BY ctid), * FROM {name}"  # noqa: S608  # names from the schema
            )
            columns = tuple(each[0] for each in cursor.description)[2:]
            found[name] = Table(name, ("transaction", "place", *columns), tuple(cursor))
    return found


def time_columns(table: Table) -> Iterator[tuple[str, list[int]]]:
    """Yield the columns with times, each with its values; 0 in a row without a time."""
    for at, name in enumerate(table.columns):
        values = [row[at] if isinstance(row[at], int) and row[at] >= FIRST_TIME else 0 for row in table.rows]
        if any(values):
            yield name, values


def joined(left: Iterable[int], right: Iterable[int]) -> list[tuple[int, int]]:
    """Join two columns of times: pairs of places whose times are equal, if at most `ALIKE` rows of a column have it."""
    places: tuple[defaultdict[int, list[int]], ...] = (defaultdict(list), defaultdict(list))
    for column, values in zip(places, (left, right), strict=True):
        for at, value in enumerate(values):
            column[value].append(at)
    first, second = places
    return [
        pair
        for value, found in first.items()
        if value and len(found) <= ALIKE and 0 < len(second.get(value, ())) <= ALIKE
        for pair in product(found, second[value])
    ]


def ranked(left: Iterable[int], right: Iterable[int]) -> list[tuple[int, int]]:
    """Join two columns of times by their order, if they have equally many distinct times."""

    def ordered(values: Iterable[int]) -> list[int]:
        pairs = [(value, at) for at, value in enumerate(values) if value]
        return [at for _, at in sorted(pairs)] if len({value for value, _ in pairs}) == len(pairs) else []

    first, second = ordered(left), ordered(right)
    return list(zip(first, second, strict=True)) if len(first) == len(second) else []


def octets_of(*files: Path) -> bytes:
    """Return what is in files and in those beside them whose names begin with theirs: a log, its index, a journal.

    Of a database in PostgreSQL these are the octets of all its rows: its files keep what was deleted for a while.
    """
    found = b""
    for file in files:
        if is_in_postgresql(file):
            found += octets_of_rows(file)
        for each in sorted(file.parent.glob(f"{file.name}*")):
            found += each.read_bytes()
    return found


def octets_of_rows(database: Place) -> bytes:
    """Return all values of all rows of a database."""
    values = [value for table in tables_of(database).values() for row in table.rows for value in row]
    return b"\0".join(value if isinstance(value, bytes) else str(value).encode() for value in values)


def found_in(octets: bytes, secrets: Mapping[str, bytes]) -> set[str]:
    """Return the names of the secrets that occur in octets."""
    return {name for name, secret in secrets.items() if secret in octets}
