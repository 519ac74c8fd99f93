"""Faults put into the writer of a store that is open."""

from __future__ import annotations

from mimids.store.engine.sqlite import Faults, SqliteWriter
from mimids.store.engine.store import Store


def set_faults(store: Store, faults: Faults) -> None:
    """Call `faults` before and after each commit from now on, as `open_store` describes."""
    writer = store._writer
    assert isinstance(writer, SqliteWriter)
    writer.faults = faults
