"""docs/interop.md is printed from what the tests had MLS libraries do; a test that differs from it fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from docs.generate.interop import libraries
from tests.support import played
from tests.support.imports import ROOT

WITHOUT_PROVIDERS = {"tests/stacks/test_welcome_parts_ts_mls.py"}
TEST = "tests/e2e/test_core_crypto.py::test_members_talk_race_join_from_outside_and_remove"


def test_each_library_has_a_version_suites_and_tests_that_are_there() -> None:
    for library in libraries():
        assert re.fullmatch(r"\d+(\.\d+)+", library.version), library.name
        assert library.suites, library.name
        assert all((ROOT / path).is_file() for path in library.tests), library.name


def test_every_test_that_drives_a_library_is_in_the_table() -> None:
    """Those that are only parsed, such as recordings, do not note anything."""
    known = {test.partition("::")[0] for test in played.stored_tests()}
    drives = re.compile(r"\b(live_group|ts_mls|needs_mls)\b|\bnote\(")
    paths = [*(ROOT / "tests").glob("stacks/test_*.py"), *(ROOT / "tests").glob("e2e/test_*.py")]
    found = {str(path.relative_to(ROOT)) for path in paths if drives.search(path.read_text(encoding="utf-8"))}
    assert found - WITHOUT_PROVIDERS == known


def test_a_test_fails_that_does_something_else_than_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(played.WRITE, raising=False)
    (notes,) = played.stored_tests()[TEST].values()
    played.begin()
    played.note(played.CORE_CRYPTO, 1, *notes["words"])
    played.check(TEST)
    played.note(played.CORE_CRYPTO, 2)
    with pytest.raises(AssertionError, match=played.WRITE):
        played.check(TEST)
    with pytest.raises(AssertionError, match=played.WRITE):
        played.check("tests/e2e/test_new.py::test_something")
    played.begin()


def test_a_test_that_is_gone_is_named() -> None:
    played.check_collected([TEST, "tests/docs/test_interop.py::test_another"])
    with pytest.raises(pytest.UsageError, match="test_members_talk_race"):
        played.check_collected(["tests/e2e/test_core_crypto.py::test_renamed"])


def test_notes_are_stored_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "interop.json"
    file.write_text('{"test": {"ts-mls": {"suites": [2], "words": ["add"]}}}')
    monkeypatch.setattr(played, "STORED", file)
    monkeypatch.setenv(played.WRITE, "write")
    played.begin()
    played.note(played.TS_MLS, 1, "messages", "create")
    played.check("test")
    assert json.loads(file.read_text()) == {"test": {"ts-mls": {"suites": [1], "words": ["create", "messages"]}}}
    played.begin()
    played.check("test")
    assert json.loads(file.read_text()) == {}
