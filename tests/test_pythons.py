"""The suite passes on every supported Python: what newer ones are stricter about is checked on all of them."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def sources() -> list[Path]:
    """List the Python files of this repository."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [path for name in listed.stdout.splitlines() if (path := ROOT / name).exists()]
    parts = ("mimids", "tests", "bench", "examples", "requirements")  # an unpacked sdist
    return [path for part in parts for path in (ROOT / part).rglob("*.py")]


def is_connect(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "sqlite3.connect"


def unclosed_connections(tree: ast.AST) -> Iterator[int]:
    """Yield the line of each SQLite connection that nothing closes.

    `with sqlite3.connect(...)` ends a transaction but leaves the connection open, and so does `connect(...).execute`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.withitem) and is_connect(node.context_expr):
            yield node.context_expr.lineno
        elif isinstance(node, ast.Attribute) and is_connect(node.value) and node.attr != "close":
            yield node.lineno


def test_no_sqlite_connection_is_left_open() -> None:
    """Python 3.13 warns about them, and warnings are errors here."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources()
        for line in unclosed_connections(ast.parse(path.read_text()))
    ]
    assert not found, "use `with closing(sqlite3.connect(...)) as connection`"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("with sqlite3.connect(path) as connection: pass", [1]),
        ("rows = sqlite3.connect(path).execute('SELECT 1')", [1]),
        ("with closing(sqlite3.connect(path)) as connection, connection: pass", []),
        ("sqlite3.connect(path).close()", []),
        ("connection = sqlite3.connect(path)", []),
    ],
)
def test_unclosed_connections_are_recognized(source: str, lines: list[int]) -> None:
    assert list(unclosed_connections(ast.parse(source))) == lines
