"""Migrations: numbered SQL files, each applied once, in order, in one transaction with its row in schema_version.

A migration must not change once it is applied. Its digest is stored, and a database that was migrated by a different
file is refused. A database that a newer mimids has migrated is refused too; to go back, restore a backup.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import attrs

from mimids.store.engine.sqlite import connect, connect_to_read, truncate_log
from mimids.values import Cause

_PACKAGED = Path(__file__).parents[2] / "migrations"  # in a wheel, by force-include
_BESIDE = Path(__file__).parents[3] / "migrations"  # in a checkout, and in an editable install of one
_FILE_NAME = re.compile(r"([0-9]{4})_([a-z0-9_]+)\.sql")

# After this version, the database is written anew. Before, a build of SQLite without secure_delete left deleted octets
# in free parts of the file.
REWRITTEN_AFTER = 10

_VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_version (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    applied_at INTEGER NOT NULL
) STRICT
"""


_OTHER_FILE = "move the file away or set another data_dir; `mimids restore` restores a backup"
_INSTALL = "install mimids again"


class SchemaRefused(Exception):
    """This code cannot use this database; `cause` is for the operator."""

    def __init__(self, what: str, fix: str) -> None:
        self.cause = Cause(what, fix)
        super().__init__(str(self.cause))


@attrs.frozen
class Migration:
    """One migration file: its number, the rest of its name, and its text."""

    version: int
    name: str
    sql: str

    @property
    def digest(self) -> bytes:
        """Return the SHA-256 of the text."""
        return hashlib.sha256(self.sql.encode()).digest()


def shipped(packaged: Path = _PACKAGED, beside: Path = _BESIDE) -> list[Migration]:
    """Return the migrations that came with this code, numbered 1, 2, 3 and so on."""
    directory = packaged if packaged.is_dir() else beside
    found = []
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise SchemaRefused(f"{path} is not a migration: its name must be NNNN_words.sql", _INSTALL)
        found.append(Migration(int(match[1]), match[2], path.read_text(encoding="utf-8")))
    if not found or [m.version for m in found] != list(range(1, len(found) + 1)):
        raise SchemaRefused(f"migrations are missing in {directory}: the installation is broken", _INSTALL)
    return found


def pending(path: Path, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Return the migrations that `migrate` would apply: all, if there is no file. Raise SchemaRefused as it does."""
    known = shipped() if migrations is None else migrations
    if not path.exists():
        return list(known)
    with _opened(path, connect_to_read) as connection:
        return _pending(connection, known, path)


def migrate(path: Path, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply the pending migrations durably, creating the database if it does not exist; return the applied migrations.

    The caller holds the lock. If a migration fails, the migrations before it stay applied. Raises SchemaRefused if the
    database is newer than the code, was migrated by other files than ours, or is not a database of mimids.
    """
    known = shipped() if migrations is None else migrations
    is_new = not path.exists()
    with _opened(path, partial(connect, create=True)) as connection:
        found = _pending(connection, known, path)
        connection.execute("PRAGMA foreign_keys=OFF")  # so that tables can be rebuilt; checked before each commit
        for migration in found:
            _apply(connection, migration)
        if not is_new and any(migration.version == REWRITTEN_AFTER for migration in found):
            _rewrite(connection)
    return found


@contextmanager
def _opened(path: Path, connect: Callable[[Path], sqlite3.Connection]) -> Iterator[sqlite3.Connection]:
    try:
        with closing(connect(path)) as connection:
            yield connection
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
            raise
        raise SchemaRefused(f"{path} is not a database", _OTHER_FILE) from error


def _pending(connection: sqlite3.Connection, known: Sequence[Migration], path: Path) -> list[Migration]:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if "schema_version" not in tables:
        if tables:
            raise SchemaRefused(f"{path} is a database, but not a database of mimids", _OTHER_FILE)
        return list(known)
    applied = connection.execute("SELECT version, name, digest FROM schema_version ORDER BY version").fetchall()
    return compare(applied, known, str(path))


def compare(applied: Sequence[tuple[int, str, bytes]], known: Sequence[Migration], database: str) -> list[Migration]:
    """Return the migrations that a database lacks; raise `SchemaRefused` if other files than ours migrated it."""
    if len(applied) > len(known):
        raise SchemaRefused(
            f"{database} has schema version {applied[-1][0]}, but this mimids knows versions up to {known[-1].version}",
            "it was migrated by a newer mimids: run that version, or restore a backup",
        )
    for (version, name, digest), ours in zip(applied, known, strict=False):
        if (version, name, digest) != (ours.version, ours.name, ours.digest):
            raise SchemaRefused(
                f"{database} was migrated with a {version:04}_{name}.sql that differs from the "
                f"{ours.version:04}_{ours.name}.sql of this mimids; an applied migration must never change",
                "run the mimids that migrated it, or restore a backup",
            )
    return list(known[len(applied) :])


def in_memory(migrations: Sequence[Migration]) -> sqlite3.Connection:
    """Return a database in memory to which these migrations were applied."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for migration in migrations:
        _apply(connection, migration)
    return connection


def text_for_postgresql(migration: Migration) -> str | None:
    """Return a migration's own text for PostgreSQL, None if its common text has to be translated."""
    directory = _PACKAGED if _PACKAGED.is_dir() else _BESIDE
    path = directory / "postgresql" / f"{migration.version:04}_{migration.name}.sql"
    return path.read_text(encoding="utf-8") if path.exists() else None


def _rewrite(connection: sqlite3.Connection) -> None:
    """Rewrite the database without its free pages; skip this if the disk has no room for a second copy."""
    try:
        connection.execute("VACUUM")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
            raise
    truncate_log(connection)


def _apply(connection: sqlite3.Connection, migration: Migration) -> None:
    try:
        connection.executescript(f"BEGIN IMMEDIATE;\n{_VERSIONS};\n{migration.sql}")
        if not connection.in_transaction:
            raise SchemaRefused(f"migration {migration.version:04}_{migration.name} ends its own transaction", _INSTALL)
        dangling = connection.execute("PRAGMA foreign_key_check").fetchone()
        if dangling is not None:
            raise SchemaRefused(
                f"migration {migration.version:04}_{migration.name} leaves rows of {dangling[0]} that refer to nothing",
                "keep the database, and report this: the migrations before it stay applied",
            )
        connection.execute(
            "INSERT INTO schema_version (version, name, digest, applied_at) VALUES (?, ?, ?, ?)",
            (migration.version, migration.name, migration.digest, int(time.time() * 1000)),
        )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
