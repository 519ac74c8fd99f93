"""Answers of other providers that are not what they should be fail as `PeerFailed`."""

from __future__ import annotations

import threading

import pytest
import trio

from mimids.ds.peer_answers import LONG_OCTETS, AnswerDecoder, decode_answer, expect_empty
from mimids.ds.ports import PeerAnswer
from mimids.errors import PeerFailed
from mimids.wire.codec import Codec
from mimids.wire.declare import encode
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import PushResponse, WelcomeState, WelcomeStatus, WelcomeStatusResponse
from tests.support.stored import until
from tests.support.welcomes import REF


def test_an_answer_is_decoded() -> None:
    expected = PushResponse((Counter(1), Counter(2)))
    assert decode_answer(PushResponse, PeerAnswer(encode(expected))) == expected


@pytest.mark.parametrize("body", [b"", b"\x04", b"<html>", encode(PushResponse(())) + b"more"])
def test_a_malformed_answer_fails_with_the_name_of_its_structure(body: bytes) -> None:
    with pytest.raises(PeerFailed, match="not a PushResponse"):
        decode_answer(PushResponse, PeerAnswer(body))


LONG = encode(WelcomeStatusResponse((WelcomeStatus(REF, WelcomeState.DELIVERED, b""),) * 1000))


async def test_long_answers_are_decoded_in_threads_and_one_at_a_time_of_each_provider() -> None:
    decoder, loop = AnswerDecoder(), threading.get_ident()
    began: list[tuple[str, bool]] = []
    go_on = threading.Event()

    class Waits(Codec[bytes]):
        def __init__(self, name: str) -> None:
            self._name = name

        def decode(self, data: bytes) -> bytes:
            began.append((self._name, threading.get_ident() == loop))
            if len(data) > LONG_OCTETS:
                go_on.wait(20)
            return data

    async def decode(provider: str, octets: int) -> None:
        await decoder.decode_by(Waits(provider), bytes(octets), "x", of=ProviderId(provider))

    async with trio.open_nursery() as decoding:
        for provider in ("slow.example", "slow.example", "other.example"):
            decoding.start_soon(decode, provider, LONG_OCTETS + 1)
        await until(lambda: _has_begun(began, 2))
        await decode("slow.example", LONG_OCTETS)
        assert sorted(began[:2]) == [("other.example", False), ("slow.example", False)]
        assert began[2:] == [("slow.example", True)], "a short answer does not wait"
        go_on.set()
    assert sorted(began[3:]) == [("slow.example", False)]
    assert not decoder._turns


async def _has_begun(began: list[tuple[str, bool]], count: int) -> bool:
    return len(began) >= count


async def test_a_long_answer_is_decoded_as_a_short_one_is() -> None:
    decoder = AnswerDecoder()
    assert encode(await decoder.decode(WelcomeStatusResponse, LONG, of=ProviderId("b.example"))) == LONG
    with pytest.raises(PeerFailed, match="not a WelcomeStatusResponse"):
        await decoder.decode(WelcomeStatusResponse, LONG + b"more", of=ProviderId("b.example"))
    assert not decoder._turns


def test_an_answer_that_should_be_empty_has_no_body() -> None:
    expect_empty(PeerAnswer(b""))
    with pytest.raises(PeerFailed):
        expect_empty(PeerAnswer(b"ok"))
