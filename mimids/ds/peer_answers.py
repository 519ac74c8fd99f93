"""What every answer of another provider must be before anything is made of it."""

from __future__ import annotations

from mimids.ds.ports import PeerAnswer
from mimids.errors import PeerFailed


def expect_nothing(answer: PeerAnswer) -> None:
    """Raise `PeerFailed` unless an answer is empty, as it is where 204 is due.

    Something between us and the peer may answer 200 to everything; a Welcome that it took would be lost.
    """
    if answer.body:
        raise PeerFailed("its answer should be empty")
