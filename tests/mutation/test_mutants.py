"""What is mutated, how a mutant gets into a process, and that the tests named for each module exist."""

from __future__ import annotations

import ast
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from tests.mutation.mutants import mutants_of
from tests.mutation.swapping import swap
from tests.mutation.targets import TARGETS
from tests.support.imports import ROOT

SOURCE = '''\
LIMIT = 3


def take(self, items: list[int], *, at_most: int = LIMIT) -> int:
    """Take items."""
    if len(items) > at_most and not self.open:
        raise TooMany("items", len(items))
    for each in items:
        if each is None:
            continue
        self.taken += each * 2
        log.info("taken")
    self.notify()
    return 1 if 0 < self.taken <= LIMIT else 0
'''


def test_each_place_that_may_be_wrong_is_changed_once() -> None:
    assert [mutant.description.partition("  ->  ")[::2] for mutant in mutants_of(SOURCE)] == [
        ("len(items) > at_most and (not self.open)", "(len(items) > at_most or not self.open)"),
        ("len(items) > at_most", "(len(items) >= at_most)"),
        ("not self.open", "(self.open)"),
        ("raise TooMany('items', len(items))", "pass"),
        ("each is None", "(each is not None)"),
        ("continue", "break"),
        ("self.taken += each * 2", "pass"),
        ("each * 2", "(each // 2)"),
        ("2", "(3)"),
        ("self.notify()", "pass"),
        ("1 if 0 < self.taken <= LIMIT else 0", "(0 if 0 < self.taken <= LIMIT else 1)"),
        ("0 < self.taken <= LIMIT", "(0 <= self.taken <= LIMIT)"),
        ("0 < self.taken <= LIMIT", "(0 < self.taken < LIMIT)"),
        ("0", "(1)"),
        ("1", "(2)"),
        ("0", "(1)"),
    ]


@pytest.mark.parametrize("module", TARGETS)
def test_every_module_that_is_mutated_has_mutants_and_tests(module: str) -> None:
    source = (ROOT / "mimids" / module).read_text(encoding="utf-8")
    mutants = mutants_of(source)
    assert mutants
    for mutant in mutants[::10]:
        assert mutant.source != source
        ast.parse(mutant.source)
        assert mutant.source.splitlines()[: mutant.line - 1] == source.splitlines()[: mutant.line - 1]
    assert all((ROOT / "tests" / each).is_file() for each in TARGETS[module])


CLASS = """\
from functools import cached_property


class Box:
    limit = 3

    @cached_property
    def half(self) -> int:
        return self.limit // 2

    @property
    def twice(self) -> int:
        return 2 * self.limit


def add(number: int) -> int:
    def further() -> int:
        return number + 1

    return further() if number else 0
"""


def test_a_function_that_is_imported_gets_the_code_of_the_mutant(tmp_path: Path) -> None:
    file = tmp_path / "boxes.py"
    file.write_text(CLASS)
    spec = spec_from_file_location("boxes", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {}
    for mutant in mutants_of(CLASS):
        assert swap(file, CLASS, mutant)
        found[mutant.line, mutant.description] = module.Box().half, module.Box().twice, module.add(1), module.add(0)
        assert swap(file, mutant.source, type(mutant)(mutant.line, mutant.lines, "back", CLASS))
    assert found == {
        (9, "self.limit // 2  ->  (self.limit * 2)"): (6, 6, 2, 0),
        (9, "2  ->  (3)"): (1, 6, 2, 0),
        (13, "2 * self.limit  ->  (2 // self.limit)"): (1, 0, 2, 0),
        (13, "2  ->  (3)"): (1, 9, 2, 0),
        (18, "number + 1  ->  (number - 1)"): (1, 6, 0, 0),
        (18, "1  ->  (2)"): (1, 6, 3, 0),
        (20, "further() if number else 0  ->  (0 if number else further())"): (1, 6, 0, 1),
        (20, "0  ->  (1)"): (1, 6, 2, 1),
    }


def test_a_module_that_is_not_imported_is_left_alone(tmp_path: Path) -> None:
    assert not swap(
        tmp_path / "never.py", SOURCE.replace("take", "never"), mutants_of(SOURCE.replace("take", "never"))[0]
    )
