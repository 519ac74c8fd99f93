"""What the frames of an answered error held is free at once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest

from mimids.tracebacks import release_frames


class Request:
    """What a frame holds."""


def refuse(request: Request) -> None:
    refusal = ValueError("refused")
    raise refusal  # the error is in a frame of its own traceback


def refuse_with_cause(request: Request) -> None:
    try:
        refuse(request)
    except ValueError as cause:
        error = RuntimeError("refused")
        raise error from cause


def refuse_in_group(request: Request) -> None:
    refusals = []
    try:
        refuse(request)
    except ValueError as error:
        refusals.append(error)
    raise ExceptionGroup("refused", refusals)


@pytest.mark.parametrize("refusing", [refuse, refuse_with_cause, refuse_in_group])
@pytest.mark.parametrize("released", [True, False])
def test_a_request_is_freed_with_its_refusal(refusing: Callable[[Request], None], released: bool) -> None:
    gc.disable()
    try:
        request = Request()
        freed, same = weakref.ref(request), False
        try:
            refusing(request)
        except Exception as error:
            same = (release_frames(error) if released else error) is error
        del request
        assert same
        assert (freed() is None) == released
    finally:
        gc.enable()
