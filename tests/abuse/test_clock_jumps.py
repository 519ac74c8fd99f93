"""A clock that jumps deletes nothing that was acknowledged, until the jump is confirmed and a day has passed.

Nor does it hold up anybody for long once it is right again.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trio

from mimids.ds.clock import SystemClock
from mimids.ds.elapsed import Moment, PeerDate, advance, first_seen
from mimids.ds.elapsed import peers_agree as agree
from mimids.ds.limits.rates import Rate, Rates
from mimids.ds.notifier import DELIVERY, OUTGOING
from mimids.ds.ports import PeerAnswer
from mimids.ds.upkeep.sweeper import Sweeper
from mimids.errors import PeerUnavailable, QuotaExceeded, RateLimited
from mimids.store.seen_time import SeenTime
from mimids.testing.clock import MovableClock
from mimids.values import DAY_MILLISECONDS, HOUR_MILLISECONDS, Follower, Milliseconds
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import ReceiveRequest
from tests.support.commands import command
from tests.support.doubles import Called
from tests.support.federation import Room, device, federated
from tests.support.provider import Assembled
from tests.support.reports import report
from tests.support.stored import DAY, bodies, provider, rows, sweep, until
from tests.support.welcomes import invite

YEAR = 366 * DAY
B, C, D = (ProviderId(f"{name}.example") for name in "bcd")


async def send(running: Assembled, messages: int) -> Room:
    hub, alice, room = running.services.hub, device(running), Room()
    await hub.create_group(room.creation(), alice)
    for n in range(messages):
        await hub.send(room.send(f"{n}"), alice)
    return room


async def test_one_jump_deletes_nothing(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        room = await send(running, 30)
        clock.jump(YEAR)
        for _ in range(30):
            await sweep(running)
            clock.advance(DAY)
        assert await bodies(running, room.key) == [True] * 30
        clock.advance(2 * DAY)  # with or without the jump, they are older than a month now
        await sweep(running)
        assert not any(await bodies(running, room.key))


async def test_a_restart_after_the_jump_deletes_nothing_either(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        room = await send(running, 3)
        await sweep(running)
        clock.jump(YEAR)
        services = running.services
        for _ in range(3):
            await Sweeper(
                services.config, services.store, clock, services.notifier, services.recent, services.telemetry.log
            ).sweep()
        assert await bodies(running, room.key) == [True] * 3


async def test_a_jump_is_believed_a_day_after_the_operator_has_confirmed_it(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        room = await send(running, 3)
        await sweep(running)
        clock.jump(YEAR)
        await sweep(running)
        assert (await command(running, "clock show"))["jumped"]
        await command(running, "clock confirm")
        for _ in range(23):
            await sweep(running)
            clock.advance(3600)
        assert await bodies(running, room.key) == [True] * 3
        clock.advance(7200)
        await sweep(running)
        assert not any(await bodies(running, room.key))
        assert not (await command(running, "clock show"))["jumped"]


async def test_a_confirmation_does_not_hold_for_the_next_jump(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        room = await send(running, 3)
        await sweep(running)
        clock.jump(10 * DAY)
        await sweep(running)
        await command(running, "clock confirm")
        await sweep(running)
        clock.jump(YEAR)
        for _ in range(5):
            await sweep(running)
            clock.advance(DAY)
        assert await bodies(running, room.key) == [True] * 3


async def test_time_that_passes_is_believed(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        room = await send(running, 3)
        clock.advance(32 * DAY)
        await sweep(running)
        assert not any(await bodies(running, room.key))


async def test_a_rate_is_refilled_after_the_clock_was_ahead_for_a_while(tmp_path: Path) -> None:
    rates, clock = Rates(Rate("sends", 1, 10)), MovableClock(stopped_at=START)
    clock.jump(YEAR)
    rates.take("alice", clock.now(), 10)
    clock.jump(-YEAR)
    with pytest.raises(RateLimited):
        rates.take("alice", clock.now())
    clock.advance(2)
    rates.take("alice", clock.now(), 2)


async def test_a_follower_that_failed_while_the_clock_was_ahead_is_tried_again_when_it_is_right(tmp_path: Path) -> None:
    clock, asked = MovableClock(stopped_at=START), list[Called]()
    async with federated(tmp_path, "a.example", clock=clock) as (hub,):

        async def down(called: Called) -> PeerAnswer:
            asked.append(called)
            raise PeerUnavailable

        hub.peers.add("b.example", down)
        alice, room = device(hub), Room()
        await hub.services.hub.create_group(room.creation(), alice)
        clock.jump(YEAR)
        await hub.services.hub.receive(ReceiveRequest(room.key, Counter(0)), Follower(B))
        await hub.services.hub.send(room.send("hello"), alice)
        await until(lambda: _failed(hub))
        clock.jump(-YEAR)
        before = len(asked)
        hub.services.notifier.notify(DELIVERY)
        await until(lambda: _longer_than(asked, before))


async def test_a_welcome_that_failed_while_the_clock_was_ahead_is_tried_again_when_it_is_right(tmp_path: Path) -> None:
    clock, asked = MovableClock(stopped_at=START), list[Called]()
    async with federated(tmp_path, "a.example", "b.example", clock=clock) as (hub, _):

        async def down(called: Called) -> PeerAnswer:
            asked.append(called)
            raise PeerUnavailable

        hub.peers.add("b.example", down)
        clock.jump(YEAR)
        await invite(hub, Room())
        await until(lambda: _is_put_off(hub))
        clock.jump(-YEAR)
        clock.advance(hub.config.delivery.backoff_cap_seconds)  # the time of a back-off has passed
        hub.services.notifier.notify(OUTGOING)
        await until(lambda: _longer_than(asked, 1))


async def test_reports_from_a_time_to_come_do_not_use_up_the_quota(tmp_path: Path) -> None:
    clock = MovableClock(stopped_at=START)
    async with federated(tmp_path, "a.example", clock=clock, jobs_of=(), limits={"device_reports_per_day": 2}) as (
        hub,
    ):
        receive = hub.services.reports.receive
        clock.jump(YEAR)
        for n in range(2):
            await receive(report(note=f"{n}"), device(hub))
        with pytest.raises(QuotaExceeded):
            await receive(report(note="2"), device(hub))
        clock.jump(-YEAR)
        with pytest.raises(QuotaExceeded):
            await receive(report(note="3"), device(hub))
        clock.advance(DAY)
        await receive(report(note="3"), device(hub))


async def test_a_request_that_waits_does_not_wait_longer_when_the_clock_is_set_back(tmp_path: Path) -> None:
    clock = MovableClock(stopped_at=START)
    async with federated(tmp_path, "a.example", "b.example", clock=clock) as (hub, follower):
        alice, bob, room = device(hub), device(follower, "bob"), Room()
        await follower.add_device("bob")
        await hub.services.hub.create_group(room.creation(), alice)
        await hub.services.hub.send(room.send("hello"), alice)
        receive, hub_id = follower.services.following.receive, ProviderId("a.example")
        await receive(bob, hub_id, ReceiveRequest(room.key, Counter(0)))
        await until(lambda: _is_stored(follower))

        async def set_back(called: Called) -> PeerAnswer:
            clock.jump(-YEAR)
            raise PeerUnavailable

        follower.peers.add("a.example", set_back)
        async with trio.open_nursery() as nursery:
            waited = trio.Event()

            async def wait() -> None:
                await receive(bob, hub_id, ReceiveRequest(room.key, Counter(1)), wait_seconds=30)
                waited.set()

            nursery.start_soon(wait)
            await until(lambda: _is_asleep(clock))
            clock.advance(30)
            with trio.fail_after(20):
                await waited.wait()


async def _is_stored(follower: Assembled) -> bool:
    return await rows(follower, "SELECT 1 FROM messages") != []


async def _is_asleep(clock: MovableClock) -> bool:
    return clock.now() < START - YEAR and clock.sleepers > 0


async def _is_put_off(hub: Assembled) -> bool:
    return await rows(hub, "SELECT 1 FROM outgoing_welcomes WHERE failures > 0") != []


async def _failed(hub: Assembled) -> bool:
    return await rows(hub, "SELECT 1 FROM peers WHERE failures > 0") != []


async def _longer_than(asked: list[Called], before: int) -> bool:
    return len(asked) > before


# --- the rule -----------------------------------------------------------------------------------------------------

START = 1_900_000_000_000


def at(now: int, running: int, boot: str = "1") -> Moment:
    return Moment(Milliseconds(now), Milliseconds(running), boot)


def seen(believed: int = START, running: int = 0) -> SeenTime:
    return SeenTime(Milliseconds(believed), Milliseconds(running), "1")


def test_the_monotonic_clock_moves_the_believed_time() -> None:
    assert advance(seen(), at(START + 5000, 5000), peers_agree=False).believed == START + 5000
    assert advance(seen(), at(START + 10**9, 5000), peers_agree=False).believed == START + 5000
    assert advance(seen(), at(START + 10**9, 5000, "2"), peers_agree=False).believed == START


@pytest.mark.parametrize(("ahead", "agreeing", "believes"), [(1, False, False), (1, True, True), (-1, False, True)])
def test_a_jump_is_believed_after_a_day_of_agreement(ahead: int, agreeing: bool, believes: bool) -> None:
    offset, row = ahead * 365 * DAY_MILLISECONDS, seen()
    for hour in range(25):
        assert row.believed == START + max(0, hour - 1) * HOUR_MILLISECONDS
        row = advance(
            row, at(START + offset + hour * HOUR_MILLISECONDS, hour * HOUR_MILLISECONDS), peers_agree=agreeing
        )
    assert (row.believed == START + offset + DAY_MILLISECONDS) == believes


def test_a_day_of_agreement_begins_again_after_it_ended_or_another_jump() -> None:
    row = seen()
    for hour in range(200):
        jumps = hour // 20 * 30 * DAY_MILLISECONDS
        agreeing = hour % 40 != 39
        moment = at(START + DAY_MILLISECONDS + jumps + hour * HOUR_MILLISECONDS, hour * HOUR_MILLISECONDS)
        row = advance(row, moment, peers_agree=agreeing)
    assert row.believed == START + 199 * HOUR_MILLISECONDS


def test_an_old_database_is_believed_to_have_waited_for_a_day() -> None:
    moment = at(START, 7)
    assert first_seen(moment, Milliseconds(0)).believed == START
    assert first_seen(moment, Milliseconds(START - 1000)).believed == START
    assert first_seen(moment, Milliseconds(START - 9 * DAY_MILLISECONDS)).believed == START - 8 * DAY_MILLISECONDS


def dates(**heard: tuple[int, int]) -> Mapping[ProviderId, PeerDate]:
    return {
        ProviderId(f"{name}.example"): PeerDate(formatdate(now / 1000, usegmt=True), Milliseconds(running))
        for name, (now, running) in heard.items()
    }


@pytest.mark.parametrize(
    ("heard", "agrees"),
    [
        ({}, False),
        ({"b": (START, 10**9)}, True),
        ({"b": (START - 3_600_000, 10**9 - 3_600_000)}, True),
        ({"b": (START - 400_000, 10**9)}, False),
        ({"b": (START, 10**9), "c": (START - 10**8, 10**9)}, False),
        ({"b": (START, 10**9), "c": (START - 10**8, 10**9), "d": (START + 60_000, 10**9)}, True),
        ({"b": (START - 2 * DAY_MILLISECONDS, 10**9 - 2 * DAY_MILLISECONDS)}, False),
        ({"b": (START, 10**9 + 1)}, False),
    ],
)
def test_more_than_half_of_the_peers_must_have_our_time(heard: dict[str, tuple[int, int]], agrees: bool) -> None:
    assert agree(dates(**heard), at(START, 10**9)) is agrees


@pytest.mark.parametrize("text", ["", "yesterday", "Mon, 99 Foo 2030 00:00:00 GMT", "\x00" * 1000])
def test_a_date_that_is_none_does_not_agree(text: str) -> None:
    assert not agree({B: PeerDate(text, Milliseconds(5))}, at(START, 5))


def test_the_clock_of_the_machine() -> None:
    clock: Any = SystemClock()
    assert clock.running() <= clock.running()
    assert clock.boot() == SystemClock().boot() != ""
    movable = MovableClock(stopped_at=START)
    before = movable.running()
    movable.jump(100)
    assert (movable.now(), movable.running()) == (START + 100_000, before)
