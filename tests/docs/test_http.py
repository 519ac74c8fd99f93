from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from docs.generate.http import every_endpoint, problems_of, written
from docs.generate.wire import structures
from mimids.config import parse
from mimids.ds.key_packages.stock import UPLOAD_PACKAGES
from mimids.errors import every_error
from mimids.http.api.device_handlers import device_limits
from mimids.http.api.endpoints import AnyEndpoint
from mimids.http.media_types import JSON

DOCS = Path(__file__).parent.parent.parent / "docs"
DOCUMENTS = {"http.md": ("endpoints", "problems"), "wire.md": ("structures",), "metrics.md": ("metrics",)}
ROWS = tuple(every_endpoint())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_reference_is_what_the_code_prints(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    assert all(f"<!-- {marker}: " in text for marker in DOCUMENTS[name])
    assert text == written(text), f"run `python -m docs.generate.http docs/{name}`"


def test_a_document_that_differs_is_corrected() -> None:
    text = (DOCS / "http.md").read_text(encoding="utf-8")
    assert written(text.replace("`peer-failed` | 502", "`peer-failed` | 503")) == text
    with pytest.raises(ValueError, match="endpoints"):
        written(text.replace("<!-- /endpoints -->", ""))


def test_structures_are_printed_in_the_notation_of_the_rfcs() -> None:
    assert """struct {
  PartitionKey next_partition_key;
  optional<MLSMessage> group_info;
  optional<WelcomeData> welcome_data;
} CommitData;
""" in structures()
    assert "  KeyPackageRef key_package_refs<V>;        // at most 4,096 items\n" in structures()
    assert "  select (SendRequest.message.content_type) {\n    case application: struct {};\n" in structures()
    assert "enum { ok(0), refused(1), exhausted(2), (255) } KeyPackageStatus;\n" in structures()
    printed = set(re.findall(r"^\} (\w+);", structures(), re.MULTILINE))
    named = {row.request_body.schema for row in ROWS if row.request_body} | {
        row.answer_body.schema for row in ROWS if row.answer_body
    }
    assert {name for name in named if re.fullmatch("[A-Z][A-Za-z]+(Request|Response)", name)} <= printed


def test_names_and_paths_of_endpoints_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert len({(row.listener, row.method, row.path) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_json_body_has_a_valid_example(row: AnyEndpoint) -> None:
    for body in (row.request_body, row.answer_body):
        if body is not None and body.media_type == JSON:
            assert isinstance(json.loads(body.example), dict)
    if row.request_body is not None and row.request_body.media_type == JSON:
        row.request_body.read(row.request_body.example.encode())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_problem_is_declared_once(row: AnyEndpoint) -> None:
    assert len(set(row.problems)) == len(row.problems)
    assert len(problems_of(row)) == len(set(problems_of(row)))


def test_me_names_the_limits_of_an_upload() -> None:
    limits = device_limits(parse({"provider": "a.example", "key_packages": {"device_packages": 7}}, DOCS))
    assert (limits["device_packages"], limits["upload_packages"]) == (7, UPLOAD_PACKAGES)
    assert {"low_stock_packages", "max_lifetime_days", "key_package_bytes"} <= set(limits)


def test_names_of_problems_are_unique() -> None:
    names = [kind.problem_type() for kind in every_error()]
    assert len(set(names)) == len(names)
