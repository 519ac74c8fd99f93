"""What contributors and CI rely on: make targets, workflows, hooks, the changelog; each says the same as the others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mimids
from tests.support.documents import HOUSE, make_targets

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = [path for path in HOUSE if path.parent.name == "workflows"]
PYTHONS = [
    f"python{line.rpartition(' ')[2]}" for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)
]

from_a_clone = pytest.mark.skipif(not HOUSE, reason="an sdist has no files for CI and contributors' tools")
with_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a user would, whatever the make that runs these tests was told."""
    passed_down = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHON", "PYTHONS", "VENV", "COVERAGE", "ARGS"}
    plain = {name: value for name, value in os.environ.items() if name not in passed_down}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=plain, capture_output=True, text=True, check=False)


@with_make
def test_a_named_python_works_in_an_environment_of_its_own() -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f".venv-{version}/bin/python -m pytest" in make("-n", "test", f"PYTHON={sys.executable}").stdout
    assert (
        "\n.venv-mine/bin/python -m pytest" in make("-n", "test", f"PYTHON={sys.executable}", "VENV=.venv-mine").stdout
    )


@with_make
def test_a_python_that_does_not_run_is_named() -> None:
    refused = make("-n", "test", "PYTHON=/nowhere/python")
    assert refused.returncode != 0
    assert "/nowhere/python does not run: name an installed Python" in refused.stderr


@with_make
def test_testing_on_no_python_at_all_fails() -> None:
    refused = make("test-all", "PYTHONS=/nowhere/python")
    assert refused.returncode != 0
    assert "/nowhere/python is not installed: skipped" in refused.stdout


@from_a_clone
def test_the_supported_pythons_are_the_same_everywhere() -> None:
    listed = " ".join(PYTHONS)
    assert f"PYTHONS ?= {listed}\n" in (ROOT / "Makefile").read_text()
    assert f"for python in {listed}; do" in (ROOT / ".ci/run").read_text()
    assert PROJECT["project"]["requires-python"] == PYTHONS[0].replace("python", ">=")


@from_a_clone
def test_ci_runs_what_a_contributor_runs() -> None:
    assert re.search(r"^HALVES=yes make check$", (ROOT / ".ci/run").read_text(), re.MULTILINE)


@from_a_clone
def test_both_workflows_call_the_same() -> None:
    assert len(WORKFLOWS) == 2
    for workflow in WORKFLOWS:
        text = workflow.read_text()
        assert "- run: .ci/run\n" in text
        assert "- run: make ${{ matrix.target }}\n" in text
        targets = re.findall(r"target: (\w+),", text) or re.findall(r"\w+", re.findall(r"target: \[(.*)\]", text)[0])
        assert targets == ["floors", "newest", "coverage"]
        assert set(targets) < make_targets()
        assert "schedule:" in text


@from_a_clone
@pytest.mark.parametrize("path", HOUSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_for_ci_names_an_address(path: Path) -> None:
    assert not re.search(r"://|\w\.(io|org|com|dev)\b", path.read_text())


@from_a_clone
def test_hooks_are_local_and_use_the_pinned_tools() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", text) == ["local"]
    entries = re.findall(r"entry: \.venv/bin/(\w+)", text)
    assert len(entries) == text.count("entry:")
    assert set(entries) <= set(re.findall(r"^([\w-]+)==", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE))


def test_the_readme_names_the_floor_of_coverage() -> None:
    floor = PROJECT["tool"]["coverage"]["report"]["fail_under"]
    found = re.search(r"cover ([\d.]+) % of the code.*fails\s+below ([\d.]+) %", (ROOT / "README.md").read_text(), re.S)
    assert found
    assert float(found[2]) == floor <= float(found[1])


def test_the_changelog_has_this_version() -> None:
    assert re.search(
        rf"^## {re.escape(mimids.__version__)} \(\d{{4}}-\d\d-\d\d\)$",
        (ROOT / "CHANGELOG.md").read_text(),
        re.MULTILINE,
    )


def test_a_release_moves_the_notes_into_the_changelog(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "changes").mkdir()
    shutil.copy(ROOT / "changes/template.md.jinja", tmp_path / "changes")
    (tmp_path / "changes/20.fix.md").write_text("`mimids x` no longer fails.\n")
    (tmp_path / "changes/21.security.md").write_text("Tokens expire.\n")
    build = [sys.executable, "-m", "towncrier", "build", "--yes", "--version", "9.9.9", "--date", "2031-05-01"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    before, after = (ROOT / "CHANGELOG.md").read_text(), (tmp_path / "CHANGELOG.md").read_text()
    head, _, releases = before.partition("\n\n## ")
    new = "## 9.9.9 (2031-05-01)\n\n### Security\n\n- Tokens expire.\n\n### Fixed\n\n- `mimids x` no longer fails.\n"
    assert [line for line in after.splitlines() if line] == [
        line for line in f"{head}\n\n{new}\n## {releases}".splitlines() if line
    ]
    assert [path.name for path in (tmp_path / "changes").iterdir()] == ["template.md.jinja"]
