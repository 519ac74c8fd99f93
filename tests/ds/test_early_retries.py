"""A call from a provider ends every back-off from it, at once and for each job; repeated failures are spaced."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.ds.early_retries import SPACING_CAP_SECONDS, EarlyRetries
from mimids.ds.ports import PeerAnswer
from mimids.errors import PeerUnavailable, RateLimited
from mimids.store import recoveries
from mimids.testing.clock import MovableClock
from mimids.values import Follower
from mimids.wire.ids import ProviderId
from mimids.wire.messages import FrameType, GroupInfoRequest
from tests.support.commands import command
from tests.support.device_streams import heard, streaming
from tests.support.doubles import Called, Peer, stopped_clock
from tests.support.federation import Room, device, federated, present, wait_stored
from tests.support.provider import Assembled
from tests.support.reports import report
from tests.support.store_faults import Disk
from tests.support.stored import rows, until
from tests.support.terms import NOBODY
from tests.support.welcomes import hand_out, invite, reaches

A, B = ProviderId("a.example"), ProviderId("b.example")
PEER = ProviderId("peer.example")


def retries(clock: MovableClock) -> tuple[EarlyRetries, list[bool]]:
    woken: list[bool] = []
    return EarlyRetries(clock, lambda: woken.append(True)), woken


def test_only_a_provider_that_is_in_back_off_or_being_tried_is_taken_early() -> None:
    early, woken = retries(stopped_clock())
    early.heard(PEER)
    assert (early.take_due(), woken) == ([], [])
    early.begin(PEER)
    early.heard(PEER)
    early.end(PEER)
    assert (early.take_due(), woken) == ([], [])
    early.begin(PEER)
    early.failed(PEER)
    early.end(PEER)
    assert early.take_due() == []
    early.heard(PEER)
    assert woken == [True]
    assert (early.take_due(), early.take_due()) == ([PEER], [])


def test_a_call_during_an_attempt_that_fails_makes_the_next_one_due() -> None:
    early, woken = retries(stopped_clock())
    early.begin(PEER)
    early.heard(PEER)
    assert not woken
    early.failed(PEER)
    assert (woken, early.take_due()) == ([True], [PEER])


def test_retries_of_a_provider_that_calls_and_fails_are_spaced_ever_further_until_one_succeeds() -> None:
    clock = stopped_clock()
    early, _ = retries(clock)
    waited = []
    for _ in range(12):
        early.begin(PEER)
        early.failed(PEER)
        early.heard(PEER)
        waited.append(max(early.seconds_left()))
        clock.advance(max(0, waited[-1]))
        assert early.take_due() == [PEER]
    assert waited[0] <= 0
    assert waited[1:4] == [0.5, 1, 2]
    assert waited[-1] == SPACING_CAP_SECONDS
    early.begin(PEER)
    early.end(PEER)
    early.failed(PEER)
    early.heard(PEER)
    assert early.take_due() == [PEER]


def test_a_provider_that_asked_for_time_gets_it_if_its_rate_is_exceeded() -> None:
    clock = stopped_clock()
    for error, seconds in ((RateLimited("rate", retry_after=40), 40), (PeerUnavailable(retry_after=40), 0)):
        early, _ = retries(clock)
        early.failed(PEER, error)
        early.heard(PEER)
        clock.advance(seconds - 1)
        assert early.take_due() == ([] if seconds else [PEER])
        clock.advance(1)
        assert early.take_due() == ([PEER] if seconds else [])


def test_a_job_that_notes_the_back_off_whenever_it_wakes_does_not_wake_itself() -> None:
    early, woken = retries(stopped_clock())
    early.failed(PEER, RateLimited("rate", retry_after=3600))
    early.heard(PEER)
    for _ in range(5):
        assert early.take_due() == []
        early.failed(PEER)
    assert woken == [True]
    assert early.seconds_left() == [3600]


class Cut:
    """A way to a provider that can be cut."""

    def __init__(self, source: Assembled, target: ProviderId) -> None:
        self._way: Peer = source.peers.peers[target]
        self.is_cut, self.tried = True, 0
        source.peers.add(target, self._call)

    async def _call(self, called: Called) -> PeerAnswer:
        self.tried += 1
        if self.is_cut:
            raise PeerUnavailable
        return await self._way(called)

    async def fails(self, clock: MovableClock, times: int = 8) -> None:
        """Let it be tried until the back-off has grown."""

        async def often() -> bool:
            clock.advance(0 if self.tried >= times else 30)
            return self.tried >= times

        await until(often)
        await trio.testing.wait_all_tasks_blocked(0.05)


async def call(source: Assembled, target: ProviderId) -> None:
    """Have one provider call another; that it is refused does not matter."""
    with pytest.raises(Exception, match=r"unknown|group"):
        await source.services.hub_router.hub(target).group_info(device(source, "other", 9), GroupInfoRequest(NOBODY))


Waiting = Callable[[], Awaitable[object]]
Prepare = Callable[[Assembled, Assembled], Awaitable[Waiting]]


async def a_message(hub: Assembled, follower: Assembled) -> Waiting:
    alice, bob, room = device(hub), device(follower, "bob"), Room()
    await hub.services.hub.create_group(room.creation(), alice)
    await follower.services.hub_router.hub(room.hub).send(bob, room.send("1"))
    return lambda: wait_stored(follower, room.hub, bob, room.key, 1)


async def a_welcome(hub: Assembled, follower: Assembled) -> Waiting:
    await hand_out(follower)
    await invite(hub, Room())
    return lambda: reaches(hub, "delivered")


async def a_report(hub: Assembled, follower: Assembled) -> Waiting:
    number = await hub.services.reports.receive(report(note="here"), Follower(B))
    await command(hub, "report pass-on", report=number, provider=B)

    async def passed_on() -> bool:
        return bool(await rows(follower, "SELECT 1 FROM reports"))

    return lambda: until(passed_on)


async def terms(hub: Assembled, follower: Assembled) -> Waiting:
    """The hub is a follower of the other one here, and has yet to fetch its terms."""
    hub.services.accepted_terms.note_revision(B, 7)

    async def accepted() -> bool:
        return hub.services.accepted_terms.in_force(B) is not None

    return lambda: until(accepted)


@pytest.mark.parametrize(
    ("job", "prepare"),
    [("delivery", a_message), ("outgoing_welcomes", a_welcome), ("reports", a_report), ("accepted_terms", terms)],
)
async def test_a_call_ends_the_back_off_of_each_job(job: str, prepare: Prepare, tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, follower), trio.open_nursery() as jobs:
        arrived = await prepare(hub, follower)
        cut = Cut(hub, B)
        await jobs.start(getattr(hub.services, job).run)
        await cut.fails(clock)
        cut.is_cut = False
        await call(follower, A)
        await arrived()  # and the clock stands still
        jobs.cancel_scope.cancel()


@pytest.mark.parametrize(("job", "prepare"), [("delivery", a_message), ("outgoing_welcomes", a_welcome)])
async def test_a_call_while_the_disk_is_full_ends_no_job(job: str, prepare: Prepare, tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, follower), trio.open_nursery() as jobs:
        arrived = await prepare(hub, follower)
        disk, cut = Disk(hub.services.store), Cut(hub, B)
        await jobs.start(getattr(hub.services, job).run)
        await cut.fails(clock)
        disk.full = True
        getattr(hub.services, job).heard(B)
        await until(lambda: _refuses(disk))
        await trio.testing.wait_all_tasks_blocked(0.05)
        disk.full = cut.is_cut = False
        jobs.start_soon(_pass_time, clock)
        await arrived()
        jobs.cancel_scope.cancel()


async def _pass_time(clock: MovableClock) -> None:
    while True:
        clock.advance(10)
        await trio.sleep(0.01)


async def _refuses(disk: Disk) -> bool:
    return disk.refused > 0


@pytest.mark.parametrize(("job", "prepare"), [("delivery", a_message), ("outgoing_welcomes", a_welcome)])
async def test_a_call_ends_a_back_off_from_before_a_restart(job: str, prepare: Prepare, tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, follower):
        await prepare(hub, follower)
        cut = Cut(hub, B)
        async with trio.open_nursery() as jobs:
            await jobs.start(getattr(hub.services, job).run)
            await cut.fails(clock)
            jobs.cancel_scope.cancel()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=(job,)) as (hub, follower):
        await trio.testing.wait_all_tasks_blocked(0.05)
        before = len(hub.peers.calls)
        await call(follower, A)
        await until(lambda: _called_since(hub, before))


async def _called_since(provider: Assembled, before: int) -> bool:
    return len(provider.peers.calls) > before


async def test_a_key_that_waits_for_a_hub_is_presented_when_the_hub_calls(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock) as (hub, follower):
        alice, bob, room = device(hub), device(follower, "bob"), Room()
        await follower.add_device("bob")
        await hub.services.hub.create_group(room.creation(), alice)
        await hub.services.hub.send(room.send("1"), alice)
        cut = Cut(follower, A)
        async with streaming(follower, bob) as wire:
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            await cut.fails(clock)
            cut.is_cut = False
            await call(hub, B)
            assert await heard(wire) == (0, ["1"])


async def test_a_call_ends_the_back_offs_of_a_recovery_after_a_restore(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (restored, other), trio.open_nursery() as jobs:
        theirs, ours = Room(hub=B), Room(hub=A)
        await other.services.hub.create_group(theirs.creation(), device(other))
        await restored.services.hub.create_group(ours.creation(), device(restored))
        await restored.services.hub_router.hub(B).send(device(restored), theirs.send("1"))
        await other.services.hub_router.hub(A).send(device(other), ours.send("1"))
        await restored.services.store.write(partial(recoveries.begin, ours=A, others=()))
        cut = Cut(restored, B)
        await jobs.start(restored.services.recovery_as_hub.run)
        jobs.start_soon(restored.services.recovery_as_follower.run)
        await cut.fails(clock, 16)
        cut.is_cut, before = False, cut.tried
        await call(other, A)
        await until(lambda: _asked(restored, before, "/ds/v1/recover", "/ds/v1/resume"))
        jobs.cancel_scope.cancel()


async def _asked(provider: Assembled, before: int, *paths: str) -> bool:
    return set(paths) <= {called.path for called in provider.peers.calls[before:]}
