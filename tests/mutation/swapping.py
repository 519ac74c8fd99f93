"""Putting a mutant into a process that has imported its module: the function with the fault gets other code."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

from tests.mutation.mutants import Mutant


def swap(path: Path, source: str, mutant: Mutant) -> bool:
    """Give the functions of an imported module the code of a mutant.

    Returns False, and changes nothing, if that cannot be done: the module is not imported, or the function has other
    free variables in the mutant.
    """
    old = _function_at(path, source, mutant.line)
    new = _function_at(path, mutant.source, mutant.line)
    if old is None or new is None or old.co_freevars != new.co_freevars:
        return False
    found = [each for each in gc.get_objects() if isinstance(each, FunctionType) and each.__code__ == old]
    for function in found:
        function.__code__ = new
    return bool(found)


def _function_at(path: Path, source: str, line: int) -> CodeType | None:
    """Return the code of the outermost function that has a line, with the functions within it."""
    before = [
        each for each in _functions(compile(source, path, "exec", dont_inherit=True)) if each.co_firstlineno <= line
    ]
    return max(before, key=lambda code: code.co_firstlineno, default=None)


def _functions(code: CodeType) -> Iterator[CodeType]:
    """Yield the functions of a module and of its classes; not those within functions."""
    for each in code.co_consts:
        if isinstance(each, CodeType):
            is_class = not each.co_flags & 0x1  # CO_OPTIMIZED: only functions have fast local variables
            if is_class:
                yield from _functions(each)
            elif not each.co_name.startswith("<"):
                yield each
