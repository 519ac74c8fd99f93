"""The direct path and the ASGI path read the same octets as the same requests, and give the same answers."""

from __future__ import annotations

import random
import re

import h11
import pytest
import trio
import trio.testing

from mimids.http.server.listener_state import ConnectionLimits
from mimids.http.server.messages import HttpReply
from mimids.http.server.plain_requests import PlainBody, PlainHead, encode_reply, parse_head
from mimids.http.server.protocols import HEADER_LINES
from tests.support.listening import Start, Started, echo, receive_some

HEAD_BYTES = ConnectionLimits().head_bytes
PIECES = [
    b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"get", b" ", b"  ", b"\t", b"/", b"/a?b=c", b"/\xff", b"*", b"//x",
    b"http://a/b", b"/%2e", b"#f", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"\r\n", b"\n", b"\r", b"\r\n ",
    b"\r\n\t", b"host: a", b"Host:a", b"host:", b"host : a", b"host: a\x00", b"content-length: 3", b"Content-Length:3 ",
    b"content-length: +3", b"content-length: 3, 3", b"content-length: 0x3", b"content-length: 03", b"content-length:",
    b"content-length: 99999999999999999999", b"transfer-encoding: chunked", b"Transfer-Encoding: identity",
    b"transfer-encoding:\x0bchunked", b"expect: 100-continue", b"upgrade: websocket", b"connection: close",
    b"connection: Keep-Alive", b"connection: keep-alive, close", b"x: \xe4\x01", b"x: \x7f", b"x-empty:", b":", b"x",
    b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"\x00", b"\x0c", b"te: trailers", b"x:y", b"(x): y", b"x: a\rb",
]  # fmt: skip
REQUESTS = [
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nx: y \r\nx:\tz\r\n\r\nabc",
    b"PUT / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive\r\nx-empty:\r\ncontent-length: 0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    b"\r\nDELETE /a HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.1\nhost: a\n\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n folded\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabcGET / HTTP/1.1\r\nhost: a\r\n\r\n",
]


def mutated(seed: int) -> bytes:
    """Return a request with a few pieces replaced, removed, repeated or inserted."""
    chosen = random.Random(seed)
    parts = [part for part in re.split(rb"(\r\n|: | )", chosen.choice(REQUESTS)) if part]
    for _ in range(chosen.randrange(4)):
        at = chosen.randrange(len(parts))
        change = chosen.randrange(4)
        if change == 0:
            parts[at] = chosen.choice(PIECES)
        elif change == 1:
            parts.insert(at, chosen.choice(PIECES))
        elif change == 2:
            parts.insert(at, parts[at])
        else:
            parts[at] = b""
    return b"".join(parts)


def read_by_h11(octets: bytes) -> PlainHead | None:
    """Return the head that h11 reads at the beginning; None if it refuses or wants more."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    connection.receive_data(octets)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Request):
        return None
    headers: dict[str, str] = {}
    for name_, value_ in event.headers:
        name, value = name_.decode(), value_.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    assert "transfer-encoding" not in headers
    length = int(headers.get("content-length", "0"))
    return PlainHead(octets.index(b"\r\n\r\n") + 4, event.method.decode(), event.target, headers, length)


def test_what_is_plain_is_the_same_request_to_h11() -> None:
    plain = 0
    for seed in range(20_000):
        octets = mutated(seed)
        head = parse_head(octets, HEAD_BYTES)
        if head is not None:
            plain += 1
            assert head == read_by_h11(octets), octets
    assert plain > 2_000


@pytest.mark.parametrize(
    "octets",
    [*REQUESTS[3:10], REQUESTS[0][:-1], REQUESTS[0].replace(b"GET", b"HEAD"), REQUESTS[0].replace(b"1.1", b"1.0")],
)
def test_what_is_not_certainly_plain_is_left_to_h11(octets: bytes) -> None:
    assert parse_head(octets, HEAD_BYTES) is None


def test_a_long_head_is_not_plain() -> None:
    padded = REQUESTS[0][:-2] + b"x: " + b"y" * HEAD_BYTES + b"\r\n\r\n"
    assert parse_head(padded, HEAD_BYTES) is None
    for more, is_plain in ((HEADER_LINES - 1, True), (HEADER_LINES, False)):
        lines = REQUESTS[0][:-2] + b"x: y\r\n" * more + b"\r\n"
        assert (parse_head(lines, HEAD_BYTES) is not None) == is_plain
    assert parse_head(REQUESTS[0], len(REQUESTS[0])) is not None
    assert parse_head(REQUESTS[0], len(REQUESTS[0]) - 1) is None


async def answers(server: Started, octets: bytes) -> bytes:
    """Return all that a new connection answers, without dates."""
    async with await server.connect() as stream:
        await stream.send_all(octets)
        received = b""
        while piece := await receive_some(stream):
            received += piece
    return re.sub(rb"date: [^\r]*\r\n", b"", received)


async def test_both_paths_give_the_same_answers(start_plain: Start, start_direct: Start) -> None:
    last = b"GET /end HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    direct, asgi = [await start(echo, head_seconds=0.2, body_seconds=0.2) for start in (start_direct, start_plain)]
    for seed in range(0, 20_000, 300):
        octets = b"".join(mutated(seed + n) for n in range(3)) + last
        assert await answers(direct, octets) == await answers(asgi, octets), octets
    for octets in REQUESTS:
        assert await answers(direct, octets + last) == await answers(asgi, octets + last), octets


async def test_a_body_that_trickles_in_times_out(autojump_clock: trio.testing.MockClock) -> None:
    class Trickle:
        async def receive(self, most: int) -> bytes:
            await trio.sleep(4)
            return b"x"

        def watch_peer(self) -> None: ...

    body = PlainBody(b"", 100, Trickle(), ConnectionLimits(body_seconds=10, body_bytes_per_second=1000))
    began = trio.current_time()
    with trio.CancelScope() as body.handler:
        while (await body.receive())[1]:
            pass
    assert body.timed_out
    assert trio.current_time() - began == pytest.approx(10.002)


def test_a_header_of_an_answer_cannot_begin_a_line() -> None:
    for bad in (b"a\r\nb: c", b"a\nb", b"a\rb"):
        with pytest.raises(ValueError, match="line break"):
            encode_reply(HttpReply(200, [(b"x", bad)]), [])
