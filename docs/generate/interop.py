"""The table of docs/interop.md: MLS libraries, and what they did in the tests, as recorded in docs/interop.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from docs.generate.markers import fill
from tests.support.played import (
    BINDINGS,
    CORE_CRYPTO,
    MLS_RS,
    OPENMLS,
    ORDER,
    SETTINGS,
    TS_MLS,
    stored_tests,
    versions,
)

LANGUAGES: Final = {
    OPENMLS: "Rust",
    MLS_RS: "Rust",
    BINDINGS: "Python",
    TS_MLS: "TypeScript",
    CORE_CRYPTO: "TypeScript, WebAssembly",
}
_LAST_OF_RFC9420: Final = 7  # cipher suites with larger numbers are post-quantum ones


@attrs.frozen
class Library:
    """An MLS library, and what it did in all tests together."""

    name: str
    version: str
    suites: list[int]
    does: list[str]
    settings: list[str]
    tests: list[str]  # paths


def libraries() -> Iterator[Library]:
    """Yield the libraries; raise `KeyError` for one that is not in LANGUAGES, or whose version is not pinned."""
    tests = stored_tests()
    versions_of = versions()
    for name in sorted({name for notes in tests.values() for name in notes}, key=list(LANGUAGES).index):
        mine = {test.partition("::")[0]: notes[name] for test, notes in tests.items() if name in notes}
        every = [notes[name] for notes in tests.values() if name in notes]
        words = sorted({word for each in every for word in each["words"]}, key=ORDER.index)
        yield Library(
            name,
            versions_of[name],
            sorted({suite for each in every for suite in each["suites"]}),
            [word for word in words if ORDER.index(word) < SETTINGS],
            [word for word in words if ORDER.index(word) >= SETTINGS],
            sorted(mine),
        )


def table() -> str:
    """Return the table of libraries."""
    lines = ["| library | language | version | cipher suites | what it did | settings | tests |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for each in libraries():
        tests = ", ".join(f"[{Path(path).name}](../{path})" for path in each.tests)
        does, settings = ", ".join(each.does), ", ".join(each.settings)
        row = (each.name, LANGUAGES[each.name], each.version, _suites(each.suites), does, settings, tests)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _suites(suites: list[int]) -> str:
    classic = [str(suite) for suite in suites if suite <= _LAST_OF_RFC9420]
    post_quantum = [f"0x{suite:04X}" for suite in suites if suite > _LAST_OF_RFC9420]
    if not post_quantum:
        return ", ".join(classic)
    return f"{', '.join(classic)}; [post-quantum](mls.md#post-quantum-suites): {', '.join(post_quantum)}"


def written(text: str) -> str:
    """Return a document with its printed parts replaced; see `markers.fill`."""
    return fill(text, {"libraries": table})
