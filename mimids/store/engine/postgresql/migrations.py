"""Migrations in PostgreSQL. A new database gets the whole schema at once, translated from the schema of SQLite.

Later migrations are translated statement by statement. A migration that cannot be translated has a file of the same
name in `migrations/postgresql/`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Final

import psycopg

from mimids.store.engine.migrate import Migration, SchemaRefused, compare, in_memory, shipped, text_for_postgresql
from mimids.store.engine.postgresql.connection import OLDEST, Statements, connect, where
from mimids.store.engine.translation import SEQS_AT_ONCE, rows_of, schema_of, statements_of

_OTHER_DATABASE: Final = "name an empty database in [store] url: `createdb` makes one"
# The tables whose rows processes keep in caches, each with the changes after which a cache may be out of date. A
# process that caches rows of another table adds it here, and names the table in `Store.when_changed`.
CACHED: Final = {
    "accepted_terms": "INSERT OR UPDATE OR DELETE",
    "bans": "INSERT OR UPDATE OR DELETE",
    "devices": "UPDATE OF token_digest, name OR DELETE",
    "federation_rules": "INSERT OR UPDATE OR DELETE",
    "messages": "UPDATE OF body OR DELETE",
    "mutes": "INSERT OR UPDATE OR DELETE",
    "offered_terms": "INSERT OR UPDATE OR DELETE",
    "ohttp_keys": "INSERT OR UPDATE OR DELETE",
    "provider_keys": "INSERT OR UPDATE OR DELETE",
    "users": "UPDATE OF suspended_at OR DELETE",
}
# The tables that change often: processes hear which rows have changed, by this column.
TOLD_BY_ROW: Final = {
    "devices": ("id", "UPDATE OF token_digest, name OR DELETE"),
    "push_subscriptions": ("device", "INSERT OR DELETE"),
}
# A setting that is 1 in a transaction beside which other processes may write, and the error that such a transaction
# gets if it must run alone.
SHARING: Final = "mimids.sharing"
MUST_RUN_ALONE: Final = "MM001"
CHANGED: Final = "mimids_changed"  # the channel on which processes hear which of these tables, or rows, have changed
# The generation in which the rows of each table changed last, as JSON: {"bans": 7}. SQLite does not need this column.
_BY_TABLE: Final = "ALTER TABLE changes ADD COLUMN IF NOT EXISTS by_table text NOT NULL DEFAULT '{}'"
_NOTE_CHANGE: Final = f"""
CREATE OR REPLACE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    noted text := 'mimids.noted_' || TG_TABLE_NAME;
BEGIN
    IF current_setting('{SHARING}', true) = '1' THEN  -- a process whose batch runs now would keep old rows
        RAISE EXCEPTION 'a transaction that changes cached rows must run alone' USING ERRCODE = '{MUST_RUN_ALONE}';
    END IF;
    IF current_setting(noted, true) IS DISTINCT FROM CAST(pg_current_xact_id() AS text) THEN
        UPDATE changes SET generation = generation + 1,  -- once for each table in a transaction
            by_table = CAST(CAST(by_table AS jsonb) || jsonb_build_object(TG_TABLE_NAME, generation + 1) AS text);
        PERFORM set_config(noted, CAST(pg_current_xact_id() AS text), true);
    END IF;
    IF TG_NARGS = 0 THEN PERFORM pg_notify('{CHANGED}', TG_TABLE_NAME); END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION tell_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_notify('{CHANGED}', TG_TABLE_NAME || ' ' ||
        ((CASE WHEN TG_OP = 'DELETE' THEN to_jsonb(OLD) ELSE to_jsonb(NEW) END) ->> TG_ARGV[0]));
    RETURN NULL;
END $$
"""
# Seqs are taken several at a time. Older versions, in which one process wrote at a time, did not use the sequence.
_SEQS_ARE_COUNTED: Final = (
    "SELECT 1 FROM pg_sequences WHERE schemaname = current_schema()"
    " AND sequencename = 'messages_seq_seq' AND increment_by = $1"
)
_COUNT_SEQS: Final = (
    f"ALTER TABLE messages ALTER COLUMN seq SET INCREMENT BY {SEQS_AT_ONCE}",
    "SELECT setval('messages_seq_seq', (SELECT coalesce(max(seq), 0) + 1 FROM messages), false)",
)
_MIGRATING_LOCK: Final = 0x6D696D69646D  # advisory lock of the process that migrates


def pending(url: str, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Return the migrations that `migrate` would apply; raise `SchemaRefused` as it does."""
    known = shipped() if migrations is None else migrations
    with _opened(url) as connection:
        return _pending(connection, known, url)


def migrate(url: str, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply the pending migrations durably; return the applied migrations. Several processes may do so at once.

    Raises `SchemaRefused` if the database is newer than the code, was migrated by other files than ours, or is not a
    database of mimids, and if the PostgreSQL is too old.
    """
    known = shipped() if migrations is None else migrations
    with _opened(url) as connection, connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock($1)", (_MIGRATING_LOCK,))
        found = _pending(connection, known, url)
        if len(found) == len(known):
            _create(connection, known)
        else:
            for migration in found:
                _apply(connection, migration)
        if found:
            _watch_cached(connection)
        if connection.execute(_SEQS_ARE_COUNTED, (SEQS_AT_ONCE,)).fetchone() is None:
            _run_all(connection, _COUNT_SEQS)
    return found


def exists(url: str) -> bool:
    """Tell whether the database has tables of mimids."""
    with _opened(url) as connection:
        return "schema_version" in _tables(connection)


@contextmanager
def _opened(url: str) -> Iterator[psycopg.Connection]:
    try:
        connection = connect(url)
    except psycopg.Error as error:
        why = str(error).strip().partition("\n")[0]
        raise SchemaRefused(
            f"{where(url)} cannot be reached: {why}", "start PostgreSQL, or change [store] url"
        ) from error
    with closing(connection):
        if connection.info.server_version < OLDEST:
            version = connection.info.parameter_status("server_version")
            raise SchemaRefused(f"{where(url)} is PostgreSQL {version}", f"use {OLDEST // 10_000} or newer")
        yield connection


def _tables(connection: psycopg.Connection) -> set[str]:
    rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
    return {row[0] for row in rows}


def _pending(connection: psycopg.Connection, known: Sequence[Migration], url: str) -> list[Migration]:
    tables = _tables(connection)
    if "schema_version" not in tables:
        if tables:
            raise SchemaRefused(f"{where(url)} has tables, but not the tables of mimids", _OTHER_DATABASE)
        return list(known)
    applied = connection.execute("SELECT version, name, digest FROM schema_version ORDER BY version").fetchall()
    return compare(applied, known, where(url))


def _create(connection: psycopg.Connection, known: Sequence[Migration]) -> None:
    with closing(in_memory(known)) as model:
        _run_all(connection, schema_of(model))
        statements = Statements(connection)
        for sql, row in rows_of(model):
            statements.execute(sql, row)


def _apply(connection: psycopg.Connection, migration: Migration) -> None:
    own = text_for_postgresql(migration)
    _run_all(connection, statements_of(migration.sql) if own is None else [own])
    connection.execute(
        "INSERT INTO schema_version (version, name, digest, applied_at) VALUES ($1, $2, $3, $4)",
        (migration.version, migration.name, migration.digest, int(time.time() * 1000)),
    )


def _watch_cached(connection: psycopg.Connection) -> None:
    """Make the database record all changes of cached rows, and notify the processes of each change.

    A NOTIFY within a transaction makes its commit wait for other commits. These changes are rare, so the wait does not
    matter.
    """
    connection.execute(_BY_TABLE.encode())
    connection.execute(_NOTE_CHANGE.encode())
    for table, changes in CACHED.items():
        is_told_by_row = "'told by row'" if table in TOLD_BY_ROW else ""
        connection.execute(
            f"CREATE OR REPLACE TRIGGER note_change AFTER {changes} ON {table}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION note_change({is_told_by_row})".encode()
        )
    for table, (column, changes) in TOLD_BY_ROW.items():
        if table not in CACHED:
            connection.execute(f"DROP TRIGGER IF EXISTS note_change ON {table}".encode())
        connection.execute(
            f"CREATE OR REPLACE TRIGGER tell_row AFTER {changes} ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION tell_row('{column}')".encode()
        )


def _run_all(connection: psycopg.Connection, statements: Iterator[str] | Sequence[str]) -> None:
    for statement in statements:
        connection.execute(statement.encode())
