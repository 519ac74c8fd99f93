"""The targets under atheris: importing this module imports all of mimids so that libFuzzer sees its branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from random import Random
from typing import Any, Final

import atheris

# Structs are read and written by functions that are compiled when they are declared, which atheris cannot see.
with atheris.instrument_imports(include=["mimids.wire.compiled"], enable_loader_override=False):
    from mimids.wire import compiled

_compile: Final = compiled._function


def _instrumented(name: str, lines: Sequence[str], scope: dict[str, Any]) -> Callable[..., Any]:
    made: Callable[..., Any] = atheris.instrument_func(_compile(name, lines, scope))
    return made


compiled._function = _instrumented
with atheris.instrument_imports(include=["mimids"], enable_loader_override=False), redirect_stderr(StringIO()):
    from fuzz.target import Target
    from fuzz.targets import TARGETS as TARGETS


def fuzz(target: Target, options: Sequence[str]) -> None:
    """Fuzz a target with libFuzzer's options and directories; libFuzzer ends the process."""
    target.learn(target.seeds())

    def mutate(octets: bytes, most: int, seed: int) -> bytes:
        made = target.mutated(octets, most, Random(seed))  # noqa: S311 - it must be repeatable
        return bytes(atheris.Mutate(octets, most)) if made is None else made

    atheris.Setup(["fuzz", f"-max_len={target.most}", *options], target.test, custom_mutator=mutate)
    atheris.Fuzz()
