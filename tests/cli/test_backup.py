"""Backups: a consistent copy of a database in use, which is never served unchanged."""

from __future__ import annotations

import errno
import json
import sqlite3
import stat
from pathlib import Path

import pytest

from mimids.store import backup
from mimids.store.engine import migrate as migrate_module
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import read_here, write_here
from mimids.store.ohttp import put_setting
from mimids.values import Milliseconds
from tests.support.cli_runs import invoke, provider, run, serving

STOCKED = (
    "INSERT INTO users (id, user_id, created_at) VALUES (1, x'61', 0)",
    "INSERT INTO devices (id, owner, name, token_digest, created_at) VALUES (1, 1, '1', zeroblob(32), 0)",
    "INSERT INTO key_packages (id, device, version, cipher_suite, last_resort, expires_at, body)"
    " VALUES (1, 1, 1, 1, 0, 9e12, x'00')",
)

FOLLOWED = (
    "INSERT INTO providers (id, domain) VALUES (1, 'a.example'), (2, 'b.example')",
    "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at) VALUES (1, 1, x'67', 1, 1, 0)",
    "INSERT INTO partitions (id, group_ref, hub, masked_key, opened_at) VALUES (1, 1, 1, zeroblob(32), 0)",
    "INSERT INTO follows (provider, partition) VALUES (2, 1)",
)


def count(path: Path, table: str) -> int:
    with read_here(path) as tx:
        found = tx.one(f"SELECT count(*) FROM {table}")  # noqa: S608
    return found[0] if found else 0


def test_a_copy_is_consistent_while_others_write(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    migrate(source)
    filler = bytes(8000)
    rows = [(f"old {n}", filler) for n in range(3000)]
    write_here(source, lambda tx: tx.executemany("INSERT INTO settings (name, value) VALUES (?, ?)", rows))
    steps: list[tuple[int, int]] = []

    def write_on(done: int, total: int) -> None:
        steps.append((done, total))
        write_here(source, lambda tx: put_setting(tx, f"new {len(steps)}", filler))

    backup.copy(source, target, Milliseconds(7), write_on)
    assert len(steps) > 2
    assert len({total for _, total in steps}) == 1, "it never started again"
    assert backup.check(target) == 7
    assert count(target, "settings WHERE name LIKE 'new %'") == 0
    assert count(target, "settings WHERE name LIKE 'old %'") == 3000
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith((".", "target"))} == {"target"}


def test_a_failed_copy_leaves_no_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    migrate(source)

    def fail(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        backup.copy(source, tmp_path / "target", Milliseconds(0), fail)
    (tmp_path / "there").touch()
    with pytest.raises(FileExistsError):
        backup.copy(source, tmp_path / "there", Milliseconds(0))
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("source")} == {"there"}


def test_a_backup_that_was_copied_into_place_is_not_served(tmp_path: Path) -> None:
    config = provider(tmp_path)
    assert invoke(config, "backup", tmp_path / "copy").exit_code == 0
    config.database.unlink()
    (tmp_path / "copy").rename(config.database)
    for command in (["serve"], ["user", "list"], ["user", "add", "alice"], ["backup", tmp_path / "again"]):
        refused = invoke(config, *command)
        assert refused.exit_code == 1
        assert "`mimids restore BACKUP`" in refused.stderr


def test_restore_drops_what_may_have_been_handed_out_since(tmp_path: Path) -> None:
    config = provider(tmp_path)
    write_here(config.database, lambda tx: [tx.execute(sql) for sql in STOCKED])
    first = invoke(config, "ohttp", "rotate", "--json")
    assert first.exit_code == 0
    assert invoke(config, "backup", tmp_path / "copy").exit_code == 0
    assert invoke(config, "user", "add", "later").exit_code == 0

    assert "--replace" in invoke(config, "restore", tmp_path / "copy").stderr
    restored = invoke(config, "restore", tmp_path / "copy", "--replace")
    assert restored.exit_code == 0, restored.stderr
    assert count(config.database, "users") == 1
    assert count(config.database, "key_packages") == 0
    with read_here(config.database) as tx:
        assert [row[0] for row in tx.all("SELECT key_id FROM ohttp_keys")] == [1], "the key of before is gone"
    (aside,) = config.data_dir.glob("mimids.sqlite3.before-*")
    assert count(aside, "users") == 2
    assert invoke(config, "user", "list").exit_code == 0


def test_followed_groups_are_held_until_their_followers_answer_or_the_operator_releases_them(tmp_path: Path) -> None:
    config = provider(tmp_path)
    write_here(config.database, lambda tx: [tx.execute(sql) for sql in FOLLOWED])
    assert invoke(config, "backup", tmp_path / "copy").exit_code == 0
    restored = invoke(config, "restore", tmp_path / "copy", "--replace", "--json")
    assert restored.exit_code == 0, restored.stderr
    assert json.loads(restored.stdout)["groups_held"] == 1
    assert (
        "held since a restore, until these providers answer: b.example" in invoke(config, "group", "show", "g").stdout
    )
    assert "held since a restore, until these providers answer: b.example" in invoke(config, "group", "list").stdout
    checked = invoke(config, "check", "--no-peers").stdout
    assert "the group g accepts no messages since a restore, until b.example answers" in checked
    assert "does not wait for c.example" in invoke(config, "group", "release", "g", "--provider", "c.example").stderr
    released = invoke(config, "group", "release", "g", "--provider", "b.example", "--json")
    assert json.loads(released.stdout)["did_not_answer"] == 1
    assert "held" not in invoke(config, "group", "show", "g").stdout


def test_a_backup_of_an_unfinished_recovery_asks_everybody_again(tmp_path: Path) -> None:
    config = provider(tmp_path)
    answered = "INSERT INTO recoveries (group_ref, provider, answered) VALUES (1, 2, 1), (1, 3, 0)"
    third = "INSERT INTO providers (id, domain) VALUES (3, 'c.example')"
    write_here(config.database, lambda tx: [tx.execute(sql) for sql in (*FOLLOWED, third, answered)])
    assert invoke(config, "backup", tmp_path / "copy").exit_code == 0
    assert invoke(config, "restore", tmp_path / "copy", "--replace").exit_code == 0
    assert "until these providers answer: b.example, c.example" in invoke(config, "group", "show", "g").stdout


def test_a_file_that_is_not_a_backup_is_refused(tmp_path: Path) -> None:
    config = provider(tmp_path)
    (tmp_path / "text").write_text("text")
    assert "cannot be read" in invoke(config, "restore", tmp_path / "text", "--replace").stderr
    sqlite3.connect(tmp_path / "empty").close()
    assert invoke(config, "restore", tmp_path / "empty", "--replace").exit_code == 1
    refused = invoke(config, "restore", config.database, "--replace")
    assert "was not made by" in refused.stderr
    assert config.database.exists()


def test_a_backup_overwrites_no_file_and_creates_no_directory(tmp_path: Path) -> None:
    config = provider(tmp_path)
    (tmp_path / "there").write_text("mine")
    assert "a backup never overwrites a file" in invoke(config, "backup", tmp_path / "there").stderr
    assert (tmp_path / "there").read_text() == "mine"
    assert (
        f"the directory {tmp_path}/nowhere does not exist"
        in invoke(config, "backup", tmp_path / "nowhere" / "b").stderr
    )


def test_a_failed_restore_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = provider(tmp_path)
    assert invoke(config, "backup", tmp_path / "copy").exit_code == 0
    before = config.database.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr(migrate_module, "migrate", full)
    failed = invoke(config, "restore", tmp_path / "copy", "--replace")
    assert (failed.exit_code, "No space left" in failed.stderr) == (1, True)
    assert config.database.read_bytes() == before
    assert not list(config.data_dir.glob("*restored*"))
    assert not list(config.data_dir.glob("*before*"))


@pytest.mark.slow
def test_a_running_server_can_be_backed_up_but_not_restored(tmp_path: Path) -> None:
    config = provider(tmp_path)
    with serving("--config", "mimids.toml", cwd=tmp_path):
        assert run("user", "add", "alice", cwd=tmp_path).code == 0
        assert run("backup", "copy", "--json", cwd=tmp_path).json["backup"] == "copy"
        assert run("restore", "copy", "--replace", cwd=tmp_path).code == 1
        assert run("user", "add", "bob", cwd=tmp_path).code == 0
    assert run("restore", "copy", "--replace", cwd=tmp_path).code == 0
    with serving("--config", "mimids.toml", cwd=tmp_path):
        assert [user["user_id"] for user in run("user", "list", "--json", cwd=tmp_path).json["users"]] == [
            "mimi://a.example/u/alice"
        ]
    assert count(config.database, "ohttp_keys") == 1


def test_a_copy_without_space_is_refused_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = provider(tmp_path)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(backup, "copy", full)
    failed = invoke(config, "backup", tmp_path / "copy")
    assert failed.exit_code == 1
    assert "cannot copy the database: database or disk is full\n  check the free space" in failed.stderr


def test_copies_in_a_directory_are_named_by_the_time_and_the_oldest_are_deleted(tmp_path: Path) -> None:
    config = provider(tmp_path / "a")
    copies = tmp_path / "copies"
    copies.mkdir()
    old = [copies / f"a.example-2026010{day}T030000Z.sqlite3" for day in range(1, 6)]
    others = [copies / name for name in ("mine.sqlite3", "b.example-20260101T030000Z.sqlite3", "a.example-x.sqlite3")]
    for file in (*old, *others):
        file.write_text("a copy")
    made = json.loads(invoke(config, "backup", copies, "--keep", "3", "--json").stdout)
    assert made["deleted"] == 3
    assert sorted(copies.iterdir()) == sorted([*old[3:], *others, Path(made["backup"])])
    assert backup.check(Path(made["backup"]))
    refused = invoke(config, "backup", copies / "none", "--keep", "3")
    assert refused.exit_code == 1
    assert "is not a directory" in refused.stderr


def test_status_says_when_the_last_copy_was_made(tmp_path: Path) -> None:
    config = provider(tmp_path)
    assert json.loads(invoke(config, "status", "--json").stdout)["last_backup_at"] is None
    assert invoke(config, "backup", tmp_path / "copy").exit_code == 0
    made = backup.made_at(tmp_path / "copy")
    assert made is not None
    last = json.loads(invoke(config, "status", "--json").stdout)["last_backup_at"]
    assert 0 <= last - made < 60_000
    config.database.with_name("mimids.sqlite3-backup").write_text("half")
    assert backup.last(config.database) is None
