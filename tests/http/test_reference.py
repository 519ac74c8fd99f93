from __future__ import annotations

import json
from pathlib import Path

import pytest

from mimids.errors import every_error
from mimids.http.endpoints import JSON, Endpoint
from mimids.http.reference import every_endpoint, problems_of, written

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "http.md"
ROWS = tuple(every_endpoint())


def test_the_reference_is_what_the_code_prints() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == written(text), "run `python -m mimids.http.reference docs/http.md`"


def test_the_test_above_can_fail() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert written(text.replace("`peer-failed` | 502", "`peer-failed` | 503")) == text
    with pytest.raises(ValueError, match="endpoints"):
        written("no markers")


def test_names_and_places_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert len({(row.listener, row.method, row.path) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_json_body_has_an_example_that_is_one(row: Endpoint) -> None:
    for body in (row.request, row.answer):
        if body is not None and body.media_type == JSON:
            assert isinstance(json.loads(body.example), dict)
    if row.request is not None and row.request.media_type == JSON:
        row.request.read(row.request.example.encode())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_problem_is_declared_once(row: Endpoint) -> None:
    assert len(set(row.problems)) == len(row.problems)
    assert len(problems_of(row)) == len(set(problems_of(row)))


def test_names_of_problems_are_unique() -> None:
    names = [kind.problem_type() for kind in every_error()]
    assert len(set(names)) == len(names)
