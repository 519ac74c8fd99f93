"""Heads of requests that are too long, ambiguous or slow to parse."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mimids.errors import Busy
from mimids.http.api import problems
from mimids.http.api.parameters import wait_seconds
from mimids.listeners import make_listeners
from tests.support.federation import federated
from tests.support.inmemory import InMemory
from tests.support.listening import Started, answer, echo, ends, read_answer, starter
from tests.support.table_rig import Rig

HOST = b"host: a.example\r\n"


@pytest.fixture
async def server(nursery) -> Started:  # type: ignore[no-untyped-def]
    return await starter(nursery, None)(echo)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("," * 60_000, None),
        (", " * 30_000 + "wait=5", None),
        (" " * 60_000, None),
        ("wait" + " " * 60_000 + "=x", None),
        ("respond-async, wait=5", 5),
        ('WAIT = "7"; x=y', 7),
        (",,wait=90", 60),
        ("wait=", None),
    ],
)
def test_preferences_are_read_in_linear_time(value: str, seconds: int | None) -> None:
    began = time.perf_counter()
    assert wait_seconds({"prefer": value}, 60) == seconds
    assert time.perf_counter() - began < 0.1  # 3.5 s before


@pytest.mark.parametrize("octets", [16 * 1024 + 1, 20_000, 60_000])
async def test_a_head_that_arrives_in_one_read_may_not_be_longer_than_its_limit(server: Started, octets: int) -> None:
    async with await server.connect() as stream:
        head = b"GET / HTTP/1.1\r\n" + HOST + b"x: "
        await stream.send_all(head + b"a" * (octets - len(head) - 4) + b"\r\n\r\n")
        assert (await read_answer(stream))[0] == 431
        assert await ends(stream)


async def test_a_head_of_the_longest_length_is_accepted(server: Started) -> None:
    async with await server.connect() as stream:
        head = b"GET / HTTP/1.1\r\n" + HOST + b"x: "
        await stream.send_all(head + b"a" * (16 * 1024 - len(head) - 4) + b"\r\n\r\n")
        assert (await read_answer(stream))[0] == 200


async def test_a_pipelined_head_may_not_be_longer_either(server: Started) -> None:
    async with await server.connect() as stream:
        body = b"x" * 40_000
        first = b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 40000\r\n\r\n" + body
        await stream.send_all(first + b"GET / HTTP/1.1\r\n" + HOST + b"x: " + b"a" * 50_000 + b"\r\n\r\n")
        status, _, echoed = await read_answer(stream)
        assert (status, echoed) == (200, body)
        assert (await read_answer(stream))[0] == 431


async def test_a_head_of_very_many_lines_is_refused_before_it_is_parsed(server: Started) -> None:
    async with await server.connect() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n" + HOST + b"a:\r\n" * 3_000 + b"\r\n")
        assert (await read_answer(stream))[0] == 431


async def test_a_trailer_may_not_be_longer_than_a_head(server: Started) -> None:
    async with await server.connect() as stream:
        head = b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
        await stream.send_all(head + b"0\r\n" + b"a: b\r\n" * 10_000 + b"\r\n")
        assert (await read_answer(stream))[0] == 431


async def test_a_message_with_two_lengths_closes_the_connection(server: Started) -> None:
    """RFC 9112 section 6.1: MUST, since another server on the way may have seen another end of the request."""
    async with await server.connect() as stream:
        head = b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
        await stream.send_all(head + b"1\r\nx\r\n0\r\n\r\n" + b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        status, headers, body = await read_answer(stream)
        assert (status, headers["connection"], body) == (200, "close", b"x")
        assert await stream.receive_some() == b""


@pytest.mark.parametrize("empty", [b"\r\n", b"\r\n\r\n", b"\n", b"\r\n" * 30_000])
async def test_empty_lines_before_a_request_are_ignored(server: Started, empty: bytes) -> None:
    """RFC 9112 section 2.2."""
    async with await server.connect() as stream:
        for _ in range(2):
            await stream.send_all(empty + b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 1\r\n\r\nx")
            assert (await read_answer(stream))[2] == b"x"


async def test_chunks_of_an_octet_cost_one_message_for_each_read(nursery) -> None:  # type: ignore[no-untyped-def]
    messages = 0

    async def count(scope, receive, send):  # type: ignore[no-untyped-def]
        nonlocal messages
        more = True
        while more:
            messages += 1
            more = (await receive())["more_body"]
        await answer(send)

    server = await starter(nursery, None)(count)
    async with await server.connect() as stream:
        head = b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
        await stream.send_all(head + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
        assert (await read_answer(stream))[0] == 200
    assert messages < 200


async def test_the_host_of_an_absolute_target_counts() -> None:
    """RFC 9112 section 3.2.2: MUST, the Host header is ignored."""
    rig = Rig(hosts=frozenset({"a.example"}))
    assert (await rig.ask("GET", "https://a.example:8443/wide", headers={"host": "evil.example"})).status == 200
    assert (await rig.ask("GET", "https://evil.example/wide", headers={"host": "a.example"})).status == 400
    assert (await rig.ask("GET", "https://a.example@evil.example/wide", headers={"host": "a.example"})).status == 400


def test_a_lack_of_memory_is_answered_with_503() -> None:
    refusal = problems.classify(MemoryError())
    assert isinstance(refusal, Busy)
    assert refusal.status == 503


async def test_the_public_listener_refuses_a_host_that_is_not_the_providers(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,):
        ask = InMemory(make_listeners(a.services)["public"].app)
        for host, status in (("a.example", 200), ("A.example:443", 200), ("evil.example", 400), ("127.0.0.1", 400)):
            answered = await ask.ask("GET", "/.well-known/mimi-ds", b"", {"host": host})
            assert (host, answered.status) == (host, status)
