"""Answers of other providers that are not what they should be fail as `PeerFailed`."""

from __future__ import annotations

import pytest

from mimids.ds.peer_answers import decode_answer, expect_empty
from mimids.ds.ports import PeerAnswer
from mimids.errors import PeerFailed
from mimids.wire.declare import encode
from mimids.wire.ids import Counter
from mimids.wire.messages import PushResponse


def test_an_answer_is_decoded() -> None:
    expected = PushResponse((Counter(1), Counter(2)))
    assert decode_answer(PushResponse, PeerAnswer(encode(expected))) == expected


@pytest.mark.parametrize("body", [b"", b"\x04", b"<html>", encode(PushResponse(())) + b"more"])
def test_a_malformed_answer_fails_with_the_name_of_its_structure(body: bytes) -> None:
    with pytest.raises(PeerFailed, match="not a PushResponse"):
        decode_answer(PushResponse, PeerAnswer(body))


def test_an_answer_that_should_be_empty_has_no_body() -> None:
    expect_empty(PeerAnswer(b""))
    with pytest.raises(PeerFailed):
        expect_empty(PeerAnswer(b"ok"))
