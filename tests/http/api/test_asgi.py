"""WebSockets, from the handshake to the end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from mimids.http.api.asgi import Message
from tests.support.inmemory import Answered, InMemory
from tests.support.table_rig import Rig


class Peer:
    """The client of a WebSocket: sends all of `messages`, and keeps what it receives."""

    def __init__(self, *messages: bytes | str) -> None:
        self._says: list[Message] = [{"type": "websocket.connect"}]
        for message in messages:
            text = message if isinstance(message, str) else None
            octets_ = message if isinstance(message, bytes) else None
            self._says.append({"type": "websocket.receive", "bytes": octets_, "text": text})
        self.heard: list[Message] = []

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        return self._says.pop(0) if self._says else {"type": "websocket.disconnect", "code": 1000}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.heard.append(message)

    @property
    def said(self) -> list[bytes]:
        return [message["bytes"] for message in self.heard if message["type"] == "websocket.send"]

    @property
    def refusal(self) -> Answered:
        start, body = self.heard
        assert start["type"] == "websocket.http.response.start"
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return Answered(start["status"], headers, body["body"])


async def chat(rig: Rig, target: str, peer: Peer, *, good: bool = True, protocols: Sequence[str] = ()) -> Peer:
    scope = InMemory(rig.app).websocket(target, {"authorization": "Bearer good" if good else "Bearer bad"}, protocols)
    await rig.app(scope, peer.receive, peer.send)
    return peer


async def test_a_websocket_is_closed_when_its_handler_returns(rig: Rig) -> None:
    peer = await chat(rig, "/chat", Peer(b"one", b"two", b"bye"))
    assert peer.said == [b"ONE", b"TWO"]
    assert peer.heard[-1] == {"type": "websocket.close", "code": 1000, "reason": ""}
    assert (rig.last["route"], rig.last["code"]) == ("chat", "ok")


async def test_a_handler_ends_when_the_client_has_closed_the_websocket(rig: Rig) -> None:
    await chat(rig, "/chat", Peer(b"one"))
    assert rig.handlers.stream_closed
    assert rig.last["code"] == "closed"


async def test_a_text_message_closes_the_websocket(rig: Rig) -> None:
    peer = await chat(rig, "/chat", Peer("text"))
    assert peer.heard[-1]["code"] == 1003


async def test_an_unknown_caller_gets_no_websocket(rig: Rig) -> None:
    refusal = (await chat(rig, "/chat", Peer(), good=False)).refusal
    assert (refusal.status, refusal.problem) == (401, "unauthenticated")


async def test_a_handler_may_refuse_the_handshake(rig: Rig) -> None:
    refusal = (await chat(rig, "/no-chat", Peer())).refusal
    assert (refusal.status, refusal.problem) == (429, "rate-limited")


async def test_websockets_and_requests_are_refused_at_endpoints_of_the_other_kind(rig: Rig) -> None:
    assert (await chat(rig, "/wide", Peer())).refusal.status == 400
    assert (await chat(rig, "/nope", Peer())).refusal.status == 404
    assert (await rig.ask("GET", "/chat", headers={"authorization": "Bearer good"})).status == 400


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([], None), (["mimids.bearer.good"], "mimids.bearer.good"), (["mimids.bearer.good", "mimids"], "mimids")],
)
async def test_the_server_chooses_one_of_the_subprotocols_that_a_browser_offers(
    rig: Rig, offered: list[str], chosen: str | None
) -> None:
    peer = await chat(rig, "/chat", Peer(b"bye"), protocols=offered)
    assert peer.heard[0]["subprotocol"] == chosen
