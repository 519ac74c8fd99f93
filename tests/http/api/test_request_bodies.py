"""Receiving and decoding bodies within their limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from mimids.errors import Malformed
from mimids.http.api.asgi import Message
from mimids.http.api.bodies import Body
from mimids.http.api.request_bodies import decode
from mimids.http.media_types import MIMI_DS
from tests.support.inmemory import InMemory
from tests.support.table_rig import LIMIT, PLAIN, Rig


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/json", "application/octet-stream2"])
async def test_a_wrong_media_type_is_refused(rig: Rig, media_type: str) -> None:
    answer = await rig.ask("POST", "/echo", b"x", {"content-type": media_type})
    assert (answer.status, answer.problem) == (415, "unsupported-media-type")
    assert not rig.handlers.calls


async def test_parameters_and_case_of_a_media_type_do_not_matter(rig: Rig) -> None:
    answer = await rig.ask("POST", "/echo", b"x", {"content-type": "Application/Octet-Stream; v=1"})
    assert answer.status == 200


@pytest.mark.parametrize("pieces", [[b"x" * 101], [b"x" * 60, b"x" * 60], [b"x"] * 101], ids=["one", "two", "many"])
async def test_a_chunked_body_is_cut_off_at_its_limit(rig: Rig, pieces: list[bytes]) -> None:
    answer = await rig.ask("POST", "/echo", pieces, PLAIN)
    assert (answer.status, answer.problem) == (413, "too-large")
    assert answer.json()["limit"] == "limit"
    assert not rig.handlers.calls


async def test_a_body_as_large_as_its_limit_is_accepted(rig: Rig) -> None:
    for body in (b"x" * LIMIT, [b"x" * 60, b"x" * 40]):
        assert (await rig.ask("POST", "/echo", body, PLAIN)).body == b"x" * LIMIT


async def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    rig = Rig(body_seconds=0)
    answer = await rig.ask("POST", "/echo", [b"x"], PLAIN | {"content-length": "101"})
    assert (answer.problem, answer.json()["octets"]) == ("too-large", 101)


async def test_a_body_that_does_not_arrive_times_out(autojump_clock: trio.testing.MockClock) -> None:
    rig = Rig()
    scope: dict[str, Any] = InMemory(rig.app)._scope("http", "/echo", PLAIN) | {"method": "POST"}
    sent: list[Message] = []

    async def receive() -> Message:
        await trio.sleep(3)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    await rig.app(scope, receive, send)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["type"] == "urn:mimids:problem:request-timeout"
    assert trio.current_time() <= 12


async def test_an_incomplete_body_reaches_no_handler(rig: Rig) -> None:
    scope: dict[str, Any] = InMemory(rig.app)._scope("http", "/echo", PLAIN) | {"method": "POST"}
    messages: list[Message] = [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        pass

    await rig.app(scope, receive, send)
    assert not rig.handlers.calls
    assert rig.last["code"] == "closed"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (bytes(3), "ReceiveRequest.partition_key: truncated"),
        (bytes(19), "ReceiveRequest.counter: truncated"),
        (bytes(21), "ReceiveRequest: trailing bytes"),
    ],
)
async def test_the_answer_to_a_malformed_body_names_the_place_and_echoes_nothing(
    rig: Rig, body: bytes, place: str
) -> None:
    answer = await rig.ask("POST", "/receive", body, {"content-type": MIMI_DS})
    assert (answer.status, answer.problem, answer.json()["detail"]) == (400, "malformed", place)


def test_deeply_nested_json_is_malformed() -> None:
    body = Body("application/json", json.loads, lambda value: b"", "report")
    with pytest.raises(Malformed, match="must be report"):
        decode(body, b"[" * 100_000)
