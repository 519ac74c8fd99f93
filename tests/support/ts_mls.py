"""MLS libraries in node, ts-mls and core-crypto: the programs of tests/support/node, which need `npm ci` there."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import attrs
import pytest

HOME = Path(__file__).parent / "node"


def command(program: str, *arguments: str) -> list[str]:
    """Return the command that runs a program in HOME; skip the test where node or the packages are missing."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not all((HOME / "node_modules" / each).is_dir() for each in ("ts-mls", "@wireapp/core-crypto")):
        pytest.skip("MLS libraries for node are not installed: npm ci in tests/support/node")
    return [node, program, *arguments]


@attrs.frozen
class Program:
    """A running program that reads and prints lines of JSON; octets are in hex."""

    _questions: IO[str]
    _answers: IO[str]

    def ask(self, **members: Any) -> dict[str, Any]:
        """Write one line, and return the next that it prints."""
        self._questions.write(json.dumps(members) + "\n")
        self._questions.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """Return the next line that it prints."""
        answer: dict[str, Any] = json.loads(self._answers.readline() or "null")
        assert answer is not None, "the program has ended"
        return answer


@contextmanager
def running(program: str, *arguments: str) -> Iterator[Program]:
    """Run a program for the block."""
    with subprocess.Popen(
        command(program, *arguments), cwd=HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Program(process.stdin, process.stdout)
        finally:
            process.kill()
