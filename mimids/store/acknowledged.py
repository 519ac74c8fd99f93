"""The record of the progress of acknowledged writes: a number in a small file beside the database.

The write-ahead log holds the newest acknowledged writes. If the log is cut off or removed, SQLite opens the database at
an earlier state and reports nothing. A server would then assign counters a second time. So a file beside the database
holds a number that grows with the database. A database whose own number is lower has lost acknowledged writes.

A job records the number shortly after a write, without delaying the writer, and forces it to the disk only now and
then. If the record is old, some losses are not found. A loss that is reported is always real.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mimids.store.engine.lock import open_private
from mimids.store.engine.transaction import Tx

_SUFFIX: Final = "-acknowledged"
_DIGITS: Final = 20


def file_of(database: Path) -> Path:
    """Return the path of a database's record."""
    return database.with_name(database.name + _SUFFIX)


def progress(tx: Tx) -> int:
    """Return a number that grows with each new message, user, device, KeyPackage, token, group, Welcome and so on."""
    found = tx.one(
        "SELECT coalesce((SELECT max(seq) FROM messages), 0) + coalesce((SELECT sum(seq) FROM sqlite_sequence), 0)"
    )
    return 0 if found is None else int(found[0])


def recorded(database: Path) -> int | None:
    """Return the number in a database's record, None if there is no readable record."""
    try:
        text = file_of(database).read_bytes()
    except OSError:
        return None
    # A number that was only partly written has no line end.
    return int(text) if len(text) == _DIGITS + 1 and text.endswith(b"\n") and text[:-1].isdigit() else None


def forget(database: Path) -> None:
    """Delete the record of a database, because the database is about to be replaced or rebuilt."""
    file_of(database).unlink(missing_ok=True)


class AcknowledgedRecord:
    """The open record of a database that a server writes to."""

    def __init__(self, database: Path) -> None:
        self._descriptor = open_private(file_of(database))

    def write(self, number: int, *, sync: bool) -> None:
        """Replace the number; with `sync`, wait until it is on the disk. Raises `OSError`."""
        os.pwrite(self._descriptor, b"%0*d\n" % (_DIGITS, number), 0)
        if sync:
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
