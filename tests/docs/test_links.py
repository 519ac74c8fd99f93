"""Links between documents lead to files and headings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.documents import DOCUMENTS, anchors, name_of, without_code

LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def broken_links(document: Path, text: str) -> list[str]:
    """Return the links of a document whose file or heading does not exist."""
    broken = []
    for target, anchor in LINK.findall(without_code(text)):
        path = document.parent / target if target else document
        content = text if path == document else path.read_text(encoding="utf-8") if path.suffix == ".md" else ""
        if not path.exists() or (anchor and anchor not in anchors(content)):
            broken.append(f"{target}#{anchor}" if anchor else target)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(document: Path) -> None:
    assert broken_links(document, document.read_text(encoding="utf-8")) == []


def test_the_test_above_can_fail() -> None:
    (wire,) = (document for document in DOCUMENTS if document.name == "wire.md")
    text = "# A heading\n[a](#a-heading) [b](#b) [c](http.md#listeners) [d](http.md#d) [e](e.toml)"
    assert broken_links(wire, text) == ["#b", "http.md#d", "e.toml"]


def test_an_anchor_is_made_of_the_words_of_its_heading() -> None:
    text = "# One, two\n## `mimids user add`\n## [Three](x.md) & more\n```text\n# no heading\n```\n## One, two\n"
    assert anchors(text) == {"one-two", "mimids-user-add", "three--more", "one-two-1"}
