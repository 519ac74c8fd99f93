"""`mimids forget`, and what the files of the data directory have afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mimids.config import Config
from mimids.store.engine.sqlite import write_here
from tests.support.cli_runs import invoke, provider
from tests.support.curious import found_in, octets_of

NAMES = {"user id": b"mimi://a.example/u/mallory", "device name": b"mallorys-telephone", "label": b"for mallorys boss"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Return a provider with a user, in whose group a follower is; there is a report about the user."""
    made = provider(tmp_path, "a.example")
    for arguments in (
        ("user", "add", "mallory"),
        ("device", "add", "mallory", "mallorys-telephone"),
        ("token", "issue", "mallory", "--scheme", "unique", "--label", "for mallorys boss"),
        ("ban", "add", "mimi://a.example/u/mallory"),
    ):
        assert invoke(made, *arguments).exit_code == 0
    statements = (
        "INSERT OR IGNORE INTO providers (id, domain) VALUES (70, 'a.example'), (71, 'b.example'), (72, 'c.example')",
        "INSERT INTO groups (id, hub, group_id, version, cipher_suite, creator_device, created_at)"
        " SELECT 1, id, x'67', 1, 1, 1, 0 FROM providers WHERE domain = 'a.example'",
        "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at)"
        " SELECT 2, id, x'68', 1, 1, 0 FROM providers WHERE domain = 'b.example'",
        "INSERT INTO partitions (id, group_ref, hub, masked_key, opened_at) VALUES (1, 1, 1, zeroblob(32), 0)",
        "INSERT INTO follows (provider, partition) SELECT id, 1 FROM providers WHERE domain = 'c.example'",
        "INSERT INTO participations (group_ref, device, joined_at) VALUES (2, 1, 0)",
        "INSERT INTO accepted_terms (hub, offered_revision, offered, fetched_at)"
        """ SELECT id, 1, '{"bans": [], "mutes": [{"user_id": "mimi://a.example/u/mallory"}]}', 0 FROM providers"""
        " WHERE domain = 'c.example'",
    )
    write_here(made.database, lambda tx: [tx.execute(each) for each in statements])
    return made


def test_it_tells_who_may_still_hold_data_of_the_user(config: Config) -> None:
    answer = json.loads(invoke(config, "forget", "mallory", "--json").stdout)
    assert answer == {
        "user_id": "mimi://a.example/u/mallory",
        "devices": 1,
        "groups_hosted": 1,
        "reports": 0,
        "bans": 1,
        "hubs": ["b.example"],
        "followers": ["c.example"],
        "terms_of": ["c.example"],
        "in_postgresql": False,
    }
    again = invoke(config, "forget", "mallory")
    assert again.exit_code == 1
    assert "user list" in again.stderr


def test_it_says_so_in_words(config: Config) -> None:
    said = invoke(config, "forget", "mallory").stdout
    for words in ("b.example", "c.example", "ban list", "backups", "hubs that ban or mute the user"):
        assert words in said


def test_no_file_of_the_data_directory_has_the_user_even_after_an_older_backup_was_restored(
    config: Config, tmp_path: Path
) -> None:
    assert invoke(config, "backup", tmp_path / "old").exit_code == 0
    assert invoke(config, "ban", "remove", "mimi://a.example/u/mallory").exit_code == 0
    write_here(config.database, lambda tx: tx.execute("DELETE FROM accepted_terms"))
    assert found_in(octets_of(config.database), NAMES) == {*NAMES}
    assert invoke(config, "forget", "mallory").exit_code == 0
    assert found_in(octets_of(config.database), NAMES) == set()
    restored = invoke(config, "restore", "--replace", tmp_path / "old")
    assert restored.exit_code == 0, restored.stderr
    files = [file for file in config.data_dir.rglob("*") if file.is_file()]
    assert any("before" in file.name for file in files)
    assert found_in(b"".join(file.read_bytes() for file in files), NAMES) == set()
