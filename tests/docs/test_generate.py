"""`python -m docs.generate` prints what comes from code, and `mkdocs build --strict` makes a site of the documents."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate.__main__ import DOCS, WRITERS, main, outdated
from tests.support.documents import ROOT


def test_printing_changes_nothing() -> None:
    assert [path.name for path in outdated()] == [], "run `python -m docs.generate`"
    assert main(["--check"]) == 0


def test_every_document_with_markers_is_printed() -> None:
    marked = {
        path.name for path in DOCS.glob("*.md") if re.search(r"^<!-- [a-z-]+: printed by ", path.read_text(), re.M)
    }
    assert marked == {name for name in WRITERS if name.endswith(".md")}


def test_a_document_that_is_outdated_is_named_and_left_alone_by_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(WRITERS, "policy.md", lambda text: text + "\nmore\n")
    before = (DOCS / "policy.md").read_text()
    assert main(["--check"]) == 1
    assert capsys.readouterr().out == "outdated: docs/policy.md\n"
    assert (DOCS / "policy.md").read_text() == before
    assert main(["everything"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_is_built_without_warnings_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert 'src="http' not in page.read_text(encoding="utf-8")
