"""docs/stream.md is true: what it says of frames, problems and close codes, tried by a client written from it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mimids.testing import PretendGroup, Provider, Session, federation
from mimids.wire.declare import encode
from tests.support.plain_client import plain_client

client = plain_client()
A, B = "a.example", "b.example"
SECONDS = 20  # to wait for a frame that must come

_opened: list[Any] = []  # connections to close at the end of a test


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def open_stream(device: Any) -> Any:
    stream = client.Stream(device)
    _opened.append(stream)
    return stream


@pytest.fixture(name="providers", scope="module")
def _providers(mimids_session: Session) -> Iterator[tuple[Provider, Provider]]:
    with federation(A, B, session=mimids_session) as (a, b):
        a.add_device("alice")
        b.add_device("bob")
        yield a, b


@pytest.fixture(name="alice")
def _alice(providers: tuple[Provider, Provider]) -> Any:
    a, _ = providers
    return api(a, "alice")


@pytest.fixture(name="bob")
def _bob(providers: tuple[Provider, Provider]) -> Any:
    _, b = providers
    return api(b, "bob")


def api(provider: Provider, user: str) -> Any:
    """Return the requests of a new device of a user."""
    number = len(provider.command("device list", user=user)["devices"])
    account = provider.add_device(user, f"device{number}")
    made = client.Api(account.url, account.token, account.ca_file, SECONDS)
    made.device = account.name
    _opened.append(made.connection)
    return made


def created(alice: Any) -> PretendGroup:
    group = PretendGroup.at(A)
    alice("POST", "groups", encode(group.creation()))
    return group


def said(group: PretendGroup, *texts: bytes) -> list[bytes]:
    return [encode(group.message(text)) for text in texts]


def octets(request: bytes, group: PretendGroup) -> bytes:
    return request.removesuffix(group.key.reveal())


def arrived(stream: Any, count: int) -> list[tuple[int, int, Any]]:
    return [stream.next() for _ in range(count)]


def ping(stream: Any) -> None:
    """See that a stream works and that no frame was waiting: acknowledge nothing, then get refused."""
    frame = stream.write(client.RESULT, client.vector(b""))
    kind, answered, problem = stream.next()
    assert (kind, answered, problem.code) == (client.PROBLEM, frame, "malformed")


def test_the_handshake_in_the_document_opens_a_stream(alice: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "stream.md").read_text()
    asked, answered = re.findall(r"```text\n(.*?)```", text, re.DOTALL)[:2]
    raw = alice.tls.wrap_socket(socket.create_connection((alice.host, alice.port), SECONDS), server_hostname=alice.host)
    _opened.append(raw)
    asked = asked.replace("Bearer DEVICE_TOKEN", alice.headers["Authorization"])
    raw.sendall((asked + "\n").replace("\n", "\r\n").encode())
    reader = raw.makefile("rb")
    _opened.append(reader)
    lines = [reader.readline().decode().strip().lower() for _ in range(4)]
    assert set(lines) == {line.lower() for line in answered.splitlines()}


def test_what_is_no_frame_is_refused_and_the_stream_goes_on(alice: Any) -> None:
    stream = open_stream(alice)
    stream.socket.write(b"\x00\x00\x00\x07\x01")
    kind, frame, problem = stream.next()
    assert (kind, frame, problem.code) == (client.PROBLEM, 0, "malformed")
    ping(stream)


def test_frames_that_change_nothing_are_not_answered(alice: Any) -> None:
    stream = open_stream(alice)
    stream.acknowledge(12345)
    stream.write(2, client.vector(bytes(16)))  # withdraw
    ping(stream)


def test_results_and_messages_come_with_the_counters_that_the_document_says(alice: Any) -> None:
    group = created(alice)
    stream = open_stream(alice)
    stream.present(A, group.key.reveal())
    first, second = said(group, b"1", b"2")
    frame = stream.send(A, first, second)
    frames = arrived(stream, 2)
    (result,) = [each for each in frames if each[0] == client.RESULT]
    (page,) = [each for each in frames if each[0] == client.MESSAGES]
    assert result[1:] == (frame, [0, 1])
    assert page[1] == 0
    assert (page[2].counter, page[2].next_counter) == (0, 2)
    assert page[2].messages == [(octets(each, group), None) for each in (first, second)]


def test_a_stream_continues_after_a_loss_as_in_the_example(alice: Any) -> None:
    group = created(alice)
    key = group.key.reveal()
    earlier, own = said(group, b"0", b"1", b"2"), said(group, b"3", b"4")
    stream = open_stream(alice)
    stream.send(A, *earlier)
    assert stream.next()[2] == [0, 1, 2]
    stream.present(A, key)
    assert stream.next()[2].next_counter == 3
    stream.send(A, *own)
    stream.socket.socket.close()

    stream = open_stream(alice)
    stream.present(A, key, 3)
    frame = stream.send(A, *own)
    found: list[bytes] = []
    results: list[int] = []
    while len(found) < 2 or not results:
        kind, answered, content = stream.next()
        if kind == client.RESULT:
            assert answered == frame
            results = content
        else:
            assert content.counter == 3 + len(found)
            found += [message for message, _ in content.messages]
    assert found == [octets(each, group) for each in own]
    assert results == [3, 4]


def test_a_message_that_is_refused_does_not_stop_those_after_it(alice: Any) -> None:
    group = created(alice)
    stream = open_stream(alice)
    stream.send(A, *said(PretendGroup.at(A), b"of a group that nobody created"), *said(group, b"1"))
    with pytest.raises(client.Problem, match="unknown-group"):
        stream.next()
    stream.present(A, group.key.reveal())
    assert stream.next()[2].next_counter == 1


def test_an_unknown_key_stays_presented(alice: Any) -> None:
    group = created(alice)
    commit, following = group.commit()
    stream = open_stream(alice)
    frame = stream.present(A, following.key.reveal())
    kind, answered, problem = stream.next()
    assert (kind, answered, problem.code) == (client.PROBLEM, frame, "unknown-partition")
    other = open_stream(alice)
    other.send(A, encode(commit), *said(following, b"new"))
    assert other.next()[2] == [0, 0]
    kind, answered, page = stream.next()
    assert (kind, answered, page.counter, len(page.messages)) == (client.MESSAGES, 0, 0, 1)


def test_an_unknown_key_of_another_hub_stays_presented(alice: Any, bob: Any) -> None:
    group = created(alice)
    commit, following = group.commit()
    stream = open_stream(bob)
    stream.present(A, group.key.reveal())
    frame = stream.present(A, following.key.reveal())
    kind, answered, problem = stream.next()
    assert (kind, answered, problem.code) == (client.PROBLEM, frame, "unknown-partition")
    other = open_stream(alice)
    other.send(A, encode(commit), *said(following, b"new"))
    pages = [stream.next()[2], stream.next()[2]]
    assert [page.partition for page in pages] == [group.key.mask(32), following.key.mask(32)]
    assert pages[0].messages[0][1] == following.key.mask(32)


def test_the_next_key_may_be_presented_before_one_s_own_commit(alice: Any, bob: Any) -> None:
    group = created(alice)
    commit, following = group.commit()
    stream = open_stream(bob)
    stream.present(A, following.key.reveal())
    assert stream.next()[2].code == "unknown-partition"
    frame = stream.send(A, encode(commit), *said(following, b"new"))
    frames = arrived(stream, 2)
    assert {(kind, answered) for kind, answered, _ in frames} == {(client.RESULT, frame), (client.MESSAGES, 0)}


def test_a_counter_beyond_the_end_withdraws_the_key(alice: Any) -> None:
    group = created(alice)
    stream = open_stream(alice)
    frame = stream.present(A, group.key.reveal(), 5)
    kind, answered, problem = stream.next()
    assert (kind, answered, problem.code) == (client.PROBLEM, frame, "counter-ahead")
    assert problem.members["next_counter"] == 0
    stream.send(A, *said(group, b"1"))
    assert stream.next()[2] == [0]
    ping(stream)
    stream.present(A, group.key.reveal(), problem.members["next_counter"])
    assert stream.next()[2].next_counter == 1


def test_too_many_positions_are_malformed(alice: Any) -> None:
    stream = open_stream(alice)
    many = b"".join(client.uint(16, index) + client.uint(4, 0) for index in range(4097))
    stream.write(client.PRESENT, client.vector(A.encode()) + client.vector(many))
    kind, frame, problem = stream.next()
    assert (kind, frame, problem.code) == (client.PROBLEM, 0, "malformed")


def test_a_hub_that_is_not_known_refuses_the_frame(alice: Any) -> None:
    stream = open_stream(alice)
    group = PretendGroup.at("nowhere.example")
    frame = stream.send("nowhere.example", *said(group, b"1"))
    kind, answered, problem = stream.next()
    assert (kind, answered, problem.code) == (client.PROBLEM, frame, "provider-not-allowed")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x80" + bytes(4), 1003),  # a text message
        (b"\x82\x01\x00", 1002),  # without a mask
        (b"\xc2\x80" + bytes(4), 1002),  # a reserved bit
        (b"\x82\xff" + (8 << 20).to_bytes(8, "big") + bytes(4), 1009),
    ],
)
def test_each_close_code_has_the_reason_that_the_document_says(alice: Any, frame: bytes, code: int) -> None:
    stream = open_stream(alice)
    stream.socket.socket.sendall(frame)
    if code == 1009:
        stream.socket.socket.sendall(bytes(5 << 20))
    with pytest.raises(ConnectionError, match=f"closed with {code}"):
        stream.next()


def test_many_control_frames_close_the_stream(alice: Any) -> None:
    stream = open_stream(alice)
    stream.socket.socket.sendall((b"\x8a\x80" + bytes(4)) * 300)
    with pytest.raises(ConnectionError, match="closed with 1008"):
        stream.next()


def test_one_stream_too_many_ends_the_most_silent_one(alice: Any) -> None:
    streams = [open_stream(alice) for _ in range(4)]
    for stream in streams[1:]:
        ping(stream)
    ping(open_stream(alice))
    with pytest.raises(ConnectionError, match="closed with 1008"):
        streams[0].next()
    ping(streams[1])


def test_a_device_that_is_removed_is_closed_with_1008_and_then_refused(
    providers: tuple[Provider, Provider], alice: Any
) -> None:
    a, _ = providers
    stream = open_stream(alice)
    ping(stream)
    a.command("device remove", user="alice", name=alice.device)
    with pytest.raises(ConnectionError, match="closed with 1008"):
        stream.next()
    with pytest.raises(client.Problem, match="401 unauthenticated"):
        open_stream(alice)


def test_a_server_that_restarts_closes_streams_with_1001(mimids_session: Session) -> None:
    with federation(A, session=mimids_session) as (a,):
        account = a.add_device("alice")
        stream = open_stream(client.Api(account.url, account.token, account.ca_file, SECONDS))
        ping(stream)
        a.terminate()
        with pytest.raises(ConnectionError, match="closed with 1001"):
            stream.next()
