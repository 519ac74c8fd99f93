"""Print every part of the documents that comes from code: `python -m docs.generate`.

With `--check` nothing is written: the documents that would change are listed, and the exit code is 1 if there are any.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from docs.generate import architecture, commands, http, policy

DOCS: Final = Path(__file__).parent.parent

WRITERS: Final[Mapping[str, Callable[[str], str]]] = {
    "architecture.md": architecture.written,
    "commands.md": commands.written,
    "http.md": http.written,
    "metrics.md": http.written,
    "operator-socket.md": commands.written,
    "policy.md": policy.written,
    "wire.md": http.written,
}


def outdated() -> dict[Path, str]:
    """Return the documents that differ from what the code prints, each with its new text."""
    found = {}
    for name, written in WRITERS.items():
        path = DOCS / name
        text = path.read_text(encoding="utf-8")
        if (new := written(text)) != text:
            found[path] = new
    return found


def main(arguments: list[str]) -> int:
    """Write the outdated documents, or only list them; return the exit code."""
    only_check = arguments == ["--check"]
    if arguments and not only_check:
        print("usage: python -m docs.generate [--check]", file=sys.stderr)
        return 2
    documents = outdated()
    for path, text in documents.items():
        if not only_check:
            path.write_text(text, encoding="utf-8")
        print(f"{'outdated' if only_check else 'written'}: docs/{path.name}")
    return 1 if only_check and documents else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
