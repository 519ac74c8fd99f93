"""Messages that a stream sends: their order, their answers, and their refusals."""

from __future__ import annotations

import trio
import trio.testing

from mimids.client import Problem
from mimids.client.sending import SendLimits
from mimids.wire.messages import (
    FrameType,
    Result,
    Send,
    SendResponse,
    SendResult,
    SendStatus,
)
from tests.support.fake_provider import HUB, LIMITS, faked
from tests.support.stream_steps import (
    BUSY,
    GROUP,
    TERMINATED,
    accepted,
)


async def test_messages_without_an_answer_are_sent_again_in_order() -> None:
    async with faked() as provider:
        stream = provider.stream
        requests = [GROUP.message(b"%d" % number) for number in range(25)]
        sending = stream.send_nowait(HUB, requests)
        peer = await provider.next()
        first = await peer.hear(FrameType.SEND)
        assert isinstance(first.body, Send)
        assert first.body.requests == tuple(requests[:10]), "as many to a frame as the provider takes"
        await peer.say(FrameType.RESULT, Result(tuple(map(accepted, range(10)))), first.id)
        await peer.hear(FrameType.SEND)
        await peer.hear(FrameType.SEND)
        await peer.hang_up()
        peer = await provider.next()
        for start in (10, 20):
            again = await peer.hear(FrameType.SEND)
            assert isinstance(again.body, Send)
            expected = requests[start : start + 10]
            assert again.body.requests == tuple(expected)
            answers = [accepted(start + number) for number in range(len(expected))]
            answers[0] = SendResult(SendStatus.REFUSED, TERMINATED)
            await peer.say(FrameType.RESULT, Result(tuple(answers)), again.id)
        results = await sending.wait()
        assert [each.counter for each in results if isinstance(each, SendResponse)] == [
            *range(10), *range(11, 20), *range(21, 25)
        ]  # fmt: skip
        assert [each.code for each in results if isinstance(each, Problem)] == ["branch-terminated"] * 2
        assert stream.statistics().in_flight == 0


async def test_a_refused_frame_refuses_its_messages_and_no_others() -> None:
    async with faked() as provider, trio.open_nursery() as nursery:
        stream = provider.stream
        refused = stream.send_nowait(HUB, [GROUP.message(b"1")])
        peer = await provider.next()
        frame = await peer.hear(FrameType.SEND)
        answers: list[SendResponse] = []

        async def send() -> None:
            answers.append(await stream.send(HUB, GROUP.message(b"2")))

        nursery.start_soon(send)
        later = await peer.hear(FrameType.SEND)
        await peer.say(FrameType.RESULT, Result((accepted(0),)), later.id)
        await peer.say(FrameType.PROBLEM, BUSY, frame.id)
        (problem,) = await refused.wait()
        assert isinstance(problem, Problem)
        assert problem.code == "busy"
        assert [each.counter for each in answers] == [0]


async def test_a_message_that_fits_into_no_frame_is_refused_here() -> None:
    async with faked(SendLimits(2000, 10)) as provider:
        sizes = (10, 5000, 1000, 1000)
        requests = [GROUP.message(bytes(size)) for size in sizes]
        sending = provider.stream.send_nowait(HUB, requests)
        peer = await provider.next()
        for expected in ((requests[0], requests[2]), (requests[3],)):
            frame = await peer.hear(FrameType.SEND)
            assert isinstance(frame.body, Send)
            assert frame.body.requests == expected
            await peer.say(FrameType.RESULT, Result(tuple(map(accepted, range(len(expected))))), frame.id)
        results = await sending.wait()
        assert [each.code for each in results if isinstance(each, Problem)] == ["too-large"]
        assert isinstance(results[1], Problem)


async def test_an_empty_batch_sends_nothing() -> None:
    async with faked(LIMITS) as provider:
        assert await provider.stream.send_batch(HUB, []) == ()
