from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from mimids.store.engine import migrate as module
from mimids.store.engine.migrate import Migration, SchemaRefused, migrate, pending, shipped
from mimids.store.engine.sqlite import connect, read_here

ROOT = Path(__file__).parents[3]
DIGESTS = Path(__file__).parents[1] / "migration_digests.json"

FIRST = Migration(1, "first", "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;")
SECOND = Migration(2, "second", "INSERT INTO users (name) VALUES ('bob'); -- and no more\n")


def tables(path: Path) -> list[str]:
    with read_here(path) as tx:
        return [name for (name,) in tx.all("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]


# --- what is shipped --------------------------------------------------------------------------------------------


def test_the_shipped_migrations_make_a_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    assert pending(path) == shipped() == migrate(path)
    assert pending(path) == migrate(path) == []
    with read_here(path) as tx:
        assert tx.all("PRAGMA foreign_key_check") == []
        assert tx.all("SELECT version, name, digest FROM schema_version") == [
            (m.version, m.name, m.digest) for m in shipped()
        ]
        ordinary = tx.all(
            "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite%'"
        )
    assert {name for name, strict in ordinary if not strict} == set()


def test_every_migration_begins_with_its_purpose() -> None:
    assert [m.name for m in shipped() if not m.sql.startswith("-- ")] == []


def test_a_released_migration_never_changes() -> None:
    """Databases have applied these files. To change the schema, add a new file and its digest."""
    pinned = json.loads(DIGESTS.read_text())
    assert {f"{m.version:04}_{m.name}": m.digest.hex() for m in shipped()} == pinned


def test_migrations_are_found_in_the_package_first_and_beside_it_second(tmp_path: Path) -> None:
    packaged, beside = tmp_path / "packaged", tmp_path / "beside"
    beside.mkdir()
    (beside / "0001_beside.sql").write_text("SELECT 1;")
    assert [m.name for m in shipped(packaged, beside)] == ["beside"]
    packaged.mkdir()
    (packaged / "0001_packaged.sql").write_text("SELECT 1;")
    assert [m.name for m in shipped(packaged, beside)] == ["packaged"]


def test_a_checkout_has_the_migrations_beside_the_package() -> None:
    assert not module._PACKAGED.exists()
    assert ROOT / "migrations" == module._BESIDE
    assert [f"{m.version:04}_{m.name}.sql" for m in shipped()] == sorted(p.name for p in module._BESIDE.iterdir())


@pytest.mark.slow
def test_a_wheel_has_the_migrations_in_the_package(tmp_path: Path) -> None:
    build = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    assert built.stdout.strip().endswith(wheel.name)
    ask = "from mimids.store.engine.migrate import shipped; print([m.digest.hex() for m in shipped()])"
    asked = subprocess.run(
        [sys.executable, "-P", "-c", ask],
        cwd=tmp_path,
        env={"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == str([m.digest.hex() for m in shipped()])


@pytest.mark.parametrize(
    "names",
    [["0001_a.sql", "0003_c.sql"], ["0001_a.sql", "0001_b.sql"], ["0002_b.sql"], ["1_a.sql"], ["0001-a.sql"], []],
)
def test_an_incomplete_installation_is_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(SchemaRefused):
        shipped(tmp_path / "none", tmp_path)


# --- applying ---------------------------------------------------------------------------------------------------


def test_each_migration_is_applied_once_in_order(tmp_path: Path) -> None:
    path = tmp_path / "db"
    assert pending(path, [FIRST]) == [FIRST]
    assert not path.exists()
    assert migrate(path, [FIRST]) == [FIRST]
    assert pending(path, [FIRST, SECOND]) == [SECOND]
    assert migrate(path, [FIRST, SECOND]) == [SECOND]
    assert migrate(path, [FIRST, SECOND]) == []
    with read_here(path) as tx:
        assert tx.all("SELECT name FROM users") == [("bob",)]


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("INSERT INTO users (name) VALUES ('x'); SELECT no_such_thing;", "no such column"),
        ("CREATE TABLE half (id); COMMIT; CREATE TABLE other (id);", "ends its own transaction"),
        ("BEGIN; CREATE TABLE half (id);", "within a transaction"),
        ("CREATE TABLE half (user INTEGER REFERENCES users (id)); INSERT INTO half VALUES (77);", "refer to nothing"),
        ("CREATE TABLE half (id", "incomplete input"),
    ],
)
def test_a_failing_migration_is_undone_and_those_before_it_stay(tmp_path: Path, sql: str, why: str) -> None:
    path = tmp_path / "db"
    failing = Migration(2, "failing", sql)
    with pytest.raises((sqlite3.Error, SchemaRefused), match=why):
        migrate(path, [FIRST, failing])
    assert pending(path, [FIRST, failing]) == [failing]
    if "COMMIT" not in sql:
        assert tables(path) == ["schema_version", "users"]
    with read_here(path) as tx:
        assert tx.all("SELECT name FROM users") == []


def test_a_migration_can_rebuild_a_table_that_others_refer_to(tmp_path: Path) -> None:
    path = tmp_path / "db"
    referring = Migration(
        2,
        "referring",
        "INSERT INTO users (id, name) VALUES (1, 'bob');"
        "CREATE TABLE devices (user INTEGER REFERENCES users (id) ON DELETE CASCADE);"
        "INSERT INTO devices VALUES (1);",
    )
    rebuild = Migration(
        3,
        "rebuild",
        "CREATE TABLE better (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;"
        "INSERT INTO better SELECT id, name FROM users; DROP TABLE users; ALTER TABLE better RENAME TO users;",
    )
    migrate(path, [FIRST, referring, rebuild])
    with read_here(path) as tx:
        assert tx.all("SELECT user FROM devices") == [(1,)]


# --- refusing ---------------------------------------------------------------------------------------------------


def refusal(path: Path, migrations: list[Migration]) -> str:
    before = path.read_bytes()
    with pytest.raises(SchemaRefused) as refused:
        migrate(path, migrations)
    with pytest.raises(SchemaRefused) as also_refused:
        pending(path, migrations)
    assert str(refused.value) == str(also_refused.value)
    assert path.read_bytes() == before
    return str(refused.value)


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    migrate(path, [FIRST, SECOND])
    sentence = refusal(path, [FIRST])
    assert "has schema version 2" in sentence
    assert "versions up to 1" in sentence


@pytest.mark.parametrize("changed", [Migration(1, "first", FIRST.sql + " "), Migration(1, "other", FIRST.sql)])
def test_a_database_that_was_migrated_by_different_files_is_refused(tmp_path: Path, changed: Migration) -> None:
    path = tmp_path / "db"
    migrate(path, [FIRST])
    assert "must never change" in refusal(path, [changed, SECOND])


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(connect(path, create=True)) as connection:
        connection.execute("CREATE TABLE bookmarks (id)")
    assert "not a database of mimids" in refusal(path, [FIRST])


def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"dear diary, " * 1000)
    assert "is not a database" in refusal(path, [FIRST])
