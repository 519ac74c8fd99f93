"""Choose the database engine of a provider: a `Path` is a SQLite file, a text is a URL of PostgreSQL.

Code that depends on the kind of the database is reached only through these functions. The packages of PostgreSQL are
imported only if it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from mimids.store.engine import migrate as sqlite_migrations
from mimids.store.engine import sqlite
from mimids.store.engine.batch import Faults
from mimids.store.engine.member import Member
from mimids.store.engine.migrate import Migration, SchemaRefused
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx, Work

if TYPE_CHECKING:
    from mimids.store.engine.postgresql.health import Health
    from mimids.store.engine.tables import Tables

T = TypeVar("T")

Place: TypeAlias = Path | str


def open_store(
    place: Place,
    *,
    readers: int = 4,
    faults: Faults | None = None,
    on_damage: Callable[[str], None] = lambda damage: None,
) -> AbstractAsyncContextManager[Store]:
    """Open a migrated database for a server; `readers` is the number of connections that read from PostgreSQL.

    Several processes may open a database in PostgreSQL. Raises `psycopg.Error` if it cannot be reached.
    """
    url = _url(place)
    if url is None:
        return sqlite.open_store(Path(place), faults=faults, on_damage=on_damage)
    from mimids.store.engine.postgresql import engine

    return engine.open_store(url, readers=readers, faults=faults, on_damage=on_damage)


def joining(place: Place) -> Callable[[str], AbstractAsyncContextManager[Member]] | None:
    """Return a function that takes a name and makes this process a `Member` of that name; None for SQLite."""
    url = _url(place)
    if url is None:
        return None
    from mimids.store.engine.postgresql import member

    return partial(member.join, url)


def read_here(place: Place) -> AbstractContextManager[Tx]:
    """Give a command one snapshot of the database; raise `StorageUnavailable` if it cannot be read."""
    url = _url(place)
    if url is None:
        return sqlite.read_here(Path(place))
    from mimids.store.engine.postgresql import engine

    return engine.read_here(url)


def write_here(place: Place, work: Work[T]) -> T:
    """Run work(tx) in one durable transaction. The caller, a command, holds the lock of `store/engine/lock.py`.

    In PostgreSQL the caller needs no lock. After the commit, the processes that serve the provider read all their
    caches again.
    """
    url = _url(place)
    if url is None:
        return sqlite.write_here(Path(place), work)
    from mimids.store.engine.postgresql import engine

    return engine.write_here(url, work)


def exists(place: Place) -> bool:
    """Tell whether there is a database: a file, or tables of mimids in PostgreSQL."""
    url = _url(place)
    if url is None:
        return Path(place).exists()
    from mimids.store.engine.postgresql import migrations

    return migrations.exists(url)


def pending(place: Place) -> list[Migration]:
    """Return the migrations that `migrate` would apply; raise `SchemaRefused` as it does."""
    url = _url(place)
    if url is None:
        return sqlite_migrations.pending(Path(place))
    from mimids.store.engine.postgresql import migrations

    return migrations.pending(url)


def migrate(place: Place) -> list[Migration]:
    """Apply the pending migrations durably, creating the tables if there are none; return the applied migrations."""
    url = _url(place)
    if url is None:
        return sqlite_migrations.migrate(Path(place))
    from mimids.store.engine.postgresql import migrations

    return migrations.migrate(url)


def open_tables(place: Place) -> AbstractContextManager[Tables]:
    """Open a migrated database as one end of a move; raise `Locked` if a server uses it, and `EndFailed`."""
    url = _url(place)
    if url is None:
        from mimids.store.engine import tables

        return tables.open_file(Path(place))
    from mimids.store.engine.postgresql import tables as postgresql_tables

    return postgresql_tables.open_database(url)


def name_of(place: Place) -> str:
    """Return a name of the database for messages, without secrets."""
    url = _url(place)
    if url is None:
        return str(place)
    from mimids.store.engine.postgresql.connection import where

    return where(url)


def health_of(url: str) -> Health:
    """Return the state of a server of PostgreSQL."""
    from mimids.store.engine.postgresql import health

    return health.health_of(url)


def _url(place: Place) -> str | None:
    """Return the URL of a PostgreSQL database, None for a file; raise `SchemaRefused` if psycopg is not installed."""
    if isinstance(place, Path):
        return None
    if find_spec("psycopg") is None:
        raise SchemaRefused(
            "[store] url names PostgreSQL, but psycopg is not installed", "pip install 'mimids[postgresql]'"
        )
    return place
