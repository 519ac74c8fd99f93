"""The fuzzing targets, without a fuzzer: each input of the corpus in the repository runs once."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mimids.mls
import mimids.wire
from fuzz.corpus import DIRECTORY, kept
from fuzz.minimize import minimized
from fuzz.mutation import Donors, Mutator, Unmakeable
from fuzz.target import Target, TooSlow
from fuzz.targets import TARGETS
from mimids.wire.codec import Codec, WireError
from tests.support.strategies import declared, values

CORPUS_OCTETS = 300_000


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_passes(name: str) -> None:
    inputs = kept(name)
    assert inputs
    for octets in inputs:
        TARGETS[name].run(octets)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_the_corpus_pass(name: str) -> None:
    target, choices = TARGETS[name], random.Random(1)
    inputs = kept(name)
    target.learn(inputs)
    mutated = 0
    for _ in range(50):
        made = target.mutated(choices.choice(inputs), target.most, choices)
        if made is not None:
            assert len(made) <= target.most
            target.run(made)
            mutated += 1
    assert mutated


@pytest.mark.parametrize(
    "by", [pytest.param(by, id=name) for package in (mimids.mls, mimids.wire) for name, by in declared(package)]
)
@settings(max_examples=5)
@given(data=st.data())
def test_a_value_of_any_type_is_changed_or_named_as_not_makeable(by: Codec[Any], data: st.DataObject) -> None:
    value = data.draw(values(by))
    mutator = Mutator(random.Random(1), Donors())
    for _ in range(50):
        with contextlib.suppress(WireError, Unmakeable, ValueError, OverflowError):  # as `Target.mutated` does
            by.encode(mutator.changed(by, value))


def test_the_corpus_is_small() -> None:
    files = list(DIRECTORY.iterdir())
    assert {file.stem for file in files} == set(TARGETS)
    assert sum(file.stat().st_size for file in files) < CORPUS_OCTETS


def test_an_error_that_is_not_declared_leaves_a_target() -> None:
    def run(octets: bytes) -> None:
        raise WireError("truncated")

    with pytest.raises(WireError):
        Target(name="broken", run=run, seeds=tuple).test(b"")


def test_a_failing_input_is_made_smaller() -> None:
    def run(octets: bytes) -> None:
        if b"a" in octets and b"z" in octets:
            raise KeyError

    target = Target(name="broken", run=run, seeds=tuple)
    assert minimized(target, bytes(100) + b"a" + bytes(500) + b"z") == b"az"
    assert minimized(target, b"passes") == b"passes"


@pytest.mark.parametrize(("seconds", "octets"), [(0.2, 0), (0.27, 8000)])
def test_an_input_that_takes_long_for_its_size_fails(
    seconds: float, octets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.gettrace", lambda: None)  # time counts while coverage is measured, too
    used = 0.0

    def run(octets: bytes) -> None:
        nonlocal used
        used += runs_for

    target = Target(name="slow", run=run, seeds=tuple, cpu_seconds=lambda: used)
    runs_for = seconds
    target.test(bytes(octets))
    runs_for = seconds + 0.02
    with pytest.raises(TooSlow):
        target.test(bytes(octets))
