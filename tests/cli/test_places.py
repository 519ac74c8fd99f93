"""Which configuration a command uses, and how a program tells a user to start it again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mimids.cli.main import main
from tests.support.cli_runs import ENVIRONMENT, ROOT, provider, serving


def invoke(*arguments: str | Path, named: Path | None = None) -> Result:
    environment = {"MIMIDS_CONFIG": None if named is None else str(named)}
    return CliRunner().invoke(main, [str(each) for each in arguments], env=environment)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    provider(tmp_path / "one", "one.example")
    return tmp_path / "one/mimids.toml"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    provider(tmp_path / "other", "other.example")
    return tmp_path / "other/mimids.toml"


def test_the_configuration_is_named_before_or_after_the_command(one: Path, other: Path) -> None:
    named: list[tuple[tuple[str | Path, ...], str | None]] = [
        (("user", "add", "alice", "--config", one), "one"),
        (("user", "--config", one, "add", "bob"), "one"),
        (("--config", one, "user", "add", "carol"), "one"),
        (("--config", other, "user", "--config", one, "add", "dave"), "one"),
        (("--config", other, "user", "add", "erin", "--config", one), "one"),
        (("--config", other, "check", "--no-peers"), None),
    ]
    for arguments, of in named:
        made = invoke(*arguments, named=other)
        assert made.exit_code == 0, made.stderr
        assert of is None or f"mimi://{of}.example/" in made.stdout
    users = invoke("user", "list", "--config", one).stdout
    assert all(name in users for name in ("alice", "bob", "carol", "dave", "erin"))
    assert invoke("--config", one, "user", "list", named=other).stdout == users


def test_the_environment_names_the_configuration_and_help_and_errors_say_so(one: Path, tmp_path: Path) -> None:
    assert invoke("user", "add", "alice", named=one).exit_code == 0
    for command in (("user", "list"), ("serve",), ("check",)):
        assert "MIMIDS_CONFIG" in invoke(*command, "--help").stdout
    refused = invoke("user", "list", named=tmp_path / "none.toml")
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[0] == "mimids: the configuration is not valid (MIMIDS_CONFIG names it)"
    assert "MIMIDS_CONFIG" not in invoke("--config", tmp_path / "none.toml", "user", "list", named=one).stderr


def test_without_a_configuration_the_error_names_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = invoke("user", "list")
    assert refused.exit_code == 1
    for place in ("mimids.toml", "--config FILE", "MIMIDS_CONFIG", "mimids init", "mimids serve --dev"):
        assert place in refused.stderr


def test_a_command_without_configuration_takes_none_before_it_either(one: Path) -> None:
    refused = invoke("--config", one, "completion", "bash")
    assert refused.exit_code == 2
    assert "`mimids completion` takes no --config" in refused.stderr


def _script(directory: Path, name: str) -> Path:
    """Make a program of that name which starts mimids, as an installer does."""
    directory.mkdir()
    script = directory / name
    script.write_text(f"#!{sys.executable}\nfrom mimids.cli import main\nmain()\n")
    script.chmod(0o755)
    return script


def _suggested(lines: Sequence[str]) -> list[str]:
    """Return the commands that were printed for another terminal, without those of other programs."""
    start = next(number for number, line in enumerate(lines) if "another terminal" in line)
    return [line.strip() for line in lines[start + 1 :] if not line.strip().startswith("curl")]


@pytest.mark.slow
@pytest.mark.parametrize("on_path", [False, True])
def test_the_commands_that_a_development_server_prints_work_as_typed(tmp_path: Path, on_path: bool) -> None:
    script = _script(tmp_path / "it's a bin", "mimids")
    place = tmp_path / "a place"
    place.mkdir()
    path = f"{script.parent}:/usr/bin:/bin" if on_path else "/usr/bin:/bin"
    started = "mimids" if on_path else os.path.relpath(script, place)
    with serving("--dev", cwd=place, program=[started], environment={"PATH": path}) as (process, said):
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line.rstrip())
            if line.strip().startswith("curl"):
                break
        typed = _suggested(said)
        assert typed[0] == f"cd {shlex.quote(str(place))}"
        assert typed[1].startswith("mimids user add") is on_path
        ran = subprocess.run(
            ["bash", "-e", "-c", "\n".join(typed)],
            cwd="/",
            env={"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert "mimi://localhost/u/alice" in ran.stdout


def test_init_prints_how_it_was_started(tmp_path: Path) -> None:
    made = subprocess.run(
        [_script(tmp_path / "bin", "mimids"), "init", "a b", "--provider", "a.example"],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"  {tmp_path / 'bin/mimids'} check --config 'a b/mimids.toml'" in made.stdout.splitlines()
