"""A device's stream with a provider that disconnects, repeats messages, refuses, or sends bad input."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from mimids.client import Arrived, InboxWelcome, LowStock, NotServed, Problem, Stream, Unreachable
from mimids.client.event_queue import FULL_OCTETS, WAITING_OCTETS
from mimids.client.events import Event
from mimids.client.sending import SendLimits
from mimids.mls.framing import MLSMessage
from mimids.testing import PretendGroup, content_of
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, CipherSuite, Counter, MaskedPartitionKey, PartitionKey
from mimids.wire.messages import (
    Ack,
    Epoch,
    FrameType,
    Message,
    Present,
    Result,
    Send,
    SendResponse,
    SendResult,
    SendStatus,
    Stock,
    Withdraw,
)
from tests.support.fake_provider import HUB, LIMITS, HungUp, Peer, faked
from tests.vectors import load_lines

GROUP = PretendGroup.at(HUB)
UNKNOWN = json.dumps({"type": "urn:mimids:problem:unknown-partition", "status": 404}).encode()
TERMINATED = json.dumps({"type": "urn:mimids:problem:branch-terminated", "status": 409}).encode()
BUSY = json.dumps({"type": "urn:mimids:problem:busy", "status": 503}).encode()
GONE = json.dumps({"type": "urn:mimids:problem:messages-expired", "status": 410, "next_counter": 7}).encode()


def said(*contents: str) -> Epoch:
    return Epoch(tuple(Message(GROUP.message(each.encode()).message, None) for each in contents))


async def next_event(stream: Stream) -> Event:
    with trio.fail_after(5):
        return await anext(stream)


async def arrived(stream: Stream) -> tuple[int, list[str]]:
    event = await next_event(stream)
    assert isinstance(event, Arrived), event
    return event.counter, [content_of(each).decode() for each in event.messages]


async def presented(peer: Peer) -> tuple[PartitionKey, int]:
    body = (await peer.hear(FrameType.PRESENT)).body
    assert isinstance(body, Present)
    assert body.hub == HUB
    (position,) = body.positions
    return position.partition_key, position.counter


async def quiet(stream: Stream) -> None:
    """Check that there is no event."""
    with trio.move_on_after(0.1) as waited:
        raise AssertionError(await anext(stream))
    assert waited.cancelled_caught


def accepted(counter: int) -> SendResult:
    partition = MaskedPartitionKey(GROUP.key.mask(32))
    return SendResult(SendStatus.ACCEPTED, SendResponse(Counter(counter), 0, partition, 0, ()))


async def test_the_token_goes_into_the_handshake() -> None:
    async with faked() as provider:
        peer = await provider.next()
        assert (b"authorization", b"Bearer token") in peer.request.extra_headers
        assert peer.request.target == "/client/v1/stream"


async def test_a_new_connection_continues_at_the_counter_reached() -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key, 3)
        peer = await provider.next()
        assert await presented(peer) == (GROUP.key, 3)
        await peer.push(GROUP.key, 3, said("three", "four"))
        await peer.hang_up()
        peer = await provider.next()
        assert await presented(peer) == (GROUP.key, 5)
        await peer.push(GROUP.key, 5, said("five"))
        assert [await arrived(stream) for _ in range(2)] == [(3, ["three", "four"]), (5, ["five"])]
        assert stream.statistics().connections == 2


async def test_messages_that_come_twice_are_seen_once() -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key)
        peer = await provider.next()
        await presented(peer)
        epoch = said("zero", "one")
        for counter, messages in ((0, epoch), (0, epoch), (1, Epoch((*epoch.messages[1:], *said("two").messages)))):
            await peer.push(GROUP.key, counter, messages)
        assert await arrived(stream) == (0, ["zero", "one"])
        assert await arrived(stream) == (2, ["two"])


async def test_skipped_messages_are_counted() -> None:
    """A user who is banned in a branch gets its handshake messages only (semantics: policy)."""
    async with faked() as provider:
        provider.stream.present(HUB, GROUP.key)
        peer = await provider.next()
        await presented(peer)
        await peer.push(GROUP.key, 2, said("two"))
        event = await next_event(provider.stream)
        assert isinstance(event, Arrived)
        assert (event.counter, event.skipped, event.next_counter) == (2, 2, 3)


async def test_a_key_that_is_presented_again_gets_a_new_connection() -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key, 5)
        peer = await provider.next()
        await presented(peer)
        stream.withdraw(GROUP.key)
        withdrawn = (await peer.hear(FrameType.WITHDRAW)).body
        assert withdrawn == Withdraw((GROUP.key,))
        await peer.push(GROUP.key, 5, said("late"))
        stream.present(HUB, GROUP.key, 5)
        peer = await provider.next()
        assert await presented(peer) == (GROUP.key, 5)
        await peer.push(GROUP.key, 5, said("five"))
        assert await arrived(stream) == (5, ["five"])


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


async def test_a_welcome_is_seen_once_and_acknowledged_until_it_stops_coming() -> None:
    line = next(each for each in load_lines("conversations/public.jsonl") if each["kind"] == "welcome")
    welcome = InboxWelcome(4, decode(MLSMessage, bytes.fromhex(line["bytes"])))
    async with faked() as provider:
        stream = provider.stream
        peer = await provider.next()
        await peer.say(FrameType.WELCOME, welcome)
        assert await next_event(stream) == welcome
        await peer.hang_up()
        peer = await provider.next()
        await peer.say(FrameType.WELCOME, welcome)
        await quiet(stream)
        stream.acknowledge(4)
        assert (await peer.hear(FrameType.ACK)).body == Ack((4,))
        await peer.hang_up()  # the acknowledgement was lost
        peer = await provider.next()
        await peer.say(FrameType.WELCOME, welcome)
        assert (await peer.hear(FrameType.ACK)).body == Ack((4,))
        await quiet(stream)


async def test_low_stock_is_an_event() -> None:
    async with faked() as provider:
        peer = await provider.next()
        await peer.say(FrameType.STOCK, Stock(MLS10, CipherSuite(1), 2))
        assert await next_event(provider.stream) == LowStock(MLS10, CipherSuite(1), 2)


async def test_an_unknown_partition_is_reported_once_and_stays_presented() -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key)
        for _ in range(2):
            peer = await provider.next()
            frame = await peer.hear(FrameType.PRESENT)
            await peer.say(FrameType.PROBLEM, UNKNOWN, frame.id)
            await peer.hang_up()
        peer = await provider.next()
        await presented(peer)
        await peer.push(GROUP.key, 0, said("now"))
        event = await next_event(stream)
        assert isinstance(event, NotServed)
        assert (event.partition_key, event.problem.code) == (GROUP.key, "unknown-partition")
        assert await arrived(stream) == (0, ["now"])


async def test_a_refused_partition_is_not_presented_again_automatically() -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key)
        peer = await provider.next()
        frame = await peer.hear(FrameType.PRESENT)
        await peer.say(FrameType.PROBLEM, GONE, frame.id)
        event = await next_event(stream)
        assert isinstance(event, NotServed)
        stream.present(HUB, GROUP.key, event.problem.members["next_counter"])
        await peer.hear(FrameType.WITHDRAW)
        assert await presented(peer) == (GROUP.key, 7), "on the same connection"


async def test_a_temporarily_refused_partition_is_presented_again() -> None:
    async with faked() as provider:
        provider.stream.present(HUB, GROUP.key, 2)
        peer = await provider.next()
        frame = await peer.hear(FrameType.PRESENT)
        await peer.say(FrameType.PROBLEM, BUSY, frame.id)
        assert await presented(peer) == (GROUP.key, 2)


async def test_the_stream_reconnects_after_a_temporary_refusal_but_not_after_a_final_one() -> None:
    unauthenticated = json.dumps({"type": "urn:mimids:problem:unauthenticated", "status": 401}).encode()
    async with faked() as provider:
        stream = provider.stream
        sending = stream.send_nowait(HUB, [GROUP.message(b"hello")])
        await (await provider.next_request()).refuse(429, BUSY)
        await (await provider.next_request()).refuse(503, b"")
        await (await provider.next_request()).refuse(401, unauthenticated)
        with pytest.raises(Problem, match="unauthenticated"):
            await next_event(stream)
        with pytest.raises(Problem, match="unauthenticated"):
            await sending.wait()
        with pytest.raises(Problem, match="unauthenticated"):
            await stream.send(HUB, GROUP.message(b"hello"))


async def nonsense(peer: Peer) -> None:
    await peer._stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")


async def no_frame(peer: Peer) -> None:
    await peer.emit(BytesMessage(b"\0\0\0"))


async def text(peer: Peer) -> None:
    await peer.emit(TextMessage("hello"))


async def farewell(peer: Peer) -> None:
    await peer.emit(CloseConnection(1001, "the server is restarting"))


async def wrong_number(peer: Peer) -> None:
    await peer.say(FrameType.RESULT, Result((accepted(0),)), 99)


async def devices_own(peer: Peer) -> None:
    await peer.say(FrameType.ACK, Ack((1,)))


@pytest.mark.parametrize("talk", [nonsense, no_frame, text, farewell, wrong_number, devices_own])
async def test_bad_input_ends_the_connection_but_not_the_stream(talk: Callable[[Peer], Awaitable[None]]) -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key)
        peer = await provider.next()
        await presented(peer)
        await talk(peer)
        peer = await provider.next()
        assert isinstance(stream.last_loss, Unreachable)
        await presented(peer)
        await peer.push(GROUP.key, 0, said("zero"))
        assert await arrived(stream) == (0, ["zero"])


# Over 40 lines: one scenario, whose provider and device share all of its objects.
async def test_the_queue_of_events_is_bounded_and_nothing_is_lost() -> None:
    """The device sends and does not read its events: it has to get the answer without queueing everything before."""
    big = "x" * 1_000_000
    async with faked() as provider, trio.open_nursery() as nursery:
        stream = provider.stream
        stream.present(HUB, GROUP.key)
        sending = stream.send_nowait(HUB, [GROUP.message(b"hello")])
        total = 40
        most = 0
        answered = trio.Event()

        async def serve() -> None:
            nonlocal most
            is_first = True
            while True:
                peer = await provider.next()
                try:
                    counter = None
                    if is_first:
                        counter = (await presented(peer))[1]
                    frame = await peer.hear(FrameType.SEND) if not answered.is_set() else None
                    if frame is not None and not is_first:
                        await peer.say(FrameType.RESULT, Result((accepted(0),)), frame.id)
                        answered.set()
                    if counter is None:
                        counter = (await presented(peer))[1]
                    for number in range(counter, total):
                        await peer.push(GROUP.key, number, said(f"{number} {big}"))
                    return
                except (HungUp, trio.BrokenResourceError):
                    is_first = False
                    most = max(most, stream.statistics().waiting_octets)

        nursery.start_soon(serve)
        with trio.fail_after(10):
            assert len(await sending.wait()) == 1
        got: list[str] = []
        while len(got) < total:
            most = max(most, stream.statistics().waiting_octets)
            got += [text.split()[0] for text in (await arrived(stream))[1]]
        assert got == [str(number) for number in range(total)]
        assert WAITING_OCTETS < most < FULL_OCTETS + 2_000_000


async def test_an_exception_in_the_block_is_raised_unchanged() -> None:
    with pytest.raises(KeyError):
        async with faked():
            raise KeyError("mine")


async def test_the_end_of_the_block_closes_the_stream_and_ends_waits(nursery: trio.Nursery) -> None:
    ended = trio.Event()
    async with faked() as provider:
        stream = provider.stream
        sending = stream.send_nowait(HUB, [GROUP.message(b"hello")])
        peer = await provider.next()
        await peer.hear(FrameType.SEND)

        async def listen() -> None:
            with pytest.raises(HungUp):
                await peer.hear(FrameType.SEND)
            ended.set()

        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
    assert ended.is_set()
    with pytest.raises(Unreachable):
        await sending.wait()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_an_empty_batch_sends_nothing() -> None:
    async with faked(LIMITS) as provider:
        assert await provider.stream.send_batch(HUB, []) == ()
