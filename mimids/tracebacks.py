"""Tracebacks of errors that were answered."""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=BaseException)


def release_frames(error: E) -> E:
    """Drop the tracebacks of an error, of its causes, and of the errors in its group; return the error.

    Often the error is still a variable of a frame in its own traceback. This cycle would keep the frames, and with them
    the request and its partition keys, until the garbage collector runs.
    """
    errors: list[BaseException] = [error]
    seen = set[int]()
    while errors:
        each = errors.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        each.__traceback__ = None
        errors += [other for other in (each.__cause__, each.__context__) if other is not None]
        if isinstance(each, BaseExceptionGroup):
            errors += each.exceptions
    return error
