"""examples/plain_client.py, a client that was written from the documents, at two real providers."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from mimids.testing import Session, federation
from tests.support.plain_client import EXAMPLES, PROGRAM
from tests.vectors import path

CONFIG = {"key_packages": {"max_lifetime_days": 3660}}


def test_a_client_written_from_the_documents_works(mimids_session: Session, tmp_path: Path) -> None:
    with federation("a.example", "b.example", config=CONFIG, session=mimids_session) as (a, b):
        alice, bob = a.add_device("alice", "1"), b.add_device("bob", "1")
        card = tmp_path / "bob.json"
        card.write_text(json.dumps(b.command("contact", user="bob")))
        arguments: list[str | Path] = [
            "--ca",
            a.ca_file,
            "--card",
            card,
            "--recording",
            path("conversations/private.jsonl"),
        ]
        devices = ["--alice", alice.url, alice.token, "--bob", bob.url, bob.token]
        ran = subprocess.run(
            [sys.executable, PROGRAM, *arguments, *devices], capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "Alice has what Bob wrote" in ran.stdout
        assert "u/bob" not in a.log  # her provider does not learn whose KeyPackage she fetched


def test_it_imports_the_standard_library_and_cryptography_only() -> None:
    found = set()
    for path_ in EXAMPLES.glob("plain_*.py"):
        for node in ast.walk(ast.parse(path_.read_text())):
            if isinstance(node, ast.Import):
                found |= {each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module))
    packages = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    assert packages == {"cryptography", "plain_octets"}
