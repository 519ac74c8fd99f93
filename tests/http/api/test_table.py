"""The adapter, with rows of its own: every step refuses in its own words, and no step is skipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from mimids.errors import Malformed, PolicyRefused, RateLimited, Unauthenticated
from mimids.http.api.asgi import Message, application
from mimids.http.api.endpoints import (
    MIMI_DS,
    Access,
    Answer,
    Body,
    Call,
    Endpoint,
    Listener,
    StreamClosed,
    WebSocketStream,
    mimi_ds,
    octets,
)
from mimids.http.api.table import Table
from mimids.values import Anyone, Caller, Follower
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import ReceiveRequest, ResumeRequest
from tests.support.doubles import SpyLog
from tests.support.inmemory import Answered, InMemory

OCTETS = octets("application/octet-stream")
PLAIN = {"content-type": "application/octet-stream"}
RECEIVE = mimi_ds(ReceiveRequest)
LIMIT = 100


class Handlers:
    """What the rows below do; `calls` is what reached them."""

    def __init__(self) -> None:
        self.calls: list[Call[Any]] = []
        self.stream_closed = False

    async def echo(self, _: object, call: Call[bytes]) -> bytes:
        self.calls.append(call)
        return call.body

    async def take(self, _: object, call: Call[Any]) -> None:
        self.calls.append(call)

    async def refuse(self, _: object, call: Call[Any]) -> None:
        raise PolicyRefused("muted in this fork", rule="muted", section="6.8")

    async def limit(self, _: object, call: Call[Any]) -> None:
        raise RateLimited("device_sends_per_second", 7)

    async def fail(self, _: object, call: Call[Any]) -> None:
        raise RuntimeError("the secret is 42")

    async def wide(self, _: object, call: Call[Any]) -> Answer[bytes]:
        return Answer(b"wide", headers={"Cache-Control": "no-store"})

    async def chat(self, _: object, call: Call[WebSocketStream]) -> None:
        try:
            while (message := await call.body.receive()) != b"bye":
                await call.body.send(message.upper())
        except StreamClosed:
            self.stream_closed = True
            raise

    async def no_chat(self, _: object, call: Call[WebSocketStream]) -> None:
        raise RateLimited("device_streams", 1)


def rows(handlers: Handlers) -> list[Endpoint]:
    def row(name: str, method: str, path: str, handler: Any, **more: Any) -> Endpoint:
        request: Body[Any] | None = more.pop("request", OCTETS)
        answer: Body[Any] | None = more.pop("answer", OCTETS)
        access: Access = more.pop("access", Access.ANYONE)
        return Endpoint(name, Listener.PUBLIC, method, path, access, request, answer, handler, "", "limit", **more)

    return [
        row("echo", "POST", "/echo", handlers.echo),
        row("receive", "POST", "/receive", handlers.take, request=RECEIVE, answer=None),
        row("resume", "PUT", "/receive", handlers.take, request=mimi_ds(ResumeRequest), answer=None),
        row("provider", "POST", "/ds/v1/x", handlers.take, access=Access.PROVIDER, answer=None),
        row("device", "POST", "/client/v1/x", handlers.take, access=Access.DEVICE, answer=None),
        row("item", "GET", "/groups/{group}/items/{item}", handlers.take, request=None, answer=None, query=("bundle",)),
        row("refuse", "GET", "/refuse", handlers.refuse, request=None),
        row("limit", "GET", "/limit", handlers.limit, request=None, access=Access.PROVIDER),
        row("fail", "GET", "/fail", handlers.fail, request=None),
        row("wide", "GET", "/wide", handlers.wide, request=None),
        row("gateway", "POST", "/gateway", handlers.echo, unlinkable=True),
        row("chat", "GET", "/chat", handlers.chat, request=None, answer=None, websocket=True, access=Access.DEVICE),
        row("no-chat", "GET", "/no-chat", handlers.no_chat, request=None, answer=None, websocket=True),
    ]


class Rig:
    """The rows above, in memory, with the log and all that reached a handler."""

    def __init__(self, *, hosts: frozenset[str] | None = None, body_seconds: float = 5) -> None:
        self.handlers = Handlers()
        self.log = SpyLog()

        async def admit(access: Access, headers: Any, names: Any) -> Caller:
            if access is Access.PROVIDER:
                return Follower(ProviderId("b.example"))
            if access is Access.DEVICE and headers.get("authorization") != "Bearer good":
                raise Unauthenticated
            return Anyone()

        def stamp(caller: Caller) -> Sequence[tuple[bytes, bytes]]:
            return [(b"mimids-arrangement-revision", b"7")] if isinstance(caller, Follower) else []

        self.app = application(
            Table(
                rows(self.handlers),
                None,
                limits={"limit": LIMIT},
                admit=admit,
                telemetry=self.log.telemetry,
                body_seconds=body_seconds,
                stamp=stamp,
                hosts=hosts,
            )
        )
        self.ask = InMemory(self.app).ask

    @property
    def last(self) -> dict[str, Any]:
        """The last request's log line."""
        return [line for line in self.log.lines if line["event"] == "request"][-1]


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_handler_gets_the_typed_value_and_its_answer_is_encoded(rig: Rig) -> None:
    request = RECEIVE.read(bytes(16) + (5).to_bytes(4, "big"))
    answer = await rig.ask("POST", "/receive", RECEIVE.write(request), {"content-type": MIMI_DS})
    assert (answer.status, answer.body) == (200, b"")
    (call,) = rig.handlers.calls
    assert call.body == request
    assert call.body.counter == Counter(5)


async def test_parts_in_braces_are_decoded_and_unknown_query_keys_ignored(rig: Rig) -> None:
    await rig.ask("GET", "/groups/a%2Fb/items/%C3%A9?bundle&partition=x&foo=1")
    (call,) = rig.handlers.calls
    assert (call.path, call.query) == ({"group": "a/b", "item": "é"}, {"bundle": ""})


@pytest.mark.parametrize(
    "target", ["/", "/nope", "/echo/", "/groups//items/1", "/groups/%ff/items/1", "//echo", "/%65cho", "http://echo"]
)
async def test_a_path_that_is_not_there_is_not_found(rig: Rig, target: str) -> None:
    answer = await rig.ask("POST", target)
    assert (answer.status, answer.problem) == (404, "not-found")


async def test_a_target_may_be_a_whole_uri(rig: Rig) -> None:
    answer = await rig.ask("GET", "https://a.example:8443/groups/g/items/i?bundle")
    assert answer.status == 200
    (call,) = rig.handlers.calls
    assert (call.path, call.query) == ({"group": "g", "item": "i"}, {"bundle": ""})


async def test_another_method_is_told_which_are_allowed(rig: Rig) -> None:
    answer = await rig.ask("DELETE", "/receive")
    assert (answer.status, answer.problem, answer.headers["allow"]) == (405, "method-not-allowed", "OPTIONS, POST, PUT")


async def test_options_says_what_is_allowed(rig: Rig) -> None:
    answer = await rig.ask("OPTIONS", "/wide")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, "GET, HEAD, OPTIONS", b"")


async def test_head_is_get(rig: Rig) -> None:
    answer = await rig.ask("HEAD", "/wide")  # the server leaves the body out
    assert (answer.status, answer.headers["content-length"], answer.headers["cache-control"]) == (200, "4", "no-store")


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/json", "application/octet-stream2"])
async def test_another_media_type_is_refused(rig: Rig, media_type: str) -> None:
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


async def test_a_body_at_its_limit_is_taken(rig: Rig) -> None:
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
    assert trio.current_time() <= 12


async def test_half_a_body_reaches_no_handler(rig: Rig) -> None:
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
async def test_a_malformed_body_is_told_the_place_and_nothing_of_itself(rig: Rig, body: bytes, place: str) -> None:
    answer = await rig.ask("POST", "/receive", body, {"content-type": MIMI_DS})
    assert (answer.status, answer.problem, answer.json()["detail"]) == (400, "malformed", place)


async def test_a_stranger_is_refused_before_its_body_is_read() -> None:
    rig = Rig(body_seconds=0)
    answer = await rig.ask("POST", "/client/v1/x", [b"x"] * 200, PLAIN)
    assert (answer.status, answer.problem, answer.headers["www-authenticate"]) == (401, "unauthenticated", "Bearer")


async def test_a_refusal_carries_its_members(rig: Rig) -> None:
    answer = await rig.ask("GET", "/refuse")
    assert answer.json() == {
        "type": "urn:mimids:problem:policy",
        "title": "refused by policy in this fork",
        "status": 403,
        "detail": "muted in this fork",
        "rule": "muted",
        "section": "6.8",
    }


async def test_a_providers_answers_are_stamped_refusals_too(rig: Rig) -> None:
    answer = await rig.ask("GET", "/limit")
    assert (answer.status, answer.headers["retry-after"], answer.headers["mimids-arrangement-revision"]) == (
        429,
        "7",
        "7",
    )
    assert "mimids-arrangement-revision" not in (await rig.ask("GET", "/wide")).headers


async def test_a_fault_of_ours_says_nothing_to_the_peer_and_all_to_the_log(rig: Rig) -> None:
    answer = await rig.ask("GET", "/fail")
    assert (answer.status, answer.problem) == (500, "internal")
    assert b"42" not in answer.body
    (line,) = [line for line in rig.log.lines if line["level"] == "error"]
    assert "the secret is 42" in line["exception"]
    assert line["id"] == answer.headers["mimids-request-id"] == rig.last["id"]


async def test_one_line_is_logged_at_the_end(rig: Rig) -> None:
    await rig.ask("POST", "/ds/v1/x", b"12345", PLAIN)
    (line,) = rig.log.lines
    assert line.pop("timestamp")
    assert line.pop("ms") >= 0
    assert len(line.pop("id")) == 16
    assert line == {
        "event": "request",
        "level": "info",
        "provider": "a.example",
        "route": "provider",
        "code": "ok",
        "peer": "b.example",
        "received": 5,
        "sent": 0,
    }


async def test_a_gateways_requests_have_no_lines_of_their_own(rig: Rig) -> None:
    await rig.ask("POST", "/gateway", b"12345", PLAIN)
    await rig.ask("POST", "/gateway", b"12345", PLAIN)
    assert not rig.log.lines
    rig.log.telemetry.log_counts()
    (line,) = rig.log.lines
    assert (line["event"], line["route"], line["code"], line["count"]) == ("requests", "gateway", "ok", 2)


async def test_requests_are_counted_by_row_and_outcome(rig: Rig) -> None:
    await rig.ask("GET", "/refuse")
    await rig.ask("GET", "/somewhere/else/1234")
    metrics = rig.log.telemetry.metrics().decode()
    assert 'mimids_requests_total{code="policy",route="refuse"} 1.0' in metrics
    assert 'mimids_requests_total{code="not-found",route="none"} 1.0' in metrics


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8445", 200),
        ("[::1]:1", 200),
        ("evil.example", 400),
        ("localhost.evil", 400),
        ("", 400),
    ],
)
async def test_a_listener_that_has_hosts_checks_them(host: str, status: int) -> None:
    rig = Rig(hosts=frozenset({"localhost", "[::1]"}))
    assert (await rig.ask("GET", "/wide", headers={"host": host})).status == status


def test_the_same_row_twice_is_a_mistake() -> None:
    doubled = rows(Handlers())[:1] * 2
    with pytest.raises(ValueError, match="twice"):
        Table(doubled, None, limits={"limit": 1}, admit=lambda *_: None, telemetry=SpyLog().telemetry)  # type: ignore[arg-type]


@pytest.mark.parametrize("query", ["bundle=%", "bundle&" * 40, "bundle=" + "x" * 5000, "bundle=%ff"])
async def test_a_query_beyond_reason_is_never_our_fault(rig: Rig, query: str) -> None:
    assert (await rig.ask("GET", f"/groups/1/items/2?{query}")).status in (200, 400)


# --- WebSockets ---------------------------------------------------------------------------------------------------


class Peer:
    """The other end of a WebSocket: says all of `messages`, keeps what it is sent."""

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


async def test_a_stream_says_goodbye_when_its_handler_returns(rig: Rig) -> None:
    peer = await chat(rig, "/chat", Peer(b"one", b"two", b"bye"))
    assert peer.said == [b"ONE", b"TWO"]
    assert peer.heard[-1] == {"type": "websocket.close", "code": 1000, "reason": ""}
    assert (rig.last["route"], rig.last["code"]) == ("chat", "ok")


async def test_a_stream_whose_peer_is_gone_ends_its_handler(rig: Rig) -> None:
    await chat(rig, "/chat", Peer(b"one"))
    assert rig.handlers.stream_closed
    assert rig.last["code"] == "closed"


async def test_text_ends_a_stream(rig: Rig) -> None:
    peer = await chat(rig, "/chat", Peer("text"))
    assert peer.heard[-1]["code"] == 1003


async def test_a_stranger_gets_no_stream(rig: Rig) -> None:
    refusal = (await chat(rig, "/chat", Peer(), good=False)).refusal
    assert (refusal.status, refusal.problem) == (401, "unauthenticated")


async def test_a_handler_may_refuse_the_handshake(rig: Rig) -> None:
    refusal = (await chat(rig, "/no-chat", Peer())).refusal
    assert (refusal.status, refusal.problem) == (429, "rate-limited")


async def test_a_websocket_elsewhere_and_a_request_for_a_stream_are_refused(rig: Rig) -> None:
    assert (await chat(rig, "/wide", Peer())).refusal.status == 400
    assert (await chat(rig, "/nope", Peer())).refusal.status == 404
    assert (await rig.ask("GET", "/chat", headers={"authorization": "Bearer good"})).status == 400


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([], None), (["mimids.bearer.good"], "mimids.bearer.good"), (["mimids.bearer.good", "mimids"], "mimids")],
)
async def test_a_browser_gets_one_of_the_protocols_it_offered(rig: Rig, offered: list[str], chosen: str | None) -> None:
    peer = await chat(rig, "/chat", Peer(b"bye"), protocols=offered)
    assert peer.heard[0]["subprotocol"] == chosen


def test_deep_json_is_malformed_like_any_other() -> None:
    from mimids.http.api.table import _decode

    body = Body("application/json", json.loads, lambda value: b"", "report")
    with pytest.raises(Malformed, match="not report"):
        _decode(body, b"[" * 100_000)
