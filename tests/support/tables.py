"""All rows of a database of either engine."""

from __future__ import annotations

import os
from typing import Any, Final

from mimids.store.engine.transaction import Tx

ON_POSTGRESQL: Final = os.environ.get("MIMIDS_TEST_STORE") == "postgresql"
_TABLES: Final = (
    "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1"
    if ON_POSTGRESQL
    else "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY 1"
)


def table_names(tx: Tx) -> list[str]:
    """Return the names of all tables."""
    return [name for (name,) in tx.all(_TABLES)]


def octets_of_tables(tx: Tx) -> int:
    """Return how large the database is."""
    if ON_POSTGRESQL:
        return int((tx.one("SELECT pg_database_size(current_database())") or (0,))[0])
    (pages,), (size,) = tx.all("PRAGMA page_count") + tx.all("PRAGMA page_size")
    return int(pages) * int(size)


def every_row(tx: Tx) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows, by table; in an order that stays the same while they do not change."""
    return {name: sorted(tx.all(f"SELECT * FROM {name}"), key=repr) for name in table_names(tx)}  # noqa: S608
