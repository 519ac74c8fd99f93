"""What MLS libraries do in the tests that play them through live providers; docs/interop.md is printed from it.

Helpers that drive a library note what it does. At the end of each test its notes must be those of docs/interop.json.
With MIMIDS_PLAYED=write they are stored there instead.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.imports import ROOT

STORED: Final = ROOT / "docs" / "interop.json"
WRITE: Final = "MIMIDS_PLAYED"  # set to `write`, it stores the notes
ORDER: Final = (
    "create", "add", "update", "remove", "leave", "external join", "external proposal", "PSK", "application data",
    "messages", "racing commits", "Remove by a provider", "public handshakes", "private handshakes",
    "tree in GroupInfo and Welcome", "tree apart", "no GroupInfo", "linear group", "forking group",
)  # fmt: skip
SETTINGS: Final = ORDER.index("public handshakes")  # from here on they are settings
OPENMLS: Final = "OpenMLS"
MLS_RS: Final = "mls-rs"
BINDINGS: Final = "mls-rs by agentvault-mls-rs-uniffi"
TS_MLS: Final = "ts-mls"
CORE_CRYPTO: Final = "core-crypto"

Notes = dict[str, dict[str, list[Any]]]  # by library: "suites", and "words" of ORDER

_noted: dict[str, tuple[set[int], set[str]]] = {}


def note(library: str, suite: int, *words: str) -> None:
    """Note that a library does something in the test that runs, in a group of a cipher suite."""
    unknown = set(words) - set(ORDER)
    assert not unknown, unknown
    suites, known = _noted.setdefault(library, (set(), set()))
    suites.add(suite)
    known.update(words)


def begin() -> None:
    """Forget what an earlier test noted."""
    _noted.clear()


def check(test: str) -> None:
    """Compare what a test noted with what is stored of it, or store it; `test` is pytest's id of the test."""
    notes = _encoded()
    if os.environ.get(WRITE) == "write":
        _store(test, notes)
        return
    stored = json.loads(STORED.read_text(encoding="utf-8")).get(test, {})
    assert notes == stored, f"run this test with {WRITE}=write, then `python -m docs.generate`"


def check_collected(tests: Iterable[str]) -> None:
    """Raise `pytest.UsageError` if docs/interop.json has a test that is not in its file; `tests` are of whole files."""
    found = set(tests)
    files = {test.partition("::")[0] for test in found}
    gone = [each for each in stored_tests() if each.partition("::")[0] in files and each not in found]
    if gone:
        raise pytest.UsageError(f"docs/interop.json has tests that are not there: {', '.join(gone)}")


def stored_tests() -> Mapping[str, Notes]:
    """Return the notes by test."""
    stored: dict[str, Notes] = json.loads(STORED.read_text(encoding="utf-8"))
    return stored


def versions() -> Mapping[str, str]:
    """Return the version of each library, as the lock files and pins have it that the tests install from."""
    crates = tomllib.loads((ROOT / "tests/stacks/Cargo.pins").read_text(encoding="utf-8"))["package"]
    of_crate = {each["name"]: each["version"] for each in crates}
    bindings = re.search(r"agentvault-mls-rs-uniffi==([\d.]+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert bindings is not None
    locked = {_npm(directory, "ts-mls") for directory in ("examples/chat", "tests/support/node")}
    (ts_mls,) = locked  # both have the same
    return {
        OPENMLS: of_crate["openmls"],
        MLS_RS: of_crate["mls-rs"],
        BINDINGS: bindings[1],
        TS_MLS: ts_mls,
        CORE_CRYPTO: _npm("tests/support/node", "@wireapp/core-crypto"),
    }


def _npm(directory: str, package: str) -> str:
    lock = json.loads(Path(ROOT, directory, "package-lock.json").read_text(encoding="utf-8"))
    version: str = lock["packages"][f"node_modules/{package}"]["version"]
    return version


def _encoded() -> Notes:
    return {
        library: {"suites": sorted(suites), "words": sorted(words, key=ORDER.index)}
        for library, (suites, words) in sorted(_noted.items())
    }


def _store(test: str, notes: Notes) -> None:
    with STORED.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        stored: dict[str, Notes] = json.load(file)
        stored.pop(test, None)
        if notes:
            stored[test] = notes
        lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(stored.items()))
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        file.seek(0)
        file.truncate()
        file.write(text)
