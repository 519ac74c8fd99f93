"""What `docs/architecture.md` shows of the code is what the code says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimids.app import JOBS, Stage

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs/architecture.md"


def tree() -> Iterator[str]:
    """Yield the lines of the nursery tree: each stage lies within the one before it."""
    yield "```text"
    yield "run: store opened, connections to other providers"
    for depth, stage in enumerate(Stage):
        margin = "   " * depth
        jobs = [job.name for job in JOBS if job.stage is stage]
        innermost = depth == len(Stage) - 1
        for name in jobs:
            yield f"{margin}{'└─' if innermost and name == jobs[-1] else '├─'} {name}"
        if not innermost:
            yield f"{margin}└─ once these can be relied on"
    yield "```"


def decisions() -> Iterator[str]:
    """Yield a line for each record."""
    for record in sorted((ROOT / "docs/decisions").glob("[0-9]*.md")):
        number, _, title = record.read_text().partition("\n")[0].removeprefix("# ").partition(". ")
        yield f"- [{number}](decisions/{record.name}): {title}"


PRINTED = {"jobs": tree, "decisions": decisions}


def written(text: str) -> str:
    """Return the document with what is printed put in anew; raise `ValueError` where it has no place for it."""
    for name, lines in PRINTED.items():
        block = re.compile(rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not block.search(text):
            raise ValueError(f"no place for {name}")
        body = "\n".join(lines())
        text = block.sub(lambda found, body=body: f"{found[1]}\n{body}\n\n{found[2]}", text)  # type: ignore[misc]
    return text


def test_the_document_shows_the_tree_and_the_records_that_there_are() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == written(text), "run `python -m tests.test_architecture docs/architecture.md`"


def test_the_test_above_can_fail() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert (
        written(text.replace("├─ sweeper", "├─ sleeper")) == written(text) != text.replace("├─ sweeper", "├─ sleeper")
    )
    with pytest.raises(ValueError, match="jobs"):
        written("no markers")


def test_the_files_that_it_names_are_there() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    named = re.findall(r"`((?:wire|mls|ohttp|policy|store|ds|http|cli)/[\w/]*(?:\.py)?|\w+\.py)`", text)
    assert len(named) > 40
    package = ROOT / "mimids"
    for name in named:
        assert (package / name).exists() or list(package.rglob(name)), name


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
