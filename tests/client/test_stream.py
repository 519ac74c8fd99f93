"""A device's stream with a provider that disconnects, repeats messages, refuses, or sends bad input."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from mimids.client import CounterAhead, InboxWelcome, LowStock, NotServed, Problem, StartedAgain, Unreachable
from mimids.client.stream import OVER_SECONDS
from mimids.mls.framing import MLSMessage
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, CipherSuite, Counter, ProviderId
from mimids.wire.messages import (
    Ack,
    FrameType,
    Result,
    Stock,
    Withdraw,
)
from tests.support.fake_provider import HUB, HungUp, Peer, faked
from tests.support.stream_steps import (
    AHEAD,
    BUSY,
    GROUP,
    accepted,
    arrived,
    next_event,
    presented,
    quiet,
    said,
)
from tests.vectors import load_lines


async def test_the_token_goes_into_the_handshake() -> None:
    async with faked() as provider:
        peer = await provider.next()
        assert (b"authorization", b"Bearer token") in peer.request.extra_headers
        assert peer.request.target == "/client/v1/stream"


async def test_a_welcome_is_seen_once_and_acknowledged_until_it_stops_coming() -> None:
    line = next(each for each in load_lines("conversations/public.jsonl") if each["kind"] == "welcome")
    welcome = InboxWelcome(4, ProviderId("b.example"), decode(MLSMessage, bytes.fromhex(line["bytes"])))
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


async def test_the_stream_reconnects_after_a_temporary_refusal_but_not_after_a_final_one() -> None:
    unauthenticated = json.dumps({"type": "urn:mimids:problem:unauthenticated", "status": 401}).encode()
    async with faked() as provider:
        stream = provider.stream
        sending = stream.send_nowait(HUB, [GROUP.message(b"hello")])
        await (await provider.next_request()).refuse(429, BUSY)
        await (await provider.next_request()).refuse(503, b"")
        await (await provider.next_request()).refuse(
            503, b'{"retry_after": %s}' % (b"9" * 400)
        )  # too large for a float
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


async def test_a_stream_starts_again_where_the_hub_lost_messages_and_says_so() -> None:
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key, 8)
        peer = await provider.next()
        frame = await peer.hear(FrameType.PRESENT)
        await peer.say(FrameType.PROBLEM, AHEAD, frame.id)
        assert await next_event(stream) == StartedAgain(HUB, GROUP.key, Counter(8), Counter(3))
        assert await presented(peer) == (GROUP.key, 3)
        await peer.push(GROUP.key, 3, said("new"))
        assert await arrived(stream) == (3, ["new"])


async def test_a_hub_that_sends_a_stream_forward_is_not_believed() -> None:
    async with faked() as provider:
        provider.stream.present(HUB, GROUP.key, 2)
        peer = await provider.next()
        frame = await peer.hear(FrameType.PRESENT)
        await peer.say(FrameType.PROBLEM, AHEAD, frame.id)
        event = await next_event(provider.stream)
        assert isinstance(event, NotServed)
        assert isinstance(event.problem, CounterAhead)
        assert event.problem.next_counter == 3


async def test_the_key_of_an_epoch_that_is_over_is_withdrawn_after_a_while(
    mock_clock: trio.testing.MockClock,
) -> None:
    _, following = GROUP.commit()
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key)
        peer = await provider.next()
        assert await presented(peer) == (GROUP.key, 0)
        stream.present(HUB, following.key, after=GROUP.key)
        assert await presented(peer) == (following.key, 0)
        await peer.push(GROUP.key, 0, said("late"))
        assert await arrived(stream) == (0, ["late"])
        mock_clock.jump(OVER_SECONDS)
        assert (await peer.hear(FrameType.WITHDRAW)).body == Withdraw((GROUP.key,))
        assert stream.statistics().presented == 1


async def test_a_key_that_is_presented_again_stays(mock_clock: trio.testing.MockClock) -> None:
    _, following = GROUP.commit()
    async with faked() as provider:
        stream = provider.stream
        stream.present(HUB, GROUP.key)
        stream.present(HUB, following.key, after=GROUP.key)
        peer = await provider.next()
        await presented(peer)
        await presented(peer)
        stream.present(HUB, GROUP.key)
        mock_clock.jump(2 * OVER_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
        assert stream.statistics().presented == 2
