"""A provider that is stored in PostgreSQL, as its operator meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mimids.config import ConfigError, parse
from mimids.store.engine import access
from tests.support import postgresql
from tests.support.cli_runs import provider, run, serving

needs_postgresql = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of a provider whose configuration names a new, empty database."""
    config = provider(tmp_path)
    config.database.unlink()
    file = config.tls.certificate.parent / "mimids.toml"
    file.write_text(f'{file.read_text()}\n[store]\nurl = "{postgresql.new_database()}"\n')
    return file.parent


@needs_postgresql
def test_commands_work_without_a_server_and_through_it(directory: Path) -> None:
    assert run("migrate", "--json", cwd=directory).json["database"].startswith("the PostgreSQL database")
    assert len(run("migrate", "--json", cwd=directory).json["applied"]) == 0
    run("user", "add", "alice", cwd=directory)
    with serving(cwd=directory):
        run("user", "add", "bob", cwd=directory)
        assert len(run("user", "list", "--json", cwd=directory).json["users"]) == 2
    users = run("user", "list", "--json", cwd=directory).json["users"]
    assert [each["user_id"].rpartition("/")[2] for each in users] == ["alice", "bob"]


@needs_postgresql
def test_the_check_looks_at_durability(directory: Path) -> None:
    run("migrate", cwd=directory)
    checked = run("check", "--no-peers", "--json", cwd=directory)
    found = {each["what"] for each in json.loads(checked.out)["findings"] if each["state"] == "wrong"}
    assert [what for what in found if "may lose acknowledged writes" in what], found  # the tests' server has fsync off


@needs_postgresql
def test_the_check_warns_if_the_moments_of_transactions_are_kept(directory: Path) -> None:
    run("migrate", cwd=directory)
    checked = run("check", "--no-peers", "--json", cwd=directory)
    (found,) = [each for each in json.loads(checked.out)["findings"] if each["check"] == "privacy"]
    assert found["state"] == "warning"
    assert "track_commit_timestamp" in found["fix"]


@needs_postgresql
def test_backups_are_for_files(directory: Path) -> None:
    run("migrate", cwd=directory)
    refused = run("backup", "copy", cwd=directory)
    assert refused.code != 0
    assert "pg_basebackup" in refused.err


@needs_postgresql
def test_a_database_that_was_set_back_is_prepared_as_a_restored_file(directory: Path) -> None:
    run("migrate", cwd=directory)
    first = run("user", "add", "alice", "--json", cwd=directory)
    assert first.code == 0
    run("device", "add", "alice", "phone", cwd=directory)
    file = directory / "mimids.toml"
    url = file.read_text().partition('url = "')[2].partition('"')[0]
    earlier = postgresql.new_database(template=url.partition("@/")[2].partition("?")[0])
    run("user", "add", "bob", cwd=directory)
    assert "was never restored" in run("restored", cwd=directory).err

    file.write_text(file.read_text().replace(url, earlier))
    restored = run("restored", "--set-back", "--json", cwd=directory).json
    assert [each["device_id"] for each in restored["devices"]] == ["phone"]
    assert restored["restored_at"] > restored["backup_made_at"]
    run("user", "add", "carol", cwd=directory)
    with access.read_here(earlier) as tx:
        rows = tx.all("SELECT id FROM users ORDER BY id")
    assert rows[0][0] < 10 < restored["restored_at"] * 1000 < rows[1][0]
    with serving(cwd=directory):
        refused = run("restored", "--set-back", cwd=directory)
    assert "stop all servers" in refused.err


def test_a_file_is_not_set_back(tmp_path: Path) -> None:
    config = provider(tmp_path)
    refused = run("restored", "--set-back", cwd=config.tls.certificate.parent)
    assert "`mimids restore` restores a file" in refused.err


@needs_postgresql
def test_a_server_that_must_be_replicated_refuses_to_serve_without_a_standby(directory: Path) -> None:
    file = directory / "mimids.toml"
    file.write_text(f"{file.read_text()}replicated = true\n")
    run("migrate", cwd=directory)
    refused = run("serve", cwd=directory)
    assert refused.code != 0
    assert "synchronous_standby_names is empty" in refused.err


def test_a_database_that_cannot_be_reached_is_named_without_secrets(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    config = provider(tmp_path)
    file = config.tls.certificate.parent / "mimids.toml"
    file.write_text(f'{file.read_text()}\n[store]\nurl = "postgresql://mimids@/nowhere?host={tmp_path}"\n')
    refused = run("user", "list", cwd=file.parent)
    assert refused.code != 0
    assert "cannot be reached" in refused.err
    assert "[store] url" in refused.err


@pytest.mark.parametrize(
    "url", ["postgresql://mimids:secret@db/mimids", "postgresql://db/mimids?password=secret", "mysql://db", "mimids"]
)
def test_a_url_with_a_password_or_of_another_database_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"\[store\] url: write \"postgresql://"):
        parse({"provider": "a.example", "store": {"url": url}}, tmp_path)
