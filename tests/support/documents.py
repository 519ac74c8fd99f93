"""The Markdown documents of the repository, and the anchors that links and citations may name."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("examples/*.md"),
        *ROOT.glob("examples/*/*.md"),
        *ROOT.glob("bench/*.md"),
        *ROOT.glob("fuzz/*.md"),
    ]
)
# Files for CI and contributors, which an sdist does not have.
HOUSE = sorted(
    path
    for pattern in (".ci/*", ".forgejo/**/*", ".github/**/*", ".pre-commit-config.yaml")
    for path in ROOT.glob(pattern)
    if path.is_file()
)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def name_of(path: Path) -> str:
    """Return a path as seen from the root of the repository: the name of a test's parameter."""
    return path.relative_to(ROOT).as_posix()


def without_code(markdown: str) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", markdown, flags=re.MULTILINE | re.DOTALL)


def anchors(markdown: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub, Forgejo and our site make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(markdown), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(anchor)
    return found
