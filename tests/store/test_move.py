"""A move copies all rows to another database, whenever it is interrupted, and notices what is not equal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mimids.store import move as moving
from mimids.store import ohttp
from mimids.store.engine import access, tables
from mimids.store.engine.lock import Locked
from mimids.store.engine.tables import EndFailed, MovedTable, Tables, digest, moved_tables, pages
from mimids.store.engine.transaction import Tx
from mimids.store.move import MoveRefused, MoveSummary, why_not_used
from tests.support import postgresql
from tests.support.any_rows import fill

pytestmark = [
    pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing())),
    pytest.mark.sqlite_file("a move has a file at one end"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """An empty file, a file with rows in every table, and the name of an empty database with all tables."""
    empty, full = (tmp_path_factory.mktemp("made") / name for name in ("empty", "full"))
    for path in (empty, full):
        access.migrate(path)
    counts = fill(full, Random(7))
    assert all(counts[table.name] for table in moved_tables())
    url = postgresql.new_database()
    access.migrate(url)
    return empty, full, url.partition("@/")[2].partition("?")[0]


@pytest.fixture
def file(made: tuple[Path, Path, str], tmp_path: Path) -> Path:
    """A file with rows in every table."""
    (tmp_path / "one").mkdir()
    return shutil.copyfile(made[1], tmp_path / "one" / "mimids.sqlite3")


@pytest.fixture
def other(made: tuple[Path, Path, str], tmp_path: Path) -> Path:
    """An empty file."""
    (tmp_path / "two").mkdir()
    return shutil.copyfile(made[0], tmp_path / "two" / "mimids.sqlite3")


@pytest.fixture
def urls(made: tuple[Path, Path, str]) -> Callable[[], str]:
    """Makes empty databases."""
    return partial(postgresql.new_database, template=made[2])


@pytest.fixture
def url(urls: Callable[[], str]) -> str:
    return urls()


def move(source: access.Place, target: access.Place, wrap: Callable[[Tables], Any] = lambda end: end) -> MoveSummary:
    with access.open_tables(source) as here, access.open_tables(target) as there:
        names = access.name_of(source), access.name_of(target)
        quiet = nullcontext(lambda done, total: None)
        return moving.move(here, wrap(there), names, copying=quiet, comparing=quiet)


def digests(place: access.Place) -> dict[str, tuple[int, bytes]]:
    with access.open_tables(place) as end:
        return {table.name: digest(pages(end, table)) for table in moved_tables()}


def last_ids(place: access.Place) -> dict[str, int]:
    with access.open_tables(place) as end:
        return end.last_ids()


class Interrupted(Exception):
    """The process ended."""


class Interrupting:
    """An end of a move that fails before its n-th commit."""

    def __init__(self, end: Tables, commits: int) -> None:
        self._end = end
        self._left = commits
        self.sql = end.sql

    def __getattr__(self, name: str) -> Any:
        return getattr(self._end, name)

    def _commit(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Interrupted

    def append(self, table: MovedTable, rows: Sequence[Any]) -> None:
        self._commit()
        self._end.append(table, rows)

    def transaction(self) -> Any:
        self._commit()
        return self._end.transaction()


def test_every_table_goes_to_postgresql_and_back(file: Path, url: str, other: Path) -> None:
    before, ids = digests(file), last_ids(file)
    moved = move(file, url)
    assert moved == MoveSummary(len(moved_tables()), sum(rows for rows, _ in before.values()))
    assert digests(url) == before
    assert move(url, other) == moved
    assert digests(other) == before
    for place in (url, other):
        found = last_ids(place)
        assert {name: last for name, last in found.items() if last < ids[name]} == {}


def test_the_old_database_keeps_no_key_of_the_gateway(file: Path, url: str) -> None:
    key = Random(15).randbytes(33)
    access.write_here(file, lambda tx: tx.execute("UPDATE ohttp_keys SET private_key = ?", (key,)))
    assert key in file.read_bytes()
    move(file, url)
    assert key not in file.read_bytes()
    move(file, url)
    with access.read_here(url) as tx:
        assert {row.private_key for row in ohttp.keys(tx)} == {key}


def test_followers_are_looked_at_again_because_stamps_are_of_one_database(file: Path, url: str) -> None:
    move(file, url)
    with access.read_here(file) as tx:
        assert tx.all("SELECT 1 FROM moved WHERE stamp <> 0") + tx.all("SELECT 1 FROM peers WHERE next_stamp <> 0")
    with access.read_here(url) as tx:
        assert {row[0] for row in tx.all("SELECT stamp FROM moved")} == {0}
        for table in ("peers", "push_subscriptions", "removals"):
            assert {row[0] for row in tx.all(f"SELECT next_stamp FROM {table}")} == {0}  # noqa: S608


def add_provider(name: str, tx: Tx) -> int:
    return tx.insert("INSERT INTO providers (domain) VALUES (?) RETURNING id", (name,))


def test_no_id_is_given_out_again(file: Path, url: str, other: Path) -> None:
    """Also not one whose row was deleted."""
    last = access.write_here(file, partial(add_provider, "gone"))
    access.write_here(file, lambda tx: tx.execute("DELETE FROM providers WHERE domain = 'gone'"))
    for source, target in ((file, url), (url, other)):
        move(source, target)
        new = access.write_here(target, partial(add_provider, str(target)))
        assert new > last
        last = new


def test_a_move_that_is_interrupted_before_any_commit_goes_on(
    file: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "CHUNK_ROWS", 1)
    monkeypatch.setattr(tables, "PAGE_ROWS", 5)
    before, commits = digests(file), 0
    while True:
        try:
            move(file, url, partial(Interrupting, commits=commits))
            break
        except Interrupted:
            assert why_not_used(file) is not None
            assert why_not_used(url) is not None or moving_state(url) is None
            commits = 1 if commits == 0 else 23  # the first commits one by one, then several at once
    assert digests(url) == before
    assert why_not_used(url) is None
    left = why_not_used(file)
    assert left is not None
    assert "was moved to" in left.what


def moving_state(place: access.Place) -> str | None:
    with access.read_here(place) as tx:
        mark = moving.mark_of(tx)
    return mark.state if mark else None


@pytest.mark.parametrize("step", ["set_last_ids", "check_references"])
def test_the_last_steps_of_a_move_can_be_interrupted(
    step: str, file: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mimids.store.engine.postgresql.tables import PostgresqlTables

    def end(self: object, *arguments: object) -> None:
        raise Interrupted

    before = digests(file)
    with monkeypatch.context() as patch:
        patch.setattr(PostgresqlTables, step, end)
        with pytest.raises(Interrupted):
            move(file, url)
    assert why_not_used(url) is not None
    move(file, url)
    assert move(file, url).rows == sum(rows for rows, _ in before.values())  # once more changes nothing
    assert digests(url) == before
    with access.open_tables(url) as found:
        assert len(found.sql.all("SELECT 1 FROM pg_constraint WHERE contype = 'f'")) > 20


def test_a_row_that_is_damaged_on_the_way_is_noticed(file: Path, url: str) -> None:
    def damage(end: Tables) -> Tables:
        append = end.append

        def wrong(table: MovedTable, rows: Sequence[Any]) -> None:
            append(table, rows)
            if table.name == "welcomes":
                end.sql.execute("UPDATE welcomes SET stored_at = 5 WHERE id = (SELECT min(id) FROM welcomes)")

        end.append = wrong  # type: ignore[method-assign]
        return end

    with pytest.raises(EndFailed, match=r"other rows in the target than in the source: welcomes$"):
        move(file, url, damage)
    assert why_not_used(url) is not None
    assert moving_state(file) == "leaving"


def test_a_row_that_is_missing_is_noticed_also_after_an_interruption(file: Path, url: str) -> None:
    with pytest.raises(Interrupted):
        move(file, url, lambda end: Interrupting(end, 40))
    access.write_here(url, lambda tx: tx.execute("DELETE FROM providers WHERE id = (SELECT min(id) FROM providers)"))
    with pytest.raises(EndFailed, match="providers"):
        move(file, url)


def test_a_row_that_refers_to_nothing_is_noticed(file: Path, url: str) -> None:
    with access.open_tables(file) as end:
        end.sql.execute("UPDATE devices SET owner = 12345 WHERE id = (SELECT min(id) FROM devices)")
    with pytest.raises(EndFailed, match="devices"):
        move(file, url)
    assert why_not_used(url) is not None
    assert moving_state(file) == "leaving"


def test_a_target_with_the_data_of_a_provider_is_refused(file: Path, url: str) -> None:
    access.write_here(url, partial(add_provider, "b.example"))
    with pytest.raises(MoveRefused, match="not empty"):
        move(file, url)
    assert why_not_used(file) is None


def test_a_target_of_another_move_is_refused(file: Path, other: Path, url: str) -> None:
    with pytest.raises(Interrupted):
        move(other, url, lambda end: Interrupting(end, 1))
    with pytest.raises(MoveRefused, match="another move"):
        move(file, url)
    move(other, url)


def test_what_was_moved_is_not_moved_again(file: Path, urls: Callable[[], str]) -> None:
    move(file, urls())
    with pytest.raises(MoveRefused, match="was moved to"):
        move(file, urls())


def test_a_move_is_given_up_only_before_its_end(file: Path, url: str, urls: Callable[[], str]) -> None:
    def cancel() -> None:
        with access.open_tables(file) as end:
            moving.cancel(end, "the file")

    with pytest.raises(MoveRefused, match="no move"):
        cancel()
    with pytest.raises(Interrupted):
        move(file, url, lambda end: Interrupting(end, 3))
    cancel()
    assert why_not_used(file) is None
    assert why_not_used(url) is not None
    with pytest.raises(MoveRefused, match="another move"):
        move(file, url)
    move(file, urls())
    with pytest.raises(MoveRefused, match="was moved to"):
        cancel()


def run_sql(statement: str, tx: Tx) -> int:
    return tx.execute(statement)


def test_a_database_in_use_is_refused(file: Path, url: str) -> None:
    now = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
    insert = "INSERT INTO processes (name, since, seen_at, runs_jobs) VALUES ('there', 0, 0, 0)"
    for statement in (insert, f"UPDATE processes SET seen_at = {now}"):  # noqa: S608
        access.write_here(url, partial(run_sql, statement))
    with pytest.raises(Locked, match="running server"):
        move(file, url)
    access.write_here(url, lambda tx: tx.execute("UPDATE processes SET seen_at = 5"))
    with access.open_tables(url), pytest.raises(Locked):
        move(file, url)
    with access.open_tables(file), pytest.raises(Locked):
        move(file, url)
    move(file, url)
