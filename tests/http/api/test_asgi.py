"""WebSockets, from the handshake to the end."""

from __future__ import annotations

import pytest

from tests.support.table_rig import Rig
from tests.support.websocket_peer import Peer, chat


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
    [([], None), (["mimids.bearer.good"], None), (["mimids.bearer.good", "mimids"], "mimids")],
)
async def test_the_server_chooses_a_subprotocol_that_holds_no_token(
    rig: Rig, offered: list[str], chosen: str | None
) -> None:
    peer = await chat(rig, "/chat", Peer(b"bye"), protocols=offered)
    assert peer.heard[0]["subprotocol"] == chosen
