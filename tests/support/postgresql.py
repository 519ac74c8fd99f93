"""A PostgreSQL server for tests: started at the first use, in a directory of its own, reached by a Unix socket only.

It needs the programs of PostgreSQL 15 or newer, psycopg, and a user other than root: as root it runs as `postgres` or
`nobody`. It ends with this process, however this process ends. What is missing is told by `why_missing`.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

if TYPE_CHECKING:
    import psycopg

SETTINGS: Final = {
    "listen_addresses": "",
    "fsync": "off",  # the machine does not lose power during a test
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "autovacuum": "off",
    "track_commit_timestamp": "on",  # `mimids check` warns of it
}
_START_SECONDS: Final = 60
_OLDEST: Final = 15
_KEEPER: Final = "keeper"  # the name of connections that empty databases
_PR_SET_PDEATHSIG: Final = 1
_numbers = count(1)


@cache
def programs() -> Path | None:
    """Return the directory of the server's programs, None if there is none that is new enough."""
    beside = shutil.which("initdb")
    found = [Path(beside).resolve().parent] if beside else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    for directory in found:
        with suppress(OSError, subprocess.SubprocessError, ValueError):
            said = subprocess.run([directory / "postgres", "--version"], capture_output=True, text=True, check=True)
            if int(said.stdout.split()[2].partition(".")[0]) >= _OLDEST:
                return directory
    return None


def why_missing() -> str | None:
    """Return why there is no server for tests, None if there is one."""
    if programs() is None:
        return f"PostgreSQL {_OLDEST} or newer is not installed: apt install postgresql"
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed: pip install 'mimids[postgresql]'"
    return None


def server_user() -> str | None:
    """Return the user to run the server as, None for the present one."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise LookupError("PostgreSQL does not run as root, and there is no user `nobody`")


def end_with_parent() -> None:
    """Make this process, which is about to become a server, end with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


@cache
def server() -> Path:
    """Start the server, if it does not run yet; return the directory of its socket."""
    bin_directory, user = programs(), server_user()
    assert bin_directory is not None, why_missing()
    home = Path(tempfile.mkdtemp(prefix="mimids-pg-"))
    if user is not None:
        shutil.chown(home, user)
    home.chmod(0o755)
    data = home / "data"
    subprocess.run(
        [bin_directory / "initdb", "-D", data, "-U", "mimids", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
        check=True,
        user=user,
        stdout=subprocess.DEVNULL,
        cwd=home,
    )
    settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [bin_directory / "postgres", "-D", data, "-k", home, *settings],
            user=user,
            cwd=home,
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent,
        )
    atexit.register(_stop, process, home, os.getpid())
    import psycopg

    give_up_at = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(url_of(home, "postgres")).close()
            return home
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise AssertionError(f"PostgreSQL did not start: {(home / 'log').read_text()}") from error
            time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes], home: Path, starter: int) -> None:
    if os.getpid() != starter:
        return  # a fork of the process that started the server
    process.send_signal(signal.SIGQUIT)
    process.wait()
    shutil.rmtree(home, ignore_errors=True)


def url_of(socket_directory: Path, database: str) -> str:
    """Return the URL of a database."""
    return f"postgresql://mimids@/{database}?host={quote(str(socket_directory))}"


def new_database(*, template: str = "template0") -> str:
    """Make a database, empty or as a copy of another, and return its URL."""
    import psycopg

    name = f"test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(url_of(server(), "postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy'.encode())
    return url_of(server(), name)


def connections(url: str) -> Iterator[psycopg.Connection]:
    """Yield a connection that commits each statement, and close it: the body of a fixture."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def end_others(connection: psycopg.Connection, query: str = "%") -> None:
    """End the other connections to the same database whose query is LIKE this, and wait until they have ended.

    The connection that empties the database for the next test stays.
    """
    connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> %s AND query LIKE %s",
        (_KEEPER, query),
    )


# --- all tests on PostgreSQL ------------------------------------------------------------------------------------

# A database is emptied and used again: that takes a fifth of the time of making one. `initial` has what a new one has.
_EMPTY: Final = """
CREATE SCHEMA initial;
CREATE FUNCTION initial.restore() RETURNS void LANGUAGE plpgsql SET session_replication_role = replica AS $$
DECLARE
    name text; is_used boolean; used text[] := '{}';
BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format('SELECT EXISTS (SELECT 1 FROM public.%I)', name) INTO is_used;
        IF is_used THEN used := used || name; END IF;
    END LOOP;
    FOREACH name IN ARRAY used LOOP
        IF pg_relation_size(format('public.%I', name)) < 262144 THEN EXECUTE format('DELETE FROM public.%I', name);
        ELSE EXECUTE format('TRUNCATE public.%I CASCADE', name);
        END IF;
    END LOOP;
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'initial' LOOP
        EXECUTE format('INSERT INTO public.%1$I SELECT * FROM initial.%1$I', name);
    END LOOP;
    PERFORM setval(seqrelid::regclass, 1, false) FROM pg_sequence;
END $$;
"""
_made: dict[Path, str] = {}
_emptied: list[str] = []
_keepers: dict[str, psycopg.Connection] = {}


def use_for_every_provider() -> None:
    """From now on, what a test stores in a SQLite file is stored in a database of its own in PostgreSQL.

    Connections to the file itself stay as they are: tests of files have the marker `sqlite_file`.
    """
    reason = why_missing()
    assert reason is None, reason
    from mimids.config import Config
    from mimids.store.engine import access
    from mimids.testing import federations

    server()  # from the main thread: the server ends with the thread that starts it
    to_toml, close = federations._toml, federations.Federation.close

    def with_url(table: Mapping[str, Any]) -> str:
        home = Path(tempfile.gettempdir()) / f"{os.getpid()}-{next(_numbers)}"
        return to_toml({**table, "store": {"url": database_of(home)}} if "provider" in table else table)

    def close_and_give_back(federation: federations.Federation) -> None:
        close(federation)
        urls = {provider.config.store.url for provider in federation}
        _give_back([path for path, url in _made.items() if url in urls])

    federations._toml = with_url
    federations.Federation.close = close_and_give_back  # type: ignore[assignment, method-assign]
    access._url = lambda place: database_of(place) if isinstance(place, Path) else place
    Config.place = property(lambda config: config.store.url or database_of(config.database))  # type: ignore[assignment, method-assign]


def is_in_postgresql(path: Path) -> bool:
    """Tell whether a database stands for this file."""
    return path in _made


def database_of(path: Path) -> str:
    """Return the URL of the database that stands for a file; it has all tables, and no rows, when it is new."""
    if path not in _made:
        _made[path] = _emptied.pop() if _emptied else new_database(template=_template())
    return _made[path]


@cache
def _template() -> str:
    import psycopg

    from mimids.store.engine.postgresql import migrations

    url = new_database()
    migrations.migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_EMPTY.encode())
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (name,) in tables:
            if connection.execute(f"SELECT 1 FROM {name} LIMIT 1".encode()).fetchone():  # noqa: S608
                connection.execute(f"CREATE TABLE initial.{name} AS TABLE {name}".encode())
    return _name_in(url)


def empty_databases(below: Path) -> None:
    """Empty the databases of files in a directory, for later tests."""
    _give_back([path for path in _made if path.is_relative_to(below)])


def _give_back(paths: Sequence[Path]) -> None:
    import psycopg

    for path in paths:
        url = _made.pop(path)
        connection = _keepers.get(url) or psycopg.connect(url, autocommit=True, application_name=_KEEPER)
        _keepers[url] = connection
        end_others(connection)
        connection.execute("SELECT initial.restore()")
        _emptied.append(url)


def _name_in(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]
