"""Where SQLite's file has each row: what a reader of the file sees besides the values of the columns.

SQLite puts a row that is written, and has grown, at another place within its page. So the places of rows tell in which
order the rows were last written (https://sqlite.org/fileformat2.html#b_tree_pages).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import attrs

from tests.support.curious import Table

_INTERIOR, _LEAF = 5, 13  # types of the pages of a table
_LEAF_HEADER: Final = 8
_INTERIOR_HEADER: Final = 12


@attrs.frozen
class File:
    """The octets of a database that nothing else has open."""

    octets: bytes
    page_octets: int

    @classmethod
    def read(cls, path: Path) -> File:
        octets = path.read_bytes()
        return cls(octets, int.from_bytes(octets[16:18], "big"))

    def places(self, page: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield the rows of a table from the page of its root: rowid, and its place, in the order of writing.

        Within a page, SQLite takes the space for rows from the end of the page.
        """
        start = (page - 1) * self.page_octets
        octets = self.octets[start : start + self.page_octets]
        header = 100 if page == 1 else 0
        count = int.from_bytes(octets[header + 3 : header + 5], "big")
        is_leaf = octets[header] == _LEAF
        assert is_leaf or octets[header] == _INTERIOR
        first = header + (_LEAF_HEADER if is_leaf else _INTERIOR_HEADER)
        cells = [int.from_bytes(octets[at : at + 2], "big") for at in range(first, first + 2 * count, 2)]
        if is_leaf:
            for at in cells:
                _, rowid_at = _varint(octets, at)
                yield _varint(octets, rowid_at)[0], (page, self.page_octets - at)
            return
        right = int.from_bytes(octets[header + 8 : header + 12], "big")
        for child in [*(int.from_bytes(octets[at : at + 4], "big") for at in cells), right]:
            yield from self.places(child)


def _varint(octets: bytes, at: int) -> tuple[int, int]:
    """Return SQLite's varint at a place, and where it ends; none here has nine octets."""
    value = 0
    while True:
        value = value << 7 | octets[at] & 0x7F
        at += 1
        if octets[at - 1] < 0x80:
            return value, at


def with_places(path: Path) -> dict[str, Table]:
    """Return every table with rowids, each row after its `page` and its `place` within the page."""
    file, found = File.read(path), {}
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        tables = connection.execute(
            "SELECT name, rootpage FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE '%WITHOUT ROWID%'"
        ).fetchall()
        for name, root in tables:
            places = dict(file.places(root))
            cursor = connection.execute(f"SELECT rowid, * FROM {name}")  # noqa: S608  # names from the schema
            rows = tuple((*places[row[0]], *row[1:]) for row in cursor)
            found[name] = Table(name, ("page", "place", *(each[0] for each in cursor.description[1:])), rows)
    return found
