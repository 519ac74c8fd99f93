"""The tree of jobs and the list of decision records in docs/architecture.md, printed from the code.

`python -m docs.generate.architecture docs/architecture.md` replaces the text between the markers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from docs.generate.markers import fill
from mimids.app import JOBS, Stage

RECORDS: Final = Path(__file__).parent.parent / "decisions"
_REPLACES: Final = re.compile(r"This replaces decision (\d+)\.")


def job_tree() -> str:
    """Return the nursery tree: each stage is nested in the stage before it."""
    return "\n".join(_job_tree()) + "\n"


def decision_list() -> str:
    """Return one line for each decision record, with a link."""
    return "\n".join(_decisions()) + "\n"


def written(text: str) -> str:
    """Return a document with its printed parts replaced; see `markers.fill`."""
    return fill(text, {"jobs": job_tree, "decisions": decision_list})


def _job_tree() -> Iterator[str]:
    yield "```text"
    yield "run: store opened, connections to other providers"
    for depth, stage in enumerate(Stage):
        margin = "   " * depth
        jobs = [job.name for job in JOBS if job.stage is stage]
        innermost = depth == len(Stage) - 1
        for name in jobs:
            yield f"{margin}{'└─' if innermost and name == jobs[-1] else '├─'} {name}"
        if not innermost:
            yield f"{margin}└─ once these have started"
    yield "```"


def _decisions() -> Iterator[str]:
    records = {path.name: path.read_text(encoding="utf-8") for path in sorted(RECORDS.glob("[0-9]*.md"))}
    replaced: dict[str, str] = {}
    for text in records.values():
        for old in _REPLACES.findall(text):
            replaced[old] = _number_and_title(text)[0]
    for name, text in records.items():
        number, title = _number_and_title(text)
        by = f" (replaced by {replaced[number]})" if number in replaced else ""
        yield f"- [{number}](decisions/{name}): {title}{by}"


def _number_and_title(record: str) -> tuple[str, str]:
    number, _, title = record.partition("\n")[0].removeprefix("# ").partition(". ")
    return number, title


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
