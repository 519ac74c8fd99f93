from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimids.errors import Internal, InvalidMessage, every_error
from mimids.http.api import problems
from mimids.wire.codec import WireError
from tests.support.imports import MODULES

TESTS = Path(__file__).parents[2]


def test_an_unexpected_exception_becomes_internal_without_details() -> None:
    assert type(problems.classify(KeyError("secret"))) is Internal
    assert b"secret" not in problems.reply(problems.classify(KeyError("secret"))).body


def test_wire_errors_are_malformed_requests() -> None:
    assert (
        str(problems.classify(WireError("truncated", ("SendRequest", "message")))) == "SendRequest.message: truncated"
    )


@pytest.mark.parametrize(
    ("section", "travels"),
    [
        ("RFC 9420 section 12.2", True),
        ("draft-ietf-mimi-room-policy-03 section 8", True),
        ("semantics: public-group-state", False),
    ],
)
def test_a_section_of_our_own_documents_does_not_travel(section: str, travels: bool) -> None:
    error = InvalidMessage("why", rule="a-rule", section=section)
    members = json.loads(problems.document(error))
    assert members.get("section") == (section if travels else None)
    assert members["rule"] == "a-rule"
    assert error.members["section"] == section


def test_every_error_is_raised_somewhere_and_expected_by_a_test() -> None:
    raised, expected = set[str](), set[str]()
    for name, path in MODULES.items():
        if name != "mimids.errors":
            raised.update(_names(ast.parse(path.read_text(encoding="utf-8"))))
    for path in TESTS.rglob("test_*.py"):
        expected.update(_expected(ast.parse(path.read_text(encoding="utf-8"))))
    for error in every_error():
        assert error.__name__ in raised, f"no code raises {error.__name__}: remove it"
        names = {error.__name__, error.problem_type(), *([error.code] if "-" in error.code else [])}
        assert names & expected, f"no test expects {error.__name__}: write the test that provokes it"


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the names that code uses; a name in a tuple that is a constant of a module only lists it."""
    for child in ast.iter_child_nodes(node):
        listed = isinstance(node, ast.Module) and isinstance(child, ast.Assign | ast.AnnAssign)
        if isinstance(child, ast.Name):
            yield child.id
        elif not listed:
            yield from _names(child)


def _expected(node: ast.AST) -> Iterator[str]:
    """Yield names and texts of a test, except those that the test itself raises or sends as a double."""
    is_reply = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reply"
    if isinstance(node, ast.Raise) or is_reply:
        return
    if isinstance(node, ast.Name):
        yield node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from _expected(child)
