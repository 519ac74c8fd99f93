"""An answer is read from octets, however they are cut; what is malformed or too large is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.http.peers.answers import HttpAnswer
from mimids.http.peers.exchange import (
    HEAD_OCTETS,
    PROBLEM_OCTETS,
    AnswerReader,
    AnswerTooLarge,
    BrokenConnection,
    peer_request,
)
from mimids.wire.ids import ProviderId

B = ProviderId("b.example")
MOST = 1_000_000
PLAIN = b"HTTP/1.1 200 OK\r\nDate: x\r\nA: 1\r\na: 2 \r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nA: 3\r\n\r\n"
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\n\r\nhello"


def read(*pieces: bytes, most: int = MOST, ends: bool = False) -> AnswerReader:
    reader = AnswerReader(most)
    for piece in pieces:
        reader.feed(piece)
    if ends:
        reader.end()
    return reader


def test_a_request_has_its_headers_and_length() -> None:
    request = peer_request(B, "POST", "/x?y", b"body", "a/b", [("from", "mimi@a.example")])
    head = "POST /x?y HTTP/1.1\r\nhost: b.example\r\nuser-agent: mimids\r\nfrom: mimi@a.example\r\n"
    assert request.head.decode() == f"{head}content-type: a/b\r\ncontent-length: 4\r\n\r\n"
    assert request.body == b"body"
    assert b"content" not in peer_request(B, "GET", "/x", b"", "a/b").head
    assert b"content-length: 0\r\n" in peer_request(B, "PUT", "/x", b"", "a/b").head


@pytest.mark.parametrize("path", ["", "x", "/x y", "/x\r\nA: b", "/x\n", "/\x7f", "/é"])
def test_a_request_has_no_target_that_ends_its_line(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        peer_request(B, "GET", path, b"", "a/b")


@given(cuts=st.sets(st.integers(1, len(PLAIN) - 1)))
def test_an_answer_may_come_in_any_pieces(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(PLAIN)]
    reader = read(*(PLAIN[start:end] for start, end in pairwise(edges)))
    assert reader.is_complete
    assert reader.keeps_connection
    assert reader.answer() == HttpAnswer(200, {"date": "x", "a": "1, 2", "content-length": "5"}, b"hello")


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_body_may_be_chunked_and_its_trailers_are_ignored(piece: int) -> None:
    reader = read(*(CHUNKED[at : at + piece] for at in range(0, len(CHUNKED), piece)))
    assert reader.keeps_connection
    assert reader.answer() == HttpAnswer(200, {"transfer-encoding": "Chunked"}, b"hello")


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    reader = read(UNTIL_THE_END)
    assert not reader.is_complete
    reader.end()
    assert (reader.is_complete, reader.keeps_connection) == (True, False)
    assert reader.answer() == HttpAnswer(200, {}, b"hello")


@pytest.mark.parametrize("octets", [b"", PLAIN[:30], PLAIN[:-1], CHUNKED[:-3], b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_answer_that_is_cut_off_is_none(octets: bytes) -> None:
    with pytest.raises(BrokenConnection, match="before the end"):
        read(octets, ends=True)


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_of_a_status_without_body_is_complete_with_its_head(status: int) -> None:
    reader = read(b"HTTP/1.1 %d x\r\n\r\n" % status)
    assert reader.is_complete
    assert reader.answer() == HttpAnswer(status, {}, b"")


def test_interim_answers_are_passed_over() -> None:
    reader = read(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 3 + b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN)
    assert reader.answer() == read(PLAIN).answer()
    with pytest.raises(BrokenConnection, match="too large"):
        read(b"HTTP/1.1 103 Early Hints\r\n\r\n" * (HEAD_OCTETS // 26))


@pytest.mark.parametrize(
    "head",
    [
        b"connection: close",
        b"connection: x, Close",
        b"proxy-connection: close\r\nconnection: close",
    ],
)
def test_a_connection_that_the_peer_closes_is_not_kept(head: bytes) -> None:
    reader = read(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n%b\r\n\r\n" % head)
    assert reader.is_complete
    assert not reader.keeps_connection


@pytest.mark.parametrize("more", [PLAIN, b"x", b"HTTP", b"\0"])
@pytest.mark.parametrize("head", [b"", b"connection: close\r\n"])
def test_octets_after_an_answer_are_not_part_of_it_and_end_the_connection(head: bytes, more: bytes) -> None:
    reader = read(b"HTTP/1.1 404 x\r\n%bcontent-length: 2\r\n\r\nno" % head + more)
    assert not reader.keeps_connection
    answer = reader.answer()
    assert (answer.status, answer.body) == (404, b"no")


@pytest.mark.parametrize(
    "octets",
    [
        b"\0",
        b"SSH-2.0-x\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 x\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: \0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nxy\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    ],
)
def test_a_malformed_answer_is_refused(octets: bytes) -> None:
    with pytest.raises(BrokenConnection):
        read(octets)


@pytest.mark.parametrize(
    "octets",
    [
        b"HTTP/1.1 200 " + b"x" * HEAD_OCTETS,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * (HEAD_OCTETS // 6),
        b"HTTP/1.1 200 OK\r\na: " + b"b" * HEAD_OCTETS,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;" + b"x" * HEAD_OCTETS,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * (HEAD_OCTETS // 6),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * HEAD_OCTETS,
    ],
    ids=["reason", "headers", "header", "extension", "trailers", "chunks"],
)
def test_a_head_without_end_is_refused(octets: bytes) -> None:
    with pytest.raises(BrokenConnection):
        read(*(octets[at : at + 1000] for at in range(0, len(octets), 1000)))


@pytest.mark.parametrize(("status", "most"), [(200, 100_000), (404, PROBLEM_OCTETS)])
@pytest.mark.parametrize("framing", [b"content-length: %d", b"transfer-encoding: chunked", b"a: b"])
def test_a_body_beyond_its_limit_is_refused(status: int, most: int, framing: bytes) -> None:
    for octets in (most, most + 1):
        head = b"HTTP/1.1 %d x\r\n%b\r\n\r\n" % (status, framing % octets if b"%" in framing else framing)
        reader = AnswerReader(100_000)
        reader.feed(head)
        if framing.startswith(b"transfer"):
            reader.feed(b"%x\r\n" % octets)
        reader.feed(bytes(most))
        if octets > most:
            with pytest.raises(AnswerTooLarge):
                reader.feed(b"x")
