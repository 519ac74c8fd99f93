"""Commands run as another user of this machine: only root can do that, so the tests that do are skipped otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cli_runs import COMMAND_SECONDS, ENVIRONMENT, Ran

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def open_directory() -> Iterator[Path]:
    """Make a directory that every user can enter; those that pytest makes are closed to others."""
    with tempfile.TemporaryDirectory(prefix="mimids-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


# Without measuring coverage: the other user cannot write where the figures go.
_ENVIRONMENT = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("COVERAGE_")}
# The Python that runs the tests may belong to root, so everything is imported before the process becomes another user.
AS = """
import encodings.ascii, encodings.idna, encodings.latin_1, os, pkgutil, sys
import mimids.cli, mimids.cli.check, mimids.process, mimids.store.engine.driver
from mimids.cli.main import main
for package in (mimids.cli, mimids.cli.check):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        __import__(module.name)
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
sys.argv = ["mimids", *sys.argv[2:]]
{program}
"""


def run_as(user: int, *arguments: str | Path, cwd: Path, program: str = "main()", **environment: str) -> Ran:
    """Run `mimids ...`, or other code of Python, as a user, and wait for its end."""
    ran = subprocess.run(
        [sys.executable, "-c", AS.format(program=program), str(user), *arguments],
        cwd=cwd,
        env={**_ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)
