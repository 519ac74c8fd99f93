"""The table in docs/privacy.md: every column of the database that says something of a person.

Every column of the schema is declared: in `personal_accounts.py`, `personal_groups.py`, or among the `OTHERS`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from docs.generate.markers import fill
from docs.generate.personal_accounts import ACCOUNTS
from docs.generate.personal_columns import OTHERS, Kept
from docs.generate.personal_groups import GROUPS
from mimids.store.engine.migrate import migrate

PERSONAL: Final[Mapping[str, tuple[Kept, ...]]] = {**ACCOUNTS, **GROUPS}


def columns() -> list[tuple[str, str]]:
    """Return all columns of the schema, each with its table."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "schema.sqlite3")
        migrate(path)
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(
                "SELECT t.name, c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c"
                " WHERE t.type = 'table' ORDER BY t.name, c.cid"
            ).fetchall()


def faults() -> list[str]:
    """Return the columns that are declared never or twice, and the declarations without a column."""
    declared = [(table, name) for table, rows in PERSONAL.items() for row in rows for name in row.says]
    declared += [(table, name) for table, names in OTHERS.items() for name in names.split()]
    present = columns()
    return [
        *(f"{table}.{name} has no row" for table, name in present if (table, name) not in declared),
        *(f"{table}.{name} is no column" for table, name in declared if (table, name) not in present),
        *(f"{table}.{name} has two rows" for table, name in set(declared) if declared.count((table, name)) > 1),
    ]


def column_table() -> str:
    """Return the table; raise `ValueError` if a column is missing in it."""
    found = faults()
    if found:
        raise ValueError(f"docs/generate/personal_columns.py: {'; '.join(found)}")
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "| column | what it says | who else can read it | why it is kept | until | what deletes it |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for table, rows in PERSONAL.items():
        for row in rows:
            for name, says in row.says.items():
                yield f"| `{table}.{name}` | {says} | {row.readers} | {row.why} | {row.until} | {row.deleted_by} |"


def written(text: str) -> str:
    """Return a document with its printed part replaced; see `markers.fill`."""
    return fill(text, {"columns": column_table})
