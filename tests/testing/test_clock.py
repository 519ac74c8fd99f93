"""The clock of a provider in a test: moved, stopped and reset, also while its process does not run."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mimids.testing import PretendGroup, Session, federation
from mimids.testing.clock import MovableClock

DAY = 86_400
WHEN = datetime(2031, 5, 1, tzinfo=UTC)


def test_time_passes_for_one_provider_only(mimids_session: Session) -> None:
    with federation("a.example", "b.example", session=mimids_session) as (a, b):
        sent = []
        for provider in (a, b):
            device, group = provider.add_device("user"), PretendGroup.at(provider.name)
            device.ask(lambda it, g=group: it.create_group(g.creation()))  # type: ignore[misc]
            a.clock.advance(10 * DAY if provider is a else 0)
            sent.append(device.ask(lambda it, g=group: it.send(g.hub, g.message(b""))))  # type: ignore[misc]
        now = time.time() * 1000
        assert sent[0].accepted_at == pytest.approx(now + 10 * DAY * 1000, abs=60_000)
        assert sent[1].accepted_at == pytest.approx(now, abs=60_000)


def test_a_stopped_clock_stands_until_it_is_moved_also_across_a_restart(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,):
        device, group = a.add_device("user"), PretendGroup.at(a.name)
        device.ask(lambda it: it.create_group(group.creation()))
        a.clock.stop(WHEN)
        at = []
        changes: list[Callable[[], object]] = [a.is_running, a.kill, lambda: a.clock.advance(1.5)]
        for change in changes:
            change()
            if not a.is_running():
                a.start()
            at.append(device.ask(lambda it: it.send(group.hub, group.message(b""))).accepted_at)
        stands = int(WHEN.timestamp() * 1000)
        assert at == [stands, stands, stands + 1500]
        a.clock.reset()
        assert device.ask(lambda it: it.send(group.hub, group.message(b""))).accepted_at < stands


def test_jobs_that_are_due_run_when_the_clock_is_moved(mimids_session: Session) -> None:
    with federation("a.example", session=mimids_session) as (a,):
        a.clock.advance(1.5 * DAY)
        rotated = "SELECT count(*) FROM ohttp_keys"
        give_up_at = time.monotonic() + 10
        while a.read(rotated) != [(2,)]:
            assert time.monotonic() < give_up_at


async def test_sleepers_wake_when_the_clock_is_moved_past_their_time() -> None:
    clock = MovableClock()
    woken: list[int] = []

    async def sleep(seconds: int) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with trio.open_nursery() as nursery:
        for seconds in (3000, 1000, 2000):
            nursery.start_soon(sleep, seconds)
        await wait_all_tasks_blocked()
        clock.set(1_500_000, None)
        await wait_all_tasks_blocked()
        assert woken == [1000]
        clock.set(0, clock.now() + 1_000_000)
        await wait_all_tasks_blocked()
        assert sorted(woken) == [1000, 2000]
        nursery.cancel_scope.cancel()


async def test_a_stopped_clock_wakes_no_sleepers_and_a_sleep_of_zero_returns() -> None:
    clock = MovableClock(0, 5_000)
    await clock.sleep(0)
    with trio.move_on_after(0.05) as gave_up:
        await clock.sleep(0.001)
    assert gave_up.cancelled_caught
    assert clock.now() == 5_000
