"""Backups: copies of a database that is in use, marked so that a server refuses to use them.

A server on a copy would hand out KeyPackages a second time and answer replayed requests again. So a copy carries a mark
that makes a server refuse it, and only `mimids restore` removes the mark.

A copy has no private keys of the gateway, so nobody who finds the copy can open requests that were recorded. `restore`
makes new keys.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from mimids.store import ohttp
from mimids.store.engine import token_places
from mimids.store.engine.access import Place, read_here
from mimids.store.engine.lock import open_private
from mimids.store.engine.sqlite import connect_to_read
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds

MARK: Final = "backup_made_at"
_RECORD: Final = "-backup"  # the file beside a database that has the time of its last copy
_STEP_PAGES: Final = 1024

Progress = Callable[[int, int], None]  # pages done, pages in all


class NotABackup(Exception):
    """The file is not an intact copy made by `copy`; the message is a sentence for the operator."""


def copy(source: Path, target: Path, now: Milliseconds, progress: Progress = lambda done, total: None) -> None:
    """Copy a database while its server runs; raise `FileExistsError` or `sqlite3.Error`.

    The copy is a snapshot of the moment of the call, even if copying takes long and rows are written meanwhile. It is
    one file that only its owner can read, and `target` exists only once the copy is complete and on the disk.
    """
    if target.exists():
        raise FileExistsError(17, "the file exists already", str(target))
    part = target.with_name(f".{target.name}.part")
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
    try:
        with (
            closing(connect_to_read(source)) as reading,
            closing(sqlite3.connect(part, isolation_level=None)) as writing,
        ):
            # Within this transaction this connection sees no changes of the source, so the copy never starts again.
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            reading.backup(writing, pages=_STEP_PAGES, progress=lambda _, left, total: progress(total - left, total))
            writing.execute("PRAGMA journal_mode=DELETE")
            writing.execute("PRAGMA journal_mode=MEMORY")
            writing.execute("PRAGMA secure_delete=ON")
            ohttp.blank_keys(Tx(writing))
            token_places.rewrite_all(Tx(writing))
            writing.execute(
                "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE"
                " SET value = excluded.value",
                (MARK, str(now).encode()),
            )
        _sync(part)
        part.rename(target)
        _sync(target.parent)
    finally:
        part.unlink(missing_ok=True)


def note(database: Path, now: Milliseconds) -> None:
    """Record beside a database that a copy of it was made; do nothing if the record cannot be written."""
    with suppress(OSError):
        descriptor = open_private(database.with_name(database.name + _RECORD))
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % now, 0)
        finally:
            os.close(descriptor)


def last(database: Path) -> Milliseconds | None:
    """Return when the last copy of a database was made, None if that is not known."""
    try:
        text = database.with_name(database.name + _RECORD).read_bytes()
    except OSError:
        return None
    return Milliseconds(int(text)) if text.endswith(b"\n") and text[:-1].isdigit() else None


def made_at(path: Place) -> Milliseconds | None:
    """Return when a copy was made, None if the database is not a copy."""
    with read_here(path) as tx:
        found = tx.one("SELECT value FROM settings WHERE name = ?", (MARK,))
    return None if found is None else Milliseconds(int(found[0]))


def check(path: Path) -> Milliseconds:
    """Check a copy and return when it was made; raise `NotABackup` if the file is not a copy or is damaged."""
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
    """Remove the mark, so that a server serves the copy; `restore` calls this after it has adjusted the database."""
    tx.execute("DELETE FROM settings WHERE name = ?", (MARK,))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
