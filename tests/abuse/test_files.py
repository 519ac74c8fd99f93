"""The files of a provider are its own: nobody else reads them, and a link leads to no other file."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimids.cli.check.finding import Finding, State
from mimids.cli.check.here import here
from mimids.config import Config
from mimids.store import acknowledged
from mimids.store.engine import lock
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import connect, files_of
from tests.support.cli_runs import provider, run, serving


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def finding(config: Config) -> Finding:
    return next(each for each in here(config) if each.check == "files")


def test_every_file_is_private_whatever_the_directory_is(tmp_path: Path) -> None:
    config = provider(tmp_path)
    config.data_dir.chmod(0o777)
    file = ("--config", tmp_path / "mimids.toml")
    with serving(*file, cwd=tmp_path):
        assert run("user", "add", "alice", *file, cwd=tmp_path).code == 0
        files = [path for path in config.data_dir.iterdir() if path.is_file()]
        assert {*files_of(config.database), acknowledged.file_of(config.database)} <= set(files)
        assert {path.name: mode(path) for path in files} == {path.name: 0o600 for path in files}
    assert run("backup", tmp_path / "copy", *file, cwd=tmp_path).code == 0
    assert mode(tmp_path / "copy") == 0o600
    assert run("restore", "--replace", tmp_path / "copy", *file, cwd=tmp_path).code == 0
    for path in config.data_dir.iterdir():
        assert path.is_socket() or mode(path) == 0o600


def test_files_of_an_earlier_version_become_private(tmp_path: Path) -> None:
    path = tmp_path / "mimids.sqlite3"
    migrate(path)
    open_one = connect(path)
    open_one.execute("CREATE TABLE more (id INTEGER) STRICT")
    for file in files_of(path):
        file.chmod(0o644)
    connect(path).close()
    assert [mode(file) for file in files_of(path)] == [0o600] * 3
    open_one.close()


def test_check_names_files_that_others_can_read(tmp_path: Path) -> None:
    config = provider(tmp_path)
    assert finding(config).state is State.OK
    config.database.chmod(0o640)
    found = finding(config)
    assert found.state is State.WARNING
    assert str(config.database) in found.what
    assert found.fix == f"chmod 600 {config.database}"


def test_the_lock_follows_no_link(tmp_path: Path) -> None:
    precious, data = tmp_path / "precious", tmp_path / "data"
    precious.write_text("keep me")
    data.mkdir()
    (data / lock.LOCK_FILE).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"), lock.hold(data):
        pass
    with pytest.raises(OSError, match="symbolic link"):
        lock.holder(data)
    assert precious.read_text() == "keep me"


@pytest.mark.parametrize("command", ["serve", "migrate", "check"])
def test_a_linked_lock_is_refused_with_a_sentence(tmp_path: Path, command: str) -> None:
    config = provider(tmp_path)
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    (config.data_dir / lock.LOCK_FILE).unlink(missing_ok=True)
    (config.data_dir / lock.LOCK_FILE).symlink_to(precious)
    ran = run(command, "--config", tmp_path / "mimids.toml", cwd=tmp_path)
    assert ran.code == 1
    assert "symbolic link" in ran.err + ran.out
    assert "Traceback" not in ran.err
    assert precious.read_text() == "keep me"


def test_a_lock_that_is_no_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / lock.LOCK_FILE)
    script = (
        f"import pathlib; from mimids.store.engine import lock; lock.hold(pathlib.Path({str(tmp_path)!r})).__enter__()"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert "regular file" in ran.stderr
