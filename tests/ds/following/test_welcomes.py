"""Welcomes are sent, retried, refused and stored, whatever fails in between."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.ds.groups import branches
from mimids.ds.ports import PeerAnswer
from mimids.errors import CertificateMismatch, MimiError, PeerUnavailable, RateLimited, WelcomeNotExpected
from mimids.store import partitions, welcomes
from mimids.store.engine.transaction import Tx
from mimids.testing.clock import MovableClock
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.declare import encode
from mimids.wire.ids import ProviderId
from mimids.wire.messages import WelcomeInitResponse
from tests.support.doubles import Called, stopped_clock
from tests.support.federation import Room, federated
from tests.support.provider import Assembled
from tests.support.store_faults import set_faults
from tests.support.stored import rows, until
from tests.support.welcomes import REF, hand_out, has_states, invite, reaches

A, B = "a.example", "b.example"
INIT, WELCOME = "/ds/v1/welcome/init", "/ds/v1/welcome"

Answer = Callable[[], Awaitable[PeerAnswer]]


async def in_time(clock: MovableClock, check: Callable[[], Awaitable[object]]) -> None:
    """Let time pass until the check is true."""

    async def later() -> bool:
        clock.advance(1)
        return bool(await check())

    await until(later)


class Route:
    """The calls from a hub to a provider: `instead` replaces those to a path."""

    def __init__(self, hub: Assembled, to: str = B) -> None:
        self._target = hub.peers.peers[ProviderId(to)]
        self.instead: dict[str, Callable[[Answer], Awaitable[PeerAnswer]]] = {}
        self.called: list[str] = []
        hub.peers.add(to, self._call)

    async def _call(self, called: Called) -> PeerAnswer:
        self.called.append(called.path)
        passed_on = partial(self._target, called)
        instead = self.instead.get(called.path)
        return await passed_on() if instead is None else await instead(passed_on)


class Disk:
    """A provider's disk; writes fail while it is `full`."""

    def __init__(self, provider: Assembled) -> None:
        self.full = False
        set_faults(provider.services.store, self._at)

    def _at(self, point: str) -> None:
        if self.full and point == "before_commit":
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error


@pytest.mark.parametrize("path", [INIT, WELCOME])
async def test_a_full_disk_ends_neither_the_job_nor_a_welcome(path: str, tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock) as (hub, follower):
        disk, route = Disk(hub), Route(hub)

        async def fills_up(passed_on: Answer) -> PeerAnswer:
            disk.full = True
            return await passed_on()

        route.instead[path] = fills_up
        await hand_out(follower)
        await invite(hub, Room())
        await until(lambda: _filled(disk))
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked(0.05)
            clock.advance(10)
        assert len(route.called) < 10, "it is not tried all the time"
        route.instead.clear()
        disk.full = False
        await in_time(clock, lambda: has_states(hub, "delivered"))
        assert len(await follower.services.incoming_welcomes.inbox(DeviceRow(1))) == 1


async def _filled(disk: Disk) -> bool:
    return disk.full


async def test_our_full_disk_does_not_refuse_a_welcome_for_our_own_user(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, clock=clock, jobs_of=()) as (hub,):
        disk = Disk(hub)
        await hand_out(hub)
        await invite(hub, Room(), A)
        disk.full = True
        async with trio.open_nursery() as jobs:
            await jobs.start(hub.services.outgoing_welcomes.run)
            await trio.testing.wait_all_tasks_blocked(0.05)
            disk.full = False
            await in_time(clock, lambda: has_states(hub, "delivered"))
            assert len(await hub.services.incoming_welcomes.inbox(DeviceRow(1))) == 1
            jobs.cancel_scope.cancel()


@pytest.mark.parametrize("refusal", [RateLimited("calls", 1), CertificateMismatch()])
@pytest.mark.parametrize("path", [INIT, WELCOME])
async def test_an_error_that_may_pass_does_not_refuse_a_welcome_for_good(
    path: str, refusal: MimiError, tmp_path: Path
) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock) as (hub, follower):
        route = Route(hub)

        async def refuse(passed_on: Answer) -> PeerAnswer:
            raise refusal

        route.instead[path] = refuse
        await hand_out(follower)
        await invite(hub, Room())
        await until(lambda: rows(hub, "SELECT 1 FROM outgoing_welcomes WHERE failures = 1"))
        route.instead.clear()
        await in_time(clock, lambda: has_states(hub, "delivered"))


async def test_a_provider_that_forgot_the_offer_it_accepted_is_asked_again(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock) as (hub, follower):
        route = Route(hub)

        async def forget(passed_on: Answer) -> PeerAnswer:
            await follower.services.store.write(lambda tx: tx.execute("DELETE FROM expected_welcomes"))
            route.instead.clear()
            raise PeerUnavailable

        route.instead[WELCOME] = forget
        await hand_out(follower)
        await invite(hub, Room())
        await until(lambda: rows(hub, "SELECT 1 FROM outgoing_welcomes WHERE failures = 1"))
        await in_time(clock, lambda: has_states(hub, "delivered"))
        assert route.called[:5] == [INIT, WELCOME, WELCOME, INIT, WELCOME]


async def test_a_provider_that_accepts_and_then_refuses_is_not_asked_forever(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (hub, _):
        route = Route(hub)

        async def accept(passed_on: Answer) -> PeerAnswer:
            return PeerAnswer(encode(WelcomeInitResponse((REF,))))

        async def refuse(passed_on: Answer) -> PeerAnswer:
            raise WelcomeNotExpected

        route.instead = {INIT: accept, WELCOME: refuse}
        await invite(hub, Room())
        await reaches(hub, "refused")
        assert route.called == [INIT, WELCOME]


@pytest.mark.parametrize("path", [INIT, WELCOME])
async def test_terminating_a_branch_cancels_its_welcome_that_was_offered(path: str, tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (hub, follower):
        route, room = Route(hub), Room()

        def end(tx: Tx) -> None:
            branch = partitions.partition_by_row(tx, 2)
            branches.terminate(tx, branch, "ended meanwhile", hub.services.clock.now())

        async def ends(passed_on: Answer) -> PeerAnswer:
            answer = await passed_on()
            await hub.services.store.write(end)
            return answer

        route.instead[path] = ends
        await hand_out(follower)
        await invite(hub, room)
        arrived = path == WELCOME  # then the Welcome was sent before the branch ended
        await reaches(hub, "delivered" if arrived else "cancelled")
        assert len(await follower.services.incoming_welcomes.inbox(DeviceRow(1))) == arrived
        assert await rows(hub, "SELECT count(*) FROM follows") == [(int(arrived),)]


async def test_a_welcome_that_expires_while_it_is_offered_is_not_sent(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock) as (hub, follower):
        route = Route(hub)

        def give_up(tx: Tx) -> None:
            now = Milliseconds(clock.now() + 1)
            welcomes.expire_unsent(tx, held_before=now, due_before=now)
            welcomes.sweep_page(tx, now, limit=10)

        async def gives_up(passed_on: Answer) -> PeerAnswer:
            answer = await passed_on()
            await hub.services.store.write(give_up)
            return answer

        route.instead[INIT] = gives_up
        await hand_out(follower)
        await invite(hub, Room())
        await until(lambda: has_states(hub))
        await invite(hub, Room("another"), A)  # the job still runs
        await reaches(hub, "refused")  # this provider has no user Bob
        assert WELCOME not in route.called
