"""The code in the documents runs, their data is valid, and the `make` targets that they name exist.

The blocks of a document are one session, run from top to bottom in an empty directory: `sh` as it stands, `python` in
an interpreter of its own. `toml` must be a valid configuration, `json` must be valid JSON, and other blocks are only
for reading. A block below `<!-- not run: REASON -->` is not run.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from contextlib import ExitStack, suppress
from pathlib import Path

import attrs
import pytest

from mimids.config import parse
from tests.support.documents import DOCUMENTS, HOUSE, ROOT, make_targets, name_of

# What hosts of repositories and tools of contributors read; an sdist has none of it.
SESSION_SECONDS = 180


@attrs.frozen
class Block:
    """A fenced block: its line, language and text, and the reason why it is not run, if there is one."""

    line: int
    language: str
    text: str
    not_run: str | None


def blocks(markdown: str) -> list[Block]:
    fence = r"(?:<!-- not run: ([^\n]+?) -->\n+)?^```([^\n]*)\n(.*?)^```$"
    return [
        Block(markdown.count("\n", 0, found.start(2)) + 1, found[2], found[3], found[1])
        for found in re.finditer(fence, markdown, re.MULTILINE | re.DOTALL)
    ]


def session(found: list[Block]) -> str:
    """Return the shell script that runs a document's blocks in order."""
    lines = ["set -eu -o pipefail"]
    for block in found:
        if block.not_run is None and block.language == "sh":
            lines += [f"echo '--- line {block.line}'", block.text]
        elif block.not_run is None and block.language == "python":
            lines += [f"echo '--- line {block.line}'", f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK"]
    return "\n".join(lines) + "\n"


def with_free_ports(script: str) -> str:
    """Replace the loopback ports of a document by free ones, so that sessions can run in parallel."""
    port = r"(?<=127\.0\.0\.1:)[1-9]\d*"  # 0 is free already
    named = sorted(set(re.findall(port, script)))
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in named]
        free = {name: str(probe.getsockname()[1]) for name, probe in zip(named, probes, strict=True)}
    return re.sub(port, lambda found: free[found[0]], script)


def play(script: str, directory: Path) -> tuple[int, str]:
    """Run a session and kill its remaining processes; return its exit status and its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (directory / ".output").open("w+") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=directory,
            env=os.environ | {"PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = shell.wait(SESSION_SECONDS)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        output.seek(0)
        return status, output.read()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_the_code_in_a_document_runs(document: Path, tmp_path: Path) -> None:
    script = session(blocks(document.read_text()))
    if "--- line" not in script:
        return
    status, output = play(with_free_ports(script), tmp_path)
    assert status == 0, output


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_the_data_in_a_document_is_valid(document: Path) -> None:
    for block in blocks(document.read_text()):
        assert block.language in {"sh", "python", "toml", "json", "text", "sql", "nginx", "caddy", ""}, block
        if block.not_run is None and block.language == "toml":
            parse({"provider": "a.example"} | tomllib.loads(block.text), ROOT)
        elif block.not_run is None and block.language == "json":
            json.loads(block.text)


def test_commands_to_make_exist() -> None:
    for document in [*DOCUMENTS, *HOUSE]:
        for target in re.findall(r"(?:^|`|run: )make ([a-z-]+)\b", document.read_text(), re.MULTILINE):
            assert target in make_targets(), f"{name_of(document)}: make {target}"


def test_make_lists_every_target() -> None:
    help_ = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+) ", help_, re.MULTILINE)) == make_targets()


def test_notes_for_the_changelog_are_for_operators() -> None:
    notes = [path for path in (ROOT / "changes").iterdir() if path.name not in {"README.md", "template.md.jinja"}]
    for note in notes:
        assert re.fullmatch(r"\d+\.(feature|fix|security|removal)(\.\d+)?\.md", note.name)
        assert re.fullmatch(r"[A-Z`].*\.", note.read_text().strip()), note.name


def test_decisions_have_a_number_each_and_say_what_they_must() -> None:
    records = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert len({path.name[:4] for path in records}) == len(records) > 0
    for record in records:
        assert re.findall(r"^## (.*)$", record.read_text(), re.MULTILINE) == [
            "Context",
            "Choice",
            "Price",
            "What would change our mind",
        ], record.name


SAMPLE = """\
```sh
echo one > state
```
<!-- not run: it would fail -->
```sh
false
```
```python
from pathlib import Path
print(Path("state").read_text() + "two")
```
"""


def test_blocks_share_a_session_and_marked_blocks_are_not_run(tmp_path: Path) -> None:
    assert [block.language for block in blocks(SAMPLE)] == ["sh", "sh", "python"]
    status, output = play(session(blocks(SAMPLE)), tmp_path)
    assert (status, output.splitlines()) == (0, ["--- line 1", "--- line 8", "one", "two"])


def test_a_port_is_replaced_by_the_same_one_everywhere() -> None:
    first, second, again = re.findall(r"127\.0\.0\.1:(\d+)", with_free_ports("127.0.0.1:1 127.0.0.1:2 127.0.0.1:1"))
    assert first == again != second
    assert "1" not in {first, second}
    assert with_free_ports("127.0.0.1:0") == "127.0.0.1:0"


def test_a_block_that_fails_ends_the_session(tmp_path: Path) -> None:
    status, output = play(session(blocks("```python\nraise SystemExit(3)\n```\n```sh\necho reached\n```\n")), tmp_path)
    assert status == 3
    assert "reached" not in output


def test_processes_of_a_session_end_with_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    reader = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    assert play("exec 9> held\nsleep 60 &\n", tmp_path) == (0, "")
    os.set_blocking(reader, True)
    started = time.monotonic()
    assert os.read(reader, 1) == b""  # waits until nobody holds the other end
    assert time.monotonic() - started < 30
    os.close(reader)
