"""Checking and decoding what another provider answered."""

from __future__ import annotations

from typing import TypeVar

from mimids.ds.ports import PeerAnswer
from mimids.errors import PeerFailed
from mimids.wire.declare import decode

T = TypeVar("T")


def decode_answer(cls: type[T], answer: PeerAnswer) -> T:
    """Decode the body of an answer; raise `PeerFailed` if it is not a `cls`."""
    try:
        return decode(cls, answer.body)
    except ValueError as error:
        raise PeerFailed(f"its answer is not a {cls.__name__}") from error


def expect_empty(answer: PeerAnswer) -> None:
    """Raise `PeerFailed` unless an answer is empty, as an answer with status 204 is.

    Something between us and the peer may answer 200 to everything. If we took that for the peer's answer, a Welcome
    would be lost.
    """
    if answer.body:
        raise PeerFailed("its answer should be empty")
