"""Break each rule of the table once, with wrong content that is signed correctly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mimids.mls.rules.verdict import RULES, rules_table
from tests.mls.rules import (
    broken_framing,
    broken_group_infos,
    broken_leaf_nodes,
    broken_paths,
    broken_proposal_lists,
    broken_proposals,
)
from tests.support.broken_rules import CASES, Case

# Importing a module of cases adds its cases to CASES.
CASE_MODULES = (
    broken_framing,
    broken_leaf_nodes,
    broken_proposals,
    broken_proposal_lists,
    broken_paths,
    broken_group_infos,
)


@pytest.mark.parametrize(("rule", "case"), CASES, ids=[f"{name}:{case.__name__}" for name, case in CASES])
def test_a_broken_rule_is_refused_by_its_name(rule: str, case: Case) -> None:
    found = case()
    assert found is not None, "it was not refused"
    assert found.rule.name == rule, str(found)
    assert found.section
    assert found.detail


def test_every_rule_of_the_table_is_broken_once() -> None:
    assert {name for name, _ in CASES} == set(RULES)


def test_sections_are_of_documents() -> None:
    for rule in RULES.values():
        assert rule.section.startswith(("RFC 9420 section ", "draft-ietf-mls-extensions", "semantics: ")), rule


def test_each_rule_was_compared_with_what_released_stacks_send() -> None:
    document = (Path(__file__).parents[3] / "docs" / "mls.md").read_text()
    table = document.partition("## Released stacks")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| .+ \| .+ \| .+ \|$", table, re.MULTILINE)
    assert sorted(rows) == sorted(RULES)


def test_the_document_has_the_table_as_the_code_prints_it() -> None:
    assert rules_table() in (Path(__file__).parents[3] / "docs" / "mls.md").read_text()
