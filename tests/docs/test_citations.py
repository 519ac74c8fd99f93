"""Citations of the contract, such as `(semantics: sequencing)`, name headings that exist, anywhere in the repository.

`(semantics: sequencing, policy)` names two headings of docs/semantics.md, and `(http: devices, architecture: tasks)`
one of each document. Other sources may stand beside them: `(semantics: ohttp, RFC 9458)`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import ROOT, anchors

CITED = {
    "semantics": "docs/semantics.md",
    "wire": "docs/wire.md",
    "http": "docs/http.md",
    "commands": "docs/commands.md",
    "architecture": "docs/architecture.md",
    "bench": "bench/README.md",
}
ANCHORS = {name: anchors((ROOT / path).read_text(encoding="utf-8")) for name, path in CITED.items()}
SUFFIXES = {"", ".css", ".html", ".js", ".json", ".md", ".mjs", ".py", ".sql", ".toml", ".ts", ".yaml", ".yml"}
VISIBLE = {".ci", ".forgejo", ".github"}
MADE_HERE = {"build", "dist", "htmlcov", "node_modules", "site", "__pycache__"}

_WRAP = re.compile(r"\n[ \t]*(?:#|--|//|\*)?[ \t]*")
_DOCUMENT = rf"(?:{'|'.join(CITED)})"
_CITATION = re.compile(rf"(?<![\w\])])\(([^()]*\b{_DOCUMENT}: [^()]*)\)|\"({_DOCUMENT}: [a-z-]+)\"")
_NAME = re.compile(r"[a-z]+(?:-[a-z]+)*")
_OUTDATED = {
    "the old name of the contract": re.compile("".join(("DES", "IGN"))),
    "a bare number of a section": re.compile(r"(?<![\w\])])\([3-7]\.\d{1,2}(?:, [3-7]\.\d{1,2})*\)"),
    "an appendix of the old contract": re.compile(r"\(appendix [A-Z]\)"),
}


def files() -> Iterator[Path]:
    for directory, names, found in os.walk(ROOT):
        names[:] = [n for n in names if n in VISIBLE or not (n.startswith(".") or n in MADE_HERE)]
        for name in found:
            path = Path(directory, name)
            if path.suffix in SUFFIXES and path != Path(__file__) and not name.startswith(".coverage"):
                yield path


def citations(text: str) -> Iterator[tuple[str, str]]:
    """Yield each cited document with the heading that is named."""
    for in_parentheses, quoted in _CITATION.findall(_WRAP.sub(" ", text)):
        document = ""
        for part in re.split(r"[,;] ", in_parentheses or quoted):
            before, colon, rest = part.rpartition(": ")
            if colon:
                document = before.rpartition(" ")[2]
                if document in CITED:
                    yield document, rest
            elif document in CITED and _NAME.fullmatch(part):
                yield document, part


def faults(text: str) -> list[str]:
    """Say what is wrong with the citations in a file."""
    found = [f"({name}: {anchor})" for name, anchor in citations(text) if anchor not in ANCHORS[name]]
    return found + [f"{what}: {hit}" for what, pattern in _OUTDATED.items() for hit in pattern.findall(text)]


def test_every_citation_names_a_heading_that_exists() -> None:
    wrong = {}
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if found := faults(text):
            wrong[path.relative_to(ROOT).as_posix()] = found
    assert wrong == {}


def test_the_contract_is_cited_in_every_layer() -> None:
    citing = {path.relative_to(ROOT).parts[:2] for path in files() if any(citations(path.read_text(errors="ignore")))}
    assert {("mimids", part) for part in ("ds", "http", "store", "wire", "client")} <= citing


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("# (semantics: sequencing)", 0),
        ("# (semantics: sequencing, partitions-and-forks): once", 0),
        ("# (commands: commands, architecture: tasks)", 0),
        ("# (semantics: ohttp, RFC 9458; docs/contacts.md)", 0),
        ("-- stays (wire:\n--   where-the-draft-is-loose)", 0),
        ('section = "semantics: policy"', 0),
        ("# (semantics: sequencing, partition)", 1),
        ("# stays (semantics:\n    # sequence)", 1),
        ("# (see http: device)", 1),
        ('section = "semantics: ban"', 1),
        ("# by DES" + "IGN 6.4", 1),
        ("# once only (6.4)", 1),
        ("# once only (6.4, 6.12)", 1),
        ("# members (appendix A)", 1),
        ("sleep(3.5); f(http: str)", 0),
        ("# RFC 9420 section 6.1 (0.4 of the floor)", 0),
    ],
)
def test_a_citation_is_told_from_other_text(text: str, count: int) -> None:
    assert len(faults(text)) == count
