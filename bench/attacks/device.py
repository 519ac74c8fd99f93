"""What a device can send: requests and the frames of its stream."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from bench.attacks import bodies, json_bodies
from bench.attacks.groups import Groups, key
from bench.attacks.inputs import Input, asks, posts
from bench.raw_client import Connection, Ended, masked_frame, request
from mimids.wire.base64url import base64url
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, Counter, ProviderId
from mimids.wire.messages import Ack, Frame, FrameType, Present, ReceiveRequest, Send, SiblingsRequest, Withdraw

FRAMES: Final = 20  # sent before the client reads what has come
READ_SECONDS: Final = 0.02
UNKNOWN: Final = "unknown.example"


# Longer than 40 lines: one line for each endpoint.
def inputs(hub: str, other: str, token: str, groups: Groups) -> Iterator[Input]:
    authorization = f"Authorization: Bearer {token}"

    def at(
        endpoint: str, path: str, found: bodies.Bodies, media_type: str = "application/mimi-ds", *, method: str = "POST"
    ) -> Iterator[Input]:
        bounded_by = {"client-report": "device_reports_per_day", "hub-join": "device_joins_per_hour"}.get(endpoint, "")
        return posts(
            "device",
            hub,
            endpoint,
            f"/client/v1/{path}",
            found,
            authorization,
            method=method,
            media_type=media_type,
            bounded_by=bounded_by,
        )

    own, group = ProviderId(hub), groups.known
    yield from at("key-packages", "key-packages", bodies.key_packages())
    yield from at("relay", f"providers/{other}/ohttp", relayed(), "message/ohttp-req")
    yield from at("relay", f"providers/{UNKNOWN}/ohttp", {"not allowed": lambda number: bytes(64)}, "message/ohttp-req")
    yield from at("contact-tokens", "contact-tokens", contact_tokens(), "application/json")
    yield from at("create-group", "groups", bodies.creations())
    for name, make in bodies.sends(group).items():
        yield from at("hub-send", f"hubs/{hub}/send", {name: lambda number, make=make: encode(make(number))})
    yield from at("hub-send-batch", f"hubs/{hub}/send-batch", bodies.batches(group, groups.branched))
    yield from at("hub-receive", f"hubs/{hub}/receive", bodies.receives(groups))
    yield from at("hub-join", f"hubs/{hub}/join", bodies.joins(groups))
    yield from at("hub-propose", f"hubs/{hub}/propose", bodies.proposes(groups))
    yield from at("hub-group-info", f"hubs/{hub}/group-info", bodies.group_infos(groups.read))
    yield from at("hub-welcome-status", f"hubs/{hub}/welcome-status", bodies.welcome_statuses(groups))
    yield from at("positions", f"hubs/{hub}/positions", bodies.positions(groups))
    siblings = {"shortest": lambda number: encode(SiblingsRequest(MLS10, bodies.SUITE))}
    yield from at("siblings", "key-packages/siblings", siblings)
    yield from at("push-subscription", "push", json_bodies.subscriptions(), "application/json", method="PUT")
    successor = f"groups/{base64url(group.room.group_id)}/successor"
    yield from at("replace-group", successor, json_bodies.successors(own), "application/json", method="PUT")
    away = {f"{name}, hub elsewhere": body for name, body in bodies.receives(groups).items()}
    yield from at("hub-receive", f"hubs/{other}/receive", away)
    yield from at("client-report", "reports", json_bodies.reports(own), "application/json")
    rest = {
        "me": lambda number: request("GET", "/client/v1/me", hub, b"", authorization),
        "welcomes": lambda number: request("GET", "/client/v1/welcomes", hub, b"", authorization),
        "acknowledge": lambda number: request("DELETE", "/client/v1/welcomes/1", hub, b"", authorization),
        "leave": lambda number: request(
            "DELETE", f"/client/v1/hubs/{hub}/groups/{secrets.token_hex(4)}", hub, b"", authorization
        ),
        "unknown token": lambda number: request("GET", "/client/v1/me", hub, b"", "Authorization: Bearer x"),
    }
    for endpoint, make in rest.items():
        yield from asks("device", endpoint, {"shortest": make})
    yield from frames(hub, authorization, groups)


def posted(hub: str, token: str, path: str, body: bytes) -> bytes:
    """Return a request of a device."""
    authorization = f"Authorization: Bearer {token}"
    return request("POST", f"/client/v1/{path}", hub, body, authorization, media_type="application/mimi-ds")


def relayed() -> dict[str, Callable[[int], bytes]]:
    return {
        "junk": lambda number: bytes(7) + secrets.token_bytes(64),
        "1 MiB of junk": lambda number: secrets.token_bytes(1 << 20),
    }


def contact_tokens() -> dict[str, Callable[[int], bytes]]:
    return {
        "shortest": lambda number: b'{"scheme":"unique"}',
        "nested arrays": lambda number: b'{"scheme":' + b"[" * 900 + b"]" * 900 + b"}",
        "large numbers": lambda number: b'{"scheme":"unique","uses":' + b"9" * 4000 + b"}",
        "50,000 members": lambda number: json.dumps(dict.fromkeys(map(str, range(50_000)), 0)).encode(),
    }


def frames(hub: str, authorization: str, groups: Groups) -> Iterator[Input]:
    """Return the inputs of a device's stream."""
    own, group = ProviderId(hub), groups.known
    sends = bodies.sends(group)

    def framed(kind: FrameType, body: Callable[[], Any]) -> Callable[[], bytes]:
        return lambda: masked_frame(encode(Frame(1, kind, cast("Any", body()))))

    def present(count: int, *, same: bool = False) -> Callable[[], Present]:
        def body() -> Present:
            keys = [group.key] * count if same else [key() for _ in range(count)]
            return Present(own, tuple(ReceiveRequest(key, Counter(0)) for key in keys))

        return body

    withdraw_long = framed(FrameType.WITHDRAW, lambda: Withdraw((groups.long.key,)))
    present_long = framed(FrameType.PRESENT, lambda: Present(own, (ReceiveRequest(groups.long.key, Counter(0)),)))
    made = {
        "present 4,096 keys": framed(FrameType.PRESENT, present(4096)),
        "present one key": framed(FrameType.PRESENT, present(1)),
        "present one key 4,096 times": framed(FrameType.PRESENT, present(4096, same=True)),
        "withdraw and present a long partition": lambda: withdraw_long() + present_long(),
        "withdraw 4,096 keys": framed(FrameType.WITHDRAW, lambda: Withdraw((group.key,) * 4096)),
        "ack 4,096 numbers": framed(FrameType.ACK, lambda: Ack(tuple(range(1, 4097)))),
        "ack one number": framed(FrameType.ACK, lambda: Ack((1,))),
        "send a message": framed(FrameType.SEND, lambda: Send(own, (sends["message"](0),))),
        "send to a name": framed(FrameType.SEND, lambda: Send(ProviderId(f"{secrets.token_hex(4)}.example"), ())),
        "junk": lambda: masked_frame(secrets.token_bytes(8)),
        "empty fragments": lambda: masked_frame(b"", 2),
        "pings": lambda: masked_frame(b"", 9),
        "16 KiB of fragments": lambda: (
            b"\x02\x80" + bytes(4) + (b"\0\xfe\4\0" + bytes(4 + 1024)) * 16 + masked_frame(b"", 0)
        ),
        "text": lambda: masked_frame(b"{}", 1),
    }
    for name, make in made.items():
        yield Input("stream", "device", name, StreamSender(authorization, make), messages=FRAMES)


class StreamSender:
    """Sends frames over one WebSocket, and opens a new one when it is closed."""

    def __init__(self, authorization: str, make: Callable[[], bytes]) -> None:
        self._authorization = authorization
        self._make = make
        self._open: Connection | None = None

    def __call__(self, connection: Connection, number: int) -> int:
        try:
            if self._open is not connection:
                connection.open_websocket("/client/v1/stream", self._authorization)
                self._open = connection
            connection.send(b"".join(self._make() for _ in range(FRAMES)))
            if not connection.read_for(READ_SECONDS):
                raise Ended
        except (Ended, OSError):
            connection.close()
            self._open = None
            return 0
        return 101
