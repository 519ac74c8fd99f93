"""What `docs/architecture.md` shows of the code is what the code says."""

from __future__ import annotations

import re

import pytest

from docs.generate.architecture import written
from tests.support.documents import ROOT

DOCUMENT = ROOT / "docs/architecture.md"


def test_the_document_shows_the_jobs_and_the_decision_records() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == written(text), "run `python -m docs.generate`"


def test_the_test_above_can_fail() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    changed = text.replace("├─ sweeper", "├─ sleeper")
    assert written(changed) == written(text) != changed
    with pytest.raises(ValueError, match="jobs"):
        written("no markers")


def test_the_files_that_it_names_are_there() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    named = re.findall(r"`((?:wire|mls|ohttp|policy|store|ds|http|cli)/[\w/]*(?:\.py)?|\w+\.py)`", text)
    assert len(named) > 40
    package = ROOT / "mimids"
    for name in named:
        assert (package / name).exists() or list(package.rglob(name)), name
