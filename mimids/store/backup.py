"""Copies of a database that is in use, marked as such: a backup is a past, and is not served as if it were the present.

Serving a copy would hand out KeyPackages a second time and answer requests that were answered before. So a copy
carries a mark that a server refuses, and only what `restore` does takes it off.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from mimids.store.engine.sqlite import connect_to_read, read_here
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds

MARK: Final = "backup_made_at"
_STEP_PAGES: Final = 1024

Progress = Callable[[int, int], None]  # pages done, pages in all


class NotABackup(Exception):
    """The file was not made by `copy`; the message is a sentence for the operator."""


def copy(source: Path, target: Path, now: Milliseconds, progress: Progress = lambda done, total: None) -> None:
    """Make a consistent copy of a database beside its server; raise `FileExistsError`, `sqlite3.Error`.

    The copy is of one moment, that of the call, however long it takes and whatever is written meanwhile. It is one
    file, for its owner only, and there when it is whole.
    """
    if target.exists():
        raise FileExistsError(17, "it is there already", str(target))
    part = target.with_name(f".{target.name}.part")
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
    try:
        with (
            closing(connect_to_read(source)) as reading,
            closing(sqlite3.connect(part, isolation_level=None)) as writing,
        ):
            # Within this transaction the source stands still for us, so that the copy need never start again.
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            reading.backup(writing, pages=_STEP_PAGES, progress=lambda _, left, total: progress(total - left, total))
            writing.execute("PRAGMA journal_mode=DELETE")
            writing.execute(
                "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                (MARK, str(now).encode()),
            )
        _sync(part)
        part.rename(target)
        _sync(target.parent)
    finally:
        part.unlink(missing_ok=True)


def made_at(path: Path) -> Milliseconds | None:
    """Return when a copy was made, None for a database that is none."""
    with read_here(path) as tx:
        found = tx.one("SELECT value FROM settings WHERE name = ?", (MARK,))
    return None if found is None else Milliseconds(int(found[0]))


def check(path: Path) -> Milliseconds:
    """Return when a copy was made; raise `NotABackup` if it is none, or damaged."""
    try:
        with closing(connect_to_read(path)) as connection:
            faults = [row[0] for row in connection.execute("PRAGMA integrity_check(1)") if row[0] != "ok"]
        moment = made_at(path)
    except sqlite3.Error as error:
        raise NotABackup(f"{path} cannot be read: {error}") from error
    if faults:
        raise NotABackup(f"{path} is damaged: {faults[0]}")
    if moment is None:
        raise NotABackup(f"{path} was not made by `mimids backup`")
    return moment


def unmark(tx: Tx) -> None:
    """Let a copy be served: whoever does so has made up for its being a past."""
    tx.execute("DELETE FROM settings WHERE name = ?", (MARK,))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
