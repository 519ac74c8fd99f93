"""Print every part of the documents that comes from code: `python -m docs.generate`.

With `--check` nothing is written: the documents that would change are listed, and the exit code is 1 if there are any.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from docs.generate import architecture, commands, http, interop, octets, ohttp, openapi, policy, privacy, typescript

DOCS: Final = Path(__file__).parent.parent


def _printed(made: Callable[[], str], _: str) -> str:
    return made()


WRITERS: Final[Mapping[str, Callable[[str], str]]] = {
    "architecture.md": architecture.written,
    "commands.md": commands.written,
    "http.md": http.written,
    "interop.md": interop.written,
    "metrics.md": http.written,
    "octets.md": octets.written,
    "ohttp-example.json": lambda _: ohttp.as_json(),
    "ohttp.md": ohttp.written,
    "openapi-client.json": lambda _: openapi.client(),
    "openapi-operator.json": lambda _: openapi.operator(),
    "operator-socket.md": commands.written,
    "policy.md": policy.written,
    "privacy.md": privacy.written,
    "wire.md": http.written,
    **{f"../clients/typescript/src/{name}": partial(_printed, made) for name, made in typescript.PRINTED.items()},
}


def outdated() -> dict[Path, str]:
    """Return the documents that differ from what the code prints, each with its new text."""
    found = {}
    for name, written in WRITERS.items():
        path = DOCS / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
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
        print(f"{'outdated' if only_check else 'written'}: {path.resolve().relative_to(DOCS.parent)}")
    return 1 if only_check and documents else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
