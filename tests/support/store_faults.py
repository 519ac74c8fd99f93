"""Faults put into the writer of a store that is open."""

from __future__ import annotations

import sqlite3
from typing import Any

from mimids.store.engine.batch import Faults
from mimids.store.engine.store import Store
from tests.support.tables import ON_POSTGRESQL


def set_faults(store: Store, faults: Faults) -> None:
    """Call `faults` before and after each commit from now on, as `open_store` describes."""
    writer: Any = store._writer
    assert hasattr(writer, "faults")
    writer.faults = faults


def full_disk() -> Exception:
    """Return what the database raises when its disk is full."""
    if ON_POSTGRESQL:
        from psycopg.errors import DiskFull

        return DiskFull("could not extend file")
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


class Disk:
    """The disk of a store; writes fail while it is `full`."""

    def __init__(self, store: Store) -> None:
        self.full = False
        self.refused = 0
        set_faults(store, self._at)

    def _at(self, point: str) -> None:
        if self.full and point == "before_commit":
            self.refused += 1
            raise full_disk()
