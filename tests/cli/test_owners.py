"""Whose files a provider's are: commands run by another user, and what an operator is told of files and disks."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mimids.config import Config
from tests.support.cli_runs import Ran, provider, run
from tests.support.other_user import NOBODY, needs_root, open_directory, run_as

WRITING = [
    ("user", "add", "alice"),
    ("migrate",),
    ("restore", "--replace", "backup"),
    ("serve",),
]


def give(path: Path, user: int) -> None:
    for each in (path, *path.rglob("*")):
        os.chown(each, user, user)


@contextmanager
def of_nobody() -> Iterator[tuple[Path, Config]]:
    """Make a provider, with a backup of it, that belongs to another user."""
    with open_directory() as directory:
        config = provider(directory / "a")
        assert run("backup", "backup", "--config", "a/mimids.toml", cwd=directory).code == 0
        give(directory, NOBODY)
        yield directory, config


def assert_told(ran: Ran, what: str, fix: str) -> None:
    """Check that a command ended with a line that says what happened, and one that says what to do."""
    assert ran.code == 1, ran
    said = ran.err.splitlines()
    assert said[0].startswith("mimids: "), ran.err
    assert what in said[0]
    assert len(said) > 1
    assert all(line.startswith("  ") for line in said[1:]), ran.err
    assert fix in ran.err
    assert "Traceback" not in ran.err


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("command", WRITING, ids=lambda command: command[0])
def test_root_does_not_write_to_the_data_of_another_user_unless_told(command: tuple[str, ...]) -> None:
    with of_nobody() as (directory, config):
        before = {file: file.stat().st_uid for file in config.data_dir.iterdir()}
        refused = run(*command, "--config", "a/mimids.toml", cwd=directory)
        assert_told(refused, "belongs to nobody, and this command runs as root", "sudo -u nobody")
        assert "MIMIDS_ANY_USER=1" in refused.err
        assert {file: file.stat().st_uid for file in config.data_dir.iterdir()} == before
        assert run("user", "list", "--config", "a/mimids.toml", cwd=directory).code == 0  # reading is harmless
        if command[0] != "serve":
            told = run_as(0, *command, "--config", "a/mimids.toml", cwd=directory, MIMIDS_ANY_USER="1")
            assert told.code == 0, told.err


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [*WRITING, ("user", "list"), ("status",), ("backup", "b")], ids=lambda each: each[0]
)
def test_another_user_is_told_who_may_run_a_command(command: tuple[str, ...]) -> None:
    with open_directory() as directory:
        config = provider(directory / "a")
        assert run("backup", "backup", "--config", "a/mimids.toml", cwd=directory).code == 0
        (directory / "backup").chmod(0o644)
        for file in (config.tls.private_key, directory / "a/ohttp.key"):
            file.chmod(0o644)
        refused = run_as(NOBODY, *command, "--config", "a/mimids.toml", cwd=directory)
        assert_told(refused, "belongs to root", "sudo -u root")


@needs_root
@pytest.mark.slow
def test_migrate_makes_no_directory_that_the_service_cannot_read() -> None:
    with of_nobody() as (directory, config):
        shutil.rmtree(config.data_dir)
        for command in ("migrate", "serve"):
            refused = run(command, "--config", "a/mimids.toml", cwd=directory)
            assert_told(refused, "does not exist", f"install -d -m 0700 -o nobody {config.data_dir}")
            assert not config.data_dir.exists()
        os.chown(config.tls.private_key, 0, 4)  # root's key, which a group may read: the server is in it
        config.tls.private_key.chmod(0o640)
        assert_told(run("migrate", "--config", "a/mimids.toml", cwd=directory), "does not exist", "-o USER")
        os.chown(config.tls.private_key, NOBODY, NOBODY)
        made = run_as(NOBODY, "migrate", "--config", "a/mimids.toml", cwd=directory)
        assert made.code == 0, made.err
        assert config.data_dir.stat().st_uid == NOBODY
        assert stat.S_IMODE(config.data_dir.stat().st_mode) == 0o700


@needs_root
@pytest.mark.slow
def test_one_file_of_another_user_is_named_before_anything_is_written() -> None:
    with of_nobody() as (directory, config):
        os.chown(config.data_dir / "lock", 0, 0)
        refused = run_as(NOBODY, "user", "add", "alice", "--config", "a/mimids.toml", cwd=directory)
        assert_told(refused, f"{config.data_dir / 'lock'} belongs to root", "chown -R nobody")
        checked = run_as(NOBODY, "check", "--no-peers", "--config", "a/mimids.toml", cwd=directory)
        assert "✗ files:" in checked.out
        assert f"chown nobody {config.data_dir / 'lock'}" in checked.out


@needs_root
@pytest.mark.slow
def test_check_looks_at_owners_and_modes() -> None:
    with of_nobody() as (directory, config):
        config.tls.private_key.chmod(0o600)
        os.chown(config.tls.private_key, 0, 0)
        config.data_dir.chmod(0o770)
        checked = run("check", "--no-peers", "--config", "a/mimids.toml", cwd=directory)
        assert checked.code == 1
        for line in (
            f"! data: {config.data_dir} belongs to nobody, and this check runs as root",
            f"✗ data: other users of this machine can write to {config.data_dir}",
            f"✗ files: the server runs as nobody, who cannot read {config.tls.private_key}",
        ):
            assert line in checked.out, checked.out
        config.data_dir.chmod(0o500)
        checked = run_as(NOBODY, "check", "--no-peers", "--config", "a/mimids.toml", cwd=directory)
        assert f"✗ data: cannot write to {config.data_dir}" in checked.out
        assert f"chmod u+rwX {config.data_dir}" in checked.out
        config.data_dir.chmod(0o700)
        os.chown(config.tls.private_key, NOBODY, NOBODY)
        checked = run_as(NOBODY, "check", "--no-peers", "--config", "a/mimids.toml", cwd=directory)
        assert checked.code == 0, checked.out
        assert "✓ data: nobody can write to" in checked.out


@contextmanager
def mounted(directory: Path, *options: str) -> Iterator[None]:
    """Mount a file system in memory there; skip the test where that is not possible."""
    made = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", directory], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this machine allows no mounts")
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


@needs_root
@pytest.mark.slow
def test_a_read_only_file_system_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with mounted(tmp_path / "a"):
        config = provider(tmp_path / "a")
        assert run("backup", "backup", "--config", "a/mimids.toml", cwd=tmp_path).code == 0
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "a"], check=True)
        for command in WRITING:
            refused = run(*command, "--config", "a/mimids.toml", cwd=tmp_path)
            assert_told(refused, "Read-only file system", "mount the file system writable")
        checked = run("check", "--no-peers", "--config", "a/mimids.toml", cwd=tmp_path)
        assert checked.code == 1
        assert f"✗ data: cannot write to {config.data_dir}" in checked.out
        assert run("user", "list", "--config", "a/mimids.toml", cwd=tmp_path).code == 0
