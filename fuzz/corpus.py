"""The corpus in the repository: for each target a file of inputs in base64, one a line, shortest first.

    python -m fuzz.corpus [DIRECTORY]

chooses them again: from the target's seeds, which are made from the recordings in tests/vectors, and from the inputs
that the fuzzer has found (`DIRECTORY/NAME/*`, by default .fuzz/corpus). An input is kept if it reaches a step from one
line to another, in the code under test, that no shorter one reaches.
"""

from __future__ import annotations

import sys
from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from fuzz.target import Target

DIRECTORY: Final = Path(__file__).parent / "corpus"
FOUND: Final = Path(__file__).parents[1] / ".fuzz/corpus"
OCTETS_PER_SHARE: Final = 10_240  # of one target's inputs

Steps = set[tuple[CodeType, int, int]]


def kept(name: str) -> list[bytes]:
    """Return the inputs of a target that the repository has."""
    return [b64decode(line) for line in (DIRECTORY / f"{name}.txt").read_text().split()]


def found(name: str, directory: Path = FOUND) -> list[bytes]:
    """Return the inputs of a target that the fuzzer has found here."""
    return [path.read_bytes() for path in sorted((directory / name).glob("*"))]


def steps_of(target: Target, octets: bytes) -> Steps:
    """Return the steps between lines of the code under test that an input reaches."""
    steps: Steps = set()

    def enter(frame: FrameType, event: str, arg: object) -> Any:
        code, before = frame.f_code, 0
        if "/mimids/" not in code.co_filename and code.co_filename != "<string>":
            return None

        def line(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal before
            if event == "line":
                steps.add((code, before, frame.f_lineno))
                before = frame.f_lineno
            return line

        return line

    sys.settrace(enter)
    try:
        target.run(octets)
    finally:
        sys.settrace(None)
    return steps


def chosen(target: Target, candidates: Iterable[bytes]) -> list[bytes]:
    """Return the candidates that reach something new, as many as a target may have."""
    reached: Steps = set()
    inputs: list[bytes] = []
    left = OCTETS_PER_SHARE * target.share
    for octets in sorted(set(candidates), key=lambda each: (len(each), each)):
        if len(octets) > left:
            break
        new = steps_of(target, octets) - reached
        if new:
            reached |= new
            left -= len(octets)
            inputs.append(octets)
    return inputs


def main(directory: Path) -> None:
    """Choose the corpus of every target again."""
    from fuzz.targets import TARGETS

    for name, target in TARGETS.items():
        inputs = chosen(target, [*target.seeds(), *found(name, directory)])
        (DIRECTORY / f"{name}.txt").write_text("".join(f"{b64encode(octets).decode()}\n" for octets in inputs))
        print(f"{name}: {len(inputs)} inputs, {sum(map(len, inputs))} octets")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else FOUND)
