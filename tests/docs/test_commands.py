"""The documents of commands are what the code prints, and completion completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from docs.generate.commands import written
from mimids.cli.main import main
from mimids.ds.commands import COMMANDS
from tests.support.cli_runs import ENVIRONMENT, ROOT

DOCUMENTS = [ROOT / "docs" / name for name in ("commands.md", "operator-socket.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_reference_is_what_the_code_prints(document: Path) -> None:
    text = document.read_text()
    assert text == written(text), f"run `python -m docs.generate.commands docs/{document.name}`"
    for command in COMMANDS:
        assert command.path in text or f"mimids {command.name}" in text


def test_the_test_above_can_fail() -> None:
    text = DOCUMENTS[0].read_text()
    assert written(text.replace("mimids user add", "mimids user remove", 1)) == text
    with pytest.raises(ValueError, match="pair"):
        written("<!-- commands: -->\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell: str) -> None:
    printed = CliRunner().invoke(main, ["completion", shell])
    assert printed.exit_code == 0
    assert "_MIMIDS_COMPLETE" in printed.stdout


def test_what_is_begun_is_completed(tmp_path: Path) -> None:
    asked = {"_MIMIDS_COMPLETE": "bash_complete", "COMP_WORDS": "mimids token re", "COMP_CWORD": "2"}
    program = "from mimids.cli import main; main(prog_name='mimids')"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT | asked,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout.split() == ["plain,revoke"], ran.stderr
