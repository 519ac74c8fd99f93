"""A damaged or cut database is noticed: nothing is acknowledged into it, and the operator learns what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids import process
from mimids.config import Config
from mimids.errors import StorageUnavailable
from mimids.store import acknowledged
from mimids.store.damage import loss_says, why_not_served
from mimids.store.engine.sqlite import PAGE_OCTETS, connect, find_damage, open_store, write_here
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from tests.support import notes
from tests.support.cli_runs import provider, run, serving

ROWS = 2000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database of some hundred pages, all of them in the database file itself."""
    path = tmp_path / "notes.sqlite3"
    notes.create(path)
    with closing(connect(path)) as connection:
        connection.executemany("INSERT INTO notes (text) VALUES (?)", [(f"{n:06} " * 100,) for n in range(ROWS)])
    return path


def overwrite(path: Path, *, pages: range | None = None) -> None:
    """Overwrite pages of a database with noise, all but the first ones if none are named."""
    if pages is None:
        pages = range(5, path.stat().st_size // PAGE_OCTETS)
    with path.open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE_OCTETS)
            file.write(os.urandom(PAGE_OCTETS))


def test_damage_is_found_before_a_server_starts(path: Path) -> None:
    assert find_damage(path) is None
    overwrite(path, pages=range(40, 60))
    assert find_damage(path)


def test_a_file_without_a_header_is_damaged(path: Path) -> None:
    overwrite(path, pages=range(1))
    assert find_damage(path)


def test_the_check_is_bounded(path: Path) -> None:
    """What is not checked in time is noticed by the first statement that reads it."""
    with closing(connect(path)) as connection:
        rows = ((f"{n} more " * 100,) for n in range(40_000))
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO notes (text) VALUES (?)", rows)
        connection.execute("COMMIT")
    overwrite(path, pages=range(40, 60))  # SQLite checks a table from its end to its start
    assert find_damage(path, seconds=0) is None
    assert find_damage(path)


async def test_a_write_that_finds_damage_is_the_last_one(path: Path) -> None:
    said: list[str] = []
    overwrite(path)
    async with open_store(path, on_damage=said.append) as store, trio.open_nursery() as jobs:
        await jobs.start(store.run)
        with pytest.raises(StorageUnavailable) as refused:
            await store.write(lambda tx: tx.execute("UPDATE notes SET text = text || 'x'"))
        assert said == [store.statistics().damage]
        assert said[0] not in str(refused.value)
        assert not store.statistics().writable
        with pytest.raises(StorageUnavailable):
            await store.write(lambda tx: tx.execute("CREATE TABLE unharmed (id INTEGER) STRICT"))
        await store.read(lambda tx: tx.one("SELECT 1"))
        jobs.cancel_scope.cancel()
    assert len(said) == 1


async def test_works_beside_one_that_finds_damage_are_not_acknowledged(path: Path) -> None:
    overwrite(path)
    acknowledgements: list[str] = []

    async def write(store: Store, sql: str) -> None:
        with pytest.raises(StorageUnavailable):
            acknowledgements.append(str(await store.write(lambda tx: tx.execute(sql))))

    async with open_store(path) as store, trio.open_nursery() as jobs:
        async with trio.open_nursery() as writing:
            writing.start_soon(write, store, "UPDATE notes SET text = text || 'x'")
            for n in range(20):
                writing.start_soon(write, store, f"CREATE TABLE unharmed_{n} (id INTEGER) STRICT")
            await trio.testing.wait_all_tasks_blocked()
            await jobs.start(store.run)
        jobs.cancel_scope.cancel()
    assert not acknowledgements


async def test_a_read_that_finds_damage_stops_the_writes(path: Path) -> None:
    overwrite(path)
    async with notes.working(path) as store:
        with pytest.raises(StorageUnavailable):
            await store.read(lambda tx: tx.all("SELECT length(text), sum(id) FROM notes GROUP BY 1"))
        with pytest.raises(StorageUnavailable):
            await store.write(lambda tx: tx.execute("CREATE TABLE unharmed (id INTEGER) STRICT"))


# --- a server -----------------------------------------------------------------------------------------------------


def wait_recorded(config: Config, number: int) -> None:
    give_up_at = time.monotonic() + 10
    while (acknowledged.recorded(config.database) or 0) < number:
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def add_users(config: Config, count: int) -> None:
    def add(tx: Tx) -> None:
        for n in range(count):
            tx.execute(
                "INSERT INTO users (user_id, created_at) VALUES (?, 1)", (f"mimi://a.example/u/user-{n:040}".encode(),)
            )

    write_here(config.database, add)


@contextmanager
def killed(tmp_path: Path, config: Config) -> Iterator[None]:
    """Run a server for the block, and kill it."""
    with serving("--config", tmp_path / "mimids.toml", cwd=tmp_path) as (server, _):
        yield
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert config.database.with_name(config.database.name + "-wal").stat().st_size


def test_a_damaged_database_is_not_served(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = provider(tmp_path)
    add_users(config, ROWS)
    overwrite(config.database, pages=range(20, config.database.stat().st_size // PAGE_OCTETS))
    assert process.serve(config) == process.EXIT_REFUSED
    said = capfd.readouterr().err
    assert "damaged" in said
    assert "mimids restore" in said


def ask(operator: str, path: str) -> tuple[int, bytes]:
    with closing(HTTPConnection(operator, timeout=10)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_readyz_and_the_log_say_that_the_database_is_damaged(tmp_path: Path) -> None:
    config = provider(tmp_path)
    add_users(config, ROWS)
    file = ("--config", tmp_path / "mimids.toml")
    with serving(*file, cwd=tmp_path) as (_, said):
        operator = next(line for line in said if line.startswith("  operator ")).rpartition("/")[2]
        assert ask(operator, "/readyz") == (200, b"ready\n")
        overwrite(config.database, pages=range(20, config.database.stat().st_size // PAGE_OCTETS))
        assert ask(operator, "/metrics")[0] == 503  # it counts users' devices, and so reads a damaged page
        added = run("user", "add", "carol", *file, cwd=tmp_path)
        assert "mimids restore" in added.err
        status, body = ask(operator, "/readyz")
        assert status == 503
        for text in (json.loads(body)["detail"], (tmp_path / "serve.log").read_text()):
            assert "is damaged" in text
            assert "mimids restore" in text


@pytest.mark.parametrize("cut", ["truncated", "removed"])
def test_a_write_ahead_log_that_was_cut_off_is_noticed(
    tmp_path: Path, cut: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = provider(tmp_path)
    with killed(tmp_path, config):
        for n in range(3):
            assert run("user", "add", f"user{n}", "--config", tmp_path / "mimids.toml", cwd=tmp_path).code == 0
        wait_recorded(config, 3)
    log = config.database.with_name(config.database.name + "-wal")
    whole = log.read_bytes()
    assert why_not_served(config.database) is None
    if cut == "truncated":
        os.truncate(log, 32 + (len(whole) - 32) // 3)
    else:
        log.unlink()
        log.with_name(config.database.name + "-shm").unlink()
    assert process.serve(config) == process.EXIT_REFUSED
    said = capfd.readouterr().err
    assert "lost" in said
    assert "mimids restore" in said
    acknowledged.forget(config.database)  # as the message says
    assert why_not_served(config.database) is None


def test_a_clean_stop_a_command_or_another_program_loses_nothing(tmp_path: Path) -> None:
    config = provider(tmp_path)
    with killed(tmp_path, config):
        assert run("user", "add", "alice", "--config", tmp_path / "mimids.toml", cwd=tmp_path).code == 0
    with closing(sqlite3.connect(config.database)) as other:  # merges the log, and removes it
        other.execute("SELECT count(*) FROM users").fetchone()
    assert loss_says(config.database) is None
    with serving("--config", tmp_path / "mimids.toml", cwd=tmp_path):
        pass
    assert acknowledged.recorded(config.database)
    assert loss_says(config.database) is None
    write_here(config.database, lambda tx: tx.execute("DELETE FROM users"))
    assert loss_says(config.database) is None


def test_a_restored_backup_may_be_older(tmp_path: Path) -> None:
    config = provider(tmp_path)
    file = ("--config", tmp_path / "mimids.toml")
    assert run("backup", tmp_path / "old", *file, cwd=tmp_path).code == 0
    with serving(*file, cwd=tmp_path):
        for n in range(3):
            assert run("user", "add", f"user{n}", *file, cwd=tmp_path).code == 0
    shutil.copy(config.database, tmp_path / "newer")
    assert run("restore", "--replace", tmp_path / "old", *file, cwd=tmp_path).code == 0
    assert why_not_served(config.database) is None


@pytest.mark.parametrize("text", [b"", b"12", b"x" * 21, b"9" * 20, b"9" * 21])
def test_a_record_that_cannot_be_read_is_ignored(tmp_path: Path, text: bytes) -> None:
    database = tmp_path / "some.sqlite3"
    acknowledged.file_of(database).write_bytes(text)
    assert acknowledged.recorded(database) is None
