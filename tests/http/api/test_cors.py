"""Pages of other origins: what a browser is told, and which pages get a stream."""

from __future__ import annotations

import pytest

from mimids.http.api.cors import Cors
from mimids.http.api.devices import DEVICES
from tests.support.table_rig import PLAIN, Rig
from tests.support.websocket_peer import Peer, chat

PAGE = "https://chat.example"
OTHERS = ["https://chat.example:8443", "http://chat.example", "https://CHAT.example", "https://x.chat.example", "null"]
ALLOWED = "access-control-allow-origin"


@pytest.fixture
def open_to_page() -> Rig:
    return Rig(cors=Cors([PAGE]))


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("POST", "/echo", b"hello", 200),
        ("POST", "/echo", b"x" * 200, 413),
        ("PUT", "/echo", b"", 405),
        ("GET", "/nowhere", b"", 404),
        ("GET", "/refuse", b"", 403),
        ("GET", "/limit", b"", 429),
        ("GET", "/fail", b"", 500),
        ("POST", "/client/v1/x", b"", 401),
        ("GET", "/chat", b"", 400),
        ("OPTIONS", "/echo", b"", 204),
    ],
)
async def test_every_answer_names_the_origin_of_a_page_that_is_listed(
    method: str, target: str, body: bytes, status: int, open_to_page: Rig
) -> None:
    answer = await open_to_page.ask(method, target, body, {**PLAIN, "origin": PAGE})
    assert (answer.status, answer.headers[ALLOWED], answer.headers["vary"]) == (status, PAGE, "Origin")
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"retry-after", "date", "mimids-keys-signature", "mimids-linear"} <= set(exposed)


@pytest.mark.parametrize("origin", [*OTHERS, None])
async def test_no_answer_names_another_origin(origin: str | None, open_to_page: Rig) -> None:
    headers = PLAIN if origin is None else {**PLAIN, "origin": origin}
    for method, target in (("POST", "/echo"), ("OPTIONS", "/echo"), ("GET", "/refuse")):
        answer = await open_to_page.ask(method, target, b"", headers | {"access-control-request-method": "POST"})
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["vary"] == "Origin"  # a cache must not give this answer to the page


async def test_by_default_browsers_are_told_nothing(rig: Rig) -> None:
    answer = await rig.ask("POST", "/echo", b"", {**PLAIN, "origin": PAGE})
    assert not {"vary", ALLOWED} & set(answer.headers)


async def test_a_preflight_is_answered_from_the_table_without_a_token(open_to_page: Rig) -> None:
    asked = {
        "origin": PAGE,
        "access-control-request-method": "PUT",
        "access-control-request-headers": "authorization,content-type",
    }
    answer = await open_to_page.ask("OPTIONS", "/receive", b"", asked)
    assert answer.status == 204
    assert answer.headers["access-control-allow-methods"] == "POST, PUT"
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type, prefer"
    assert int(answer.headers["access-control-max-age"]) > 0
    assert "access-control-allow-credentials" not in answer.headers
    of_a_device = await open_to_page.ask("OPTIONS", "/client/v1/x", b"", asked)
    assert (of_a_device.status, of_a_device.headers["access-control-allow-methods"]) == (204, "POST")


async def test_a_preflight_of_a_path_that_is_not_there_fails(open_to_page: Rig) -> None:
    answer = await open_to_page.ask(
        "OPTIONS", "/nowhere", b"", {"origin": PAGE, "access-control-request-method": "GET"}
    )
    assert (answer.status, "access-control-allow-methods" in answer.headers) == (404, False)


@pytest.mark.parametrize("origin", OTHERS)
async def test_a_page_that_is_not_listed_gets_no_stream(origin: str, open_to_page: Rig) -> None:
    peer = await chat(open_to_page, "/chat", Peer(), origin=origin)
    assert (peer.refusal.status, peer.refusal.problem) == (403, "origin-not-allowed")


@pytest.mark.parametrize("origin", [None, PAGE])
async def test_a_page_that_is_listed_gets_a_stream_and_so_does_a_client_without_origin(
    origin: str | None, open_to_page: Rig
) -> None:
    protocols = ["mimids.1", "mimids.bearer.x"]
    peer = await chat(open_to_page, "/chat", Peer(b"hello", b"bye"), protocols=protocols, origin=origin)
    assert peer.said == [b"HELLO"]
    assert peer.heard[0] == {"type": "websocket.accept", "subprotocol": "mimids.1", "headers": []}


async def test_by_default_no_page_gets_a_stream(rig: Rig) -> None:
    assert (await chat(rig, "/chat", Peer(), origin=PAGE)).refusal.problem == "origin-not-allowed"


def test_every_header_that_a_device_sends_and_each_method_is_allowed() -> None:
    allowed = dict(Cors([PAGE]).preflight({"origin": PAGE, "access-control-request-method": "GET"}, ["GET"]))
    assert allowed[b"access-control-allow-headers"] == b"authorization, content-type, prefer"
    assert {row.method for row in DEVICES} <= {"GET", "POST", "PUT", "DELETE"}
