"""The TypeScript client: built once for a run of the tests, and driven by JSON lines (clients/typescript/test)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import attrs
import pytest

HOME = Path(__file__).parents[2] / "clients" / "typescript"
BUILD_SECONDS = 300


def node() -> str:
    """Return the path of node, with the client built; skip the test where node or the packages are missing."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    if not (HOME / "node_modules" / "typescript").is_dir():
        pytest.skip("the client's packages are not installed: npm ci in clients/typescript")
    _build(found)
    return found


@cache
def _build(found: str) -> None:
    """Compile the client into dist/, which no commit has."""
    compiler = HOME / "node_modules" / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        [found, str(compiler)], cwd=HOME, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout


def run_node(*arguments: str, seconds: float = BUILD_SECONDS, **environment: str) -> str:
    """Run node in the client's directory; return what it printed, and fail if it failed."""
    done = subprocess.run(
        [node(), *arguments],
        cwd=HOME,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@attrs.frozen
class Driver:
    """The client in a process of its own."""

    _questions: IO[str]
    _answers: IO[str]

    def ask(self, name: str, **members: object) -> dict[str, Any]:
        """Ask one thing of test/driver.mjs and return its answer."""
        self._questions.write(json.dumps({"ask": name, **members}) + "\n")
        self._questions.flush()
        answer: dict[str, Any] = json.loads(self._answers.readline())
        assert "error" not in answer, answer["error"]
        return answer


@contextmanager
def driver() -> Iterator[Driver]:
    """Run the client for the block."""
    with subprocess.Popen(
        [node(), "test/driver.mjs"], cwd=HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Driver(process.stdin, process.stdout)
