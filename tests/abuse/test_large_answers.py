"""Small requests with large answers: an answer has a bound, and what it costs counts against its caller."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.groups.pages import MESSAGES_IN_A_PAGE
from mimids.ds.ports import PeerAnswer
from mimids.errors import PeerFailed, RateLimited
from mimids.http.api.admission import ANSWER_OCTETS, PROVIDER_ANSWERS_BURST, CallerRates
from mimids.http.api.devices import DEVICES
from mimids.http.api.providers import PROVIDERS
from mimids.store import messages
from mimids.values import Device, DeviceRow, Follower
from mimids.wire.codec import Codec
from mimids.wire.declare import codec, decode, encode
from mimids.wire.ids import Counter, ProviderId, UserId
from mimids.wire.messages import (
    GroupInfoRequest,
    GroupInfoResponse,
    ReceiveRequest,
    ReceiveResponse,
    SendResponse,
    WelcomeStatusRequest,
    WelcomeStatusResponse,
)
from tests.support.doubles import Called, SpyLog, bound_hits, stopped_clock
from tests.support.federation import Room, device, federated
from tests.support.inmemory import InMemory
from tests.support.rig import requests_per_minute

A, B, C = "a.example", "b.example", "c.example"
LONG_OCTETS = 16 * 1024  # a longer answer is decoded in a worker thread
MI_DS = {"content-type": "application/mimi-ds"}


async def test_an_answer_of_many_small_messages_reads_no_more_than_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(*args: object, **limits: object) -> list[messages.StoredMessage]:
        found = fetch(*args, **limits)  # type: ignore[arg-type]
        read.append(len(found))
        return found

    fetch = messages.messages_from
    monkeypatch.setattr(messages, "messages_from", counted)
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        sent = 0
        while sent < 2 * MESSAGES_IN_A_PAGE:
            await hub.services.hub.send_batch([room.send(str(sent + n)) for n in range(512)], device(hub))
            sent += 512
        hub.services.hub._recent.clear()
        ask = InMemory(hub.app(PROVIDERS), [ProviderId(B)])
        counter = 0
        while counter < sent:
            body = encode(ReceiveRequest(room.key, Counter(counter)))
            answered = await ask.ask("POST", "/ds/v1/receive", body, {**MI_DS, "from": f"mimi@{B}"})
            counter += len(decode(ReceiveResponse, answered.body).epoch.messages)
    assert read == [MESSAGES_IN_A_PAGE, MESSAGES_IN_A_PAGE]


def rates(log: SpyLog | None = None) -> CallerRates:
    return CallerRates(requests_per_minute(600), stopped_clock(), (log or SpyLog()).telemetry)


def a_device(row: int) -> Device:
    return Device(ProviderId(A), UserId(b"mimi://a.example/u/alice"), DeviceRow(row), "phone")


def test_large_answers_count_as_requests_of_their_device_only() -> None:
    counting, alice, bob = rates(), a_device(1), a_device(2)
    counting.take(alice)
    counting.owe(alice, ANSWER_OCTETS - 1)
    for _ in range(598):
        counting.take(alice)
    counting.owe(alice, 4 << 20)
    with pytest.raises(RateLimited) as refused:
        counting.take(alice)
    assert refused.value.retry_after == pytest.approx((4 << 20) / ANSWER_OCTETS / 10, abs=2)
    counting.take(bob)


def test_the_answers_to_a_provider_have_a_rate_of_their_own() -> None:
    log = SpyLog()
    counting, asking, other = rates(log), Follower(ProviderId(B)), Follower(ProviderId(C))
    for _ in range(PROVIDER_ANSWERS_BURST >> 22):
        counting.take(asking)
        counting.owe(asking, 4 << 20)
    with pytest.raises(RateLimited):
        counting.take(asking)
    assert bound_hits(log.telemetry, "provider-answers") == 1
    counting.take(other)


async def test_a_device_that_owes_for_answers_is_refused_until_it_has_paid(tmp_path: Path) -> None:
    clock = stopped_clock()
    limits = {"device_requests_per_minute": 60}
    async with federated(tmp_path, A, clock=clock, jobs_of=(), limits=limits) as (hub,):
        token, room, alice = await hub.add_device("alice"), Room(), device(hub)
        await hub.services.hub.create_group(room.creation(), alice)
        for n in range(0, 60_000, 1000):
            await hub.services.hub.send_batch([room.send("x" * 4000 + str(n + k)) for k in range(10)], alice)
        ask = InMemory(hub.app(DEVICES))
        headers = {**MI_DS, "authorization": f"Bearer {token}"}
        body = encode(ReceiveRequest(room.key, Counter(0)))
        path = f"/client/v1/hubs/{A}/receive"
        statuses = [(await ask.ask("POST", path, body, headers)).status for _ in range(3)]
        assert statuses == [200, 429, 429]
        clock.advance(120)
        assert (await ask.ask("POST", path, body, headers)).status == 200


@pytest.mark.parametrize("answer", [ReceiveResponse, GroupInfoResponse, SendResponse, WelcomeStatusResponse])
async def test_what_another_hub_answers_at_length_is_not_decoded_on_the_event_loop(
    answer: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 MiB of hostile octets take 16 s to decode."""
    decoded_by: list[int] = []
    monkeypatch.setattr(Codec, "decode", _noting(decoded_by, codec(answer), Codec.decode))

    async def answers_nonsense(called: Called) -> PeerAnswer:
        return PeerAnswer(bytes(LONG_OCTETS + 1))

    async with federated(tmp_path, A, jobs_of=()) as (a,):
        a.peers.add(B, answers_nonsense)
        await a.add_device()
        room, hub = Room(hub=B), a.services.hub_router.hub(ProviderId(B))
        ask: dict[type[Any], Callable[[], Awaitable[object]]] = {
            ReceiveResponse: lambda: hub.receive(device(a), ReceiveRequest(room.key, Counter(0))),
            GroupInfoResponse: lambda: hub.group_info(device(a), GroupInfoRequest(room.group_id)),
            SendResponse: lambda: hub.send(device(a), room.send("0")),
            WelcomeStatusResponse: lambda: hub.welcome_status(device(a), WelcomeStatusRequest(room.key)),
        }
        with pytest.raises(PeerFailed):
            await ask[answer]()
    assert decoded_by
    assert threading.get_ident() not in decoded_by


def _noting(threads: list[int], noted: Codec[Any], decode: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `decode` that adds the thread it runs in to a list, if it is that of the codec `noted`."""

    def note(self: Codec[Any], data: bytes) -> Any:
        if self is noted:
            threads.append(threading.get_ident())
        return decode(self, data)

    return note
