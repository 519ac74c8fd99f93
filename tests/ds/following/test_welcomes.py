"""Welcomes are sent, retried, refused and stored, whatever fails in between.

The file is long because it has a test for each way in which the delivery of a Welcome can fail.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.ds.following.outgoing_welcomes import IDLE_SECONDS, TASKS_OF_A_PROVIDER, TASKS_OF_A_SLOW_PROVIDER
from mimids.ds.groups import branches
from mimids.ds.notifier import OUTGOING
from mimids.ds.ports import PeerAnswer
from mimids.errors import (
    CertificateMismatch,
    Malformed,
    MimiError,
    PeerUnavailable,
    RateLimited,
    UnknownGroup,
    WelcomeNotExpected,
)
from mimids.mls.proposals import Add
from mimids.store import partitions, welcomes
from mimids.store.engine.transaction import Tx
from mimids.testing.clock import MovableClock
from mimids.values import DeviceRow, Follower, Milliseconds
from mimids.wire.declare import encode
from mimids.wire.ids import KeyPackageRef, ProviderId
from mimids.wire.messages import CommitData, SendRequest, WelcomeData, WelcomeInitRequest, WelcomeInitResponse
from tests.support.chats import Chat
from tests.support.doubles import Called, stopped_clock
from tests.support.federation import COMMIT, Room, device, federated
from tests.support.provider import Assembled
from tests.support.signing import Client, by_value
from tests.support.store_faults import Disk
from tests.support.stored import rows, until
from tests.support.welcomes import REF, hand_out, has_states, invite, reaches, welcome_to

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


@pytest.mark.parametrize("path", [INIT, WELCOME])
async def test_a_full_disk_ends_neither_the_job_nor_a_welcome(path: str, tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock) as (hub, follower):
        disk, route = Disk(hub.services.store), Route(hub)

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
        disk = Disk(hub.services.store)
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


async def test_each_refused_reference_is_counted_once(tmp_path: Path) -> None:
    """One is not accepted, and the delivery of the other is refused."""
    async with federated(tmp_path, A, B) as (hub, _):
        route = Route(hub)

        async def accept_one(passed_on: Answer) -> PeerAnswer:
            return PeerAnswer(encode(WelcomeInitResponse((REF,))))

        async def refuse(passed_on: Answer) -> PeerAnswer:
            raise Malformed("no Welcome")

        route.instead = {INIT: accept_one, WELCOME: refuse}
        room, other = Room(), KeyPackageRef(b"of another".ljust(32, b"."))
        await hub.services.hub.create_group(room.creation(), device(hub))
        data = CommitData(room.new_key(), None, WelcomeData(welcome_to(REF, other), (ProviderId(B),) * 2))
        await hub.services.hub.send(SendRequest(room.message("add", kind=COMMIT), room.key, data), device(hub))
        await until(lambda: has_states(hub, "refused", "refused"))
        await until(lambda: _has_logged_refusals(hub, [1, 1]))
        assert hub.services.outgoing_welcomes.statistics().refused == 2


async def _has_logged_refusals(hub: Assembled, references: list[int]) -> bool:
    return [line["references"] for line in hub.log.lines if line["event"] == "Welcome refused"] == references


async def test_a_welcome_that_is_on_its_way_still_counts_against_its_sender_and_is_sent_once(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (hub, follower):
        route = Route(hub)
        senders: list[tuple[int]] = []

        async def slowly(passed_on: Answer) -> PeerAnswer:
            senders.extend(await rows(hub, "SELECT sender FROM outgoing_welcomes"))
            hub.services.notifier.notify(OUTGOING)  # as another commit does
            await trio.sleep(0.05)
            return await passed_on()

        route.instead[WELCOME] = slowly
        await hand_out(follower)
        await invite(hub, Room())
        await reaches(hub, "delivered")
        assert senders == [(device(hub).row,)]
        assert route.called == [INIT, WELCOME]
        assert await rows(hub, "SELECT sender FROM outgoing_welcomes") == [(0,)]


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


async def test_whoever_has_a_welcome_may_join_before_its_hub_has_heard_that_it_came(tmp_path: Path) -> None:
    alice, bob = Client.of(1, f"alice@{A}"), Client.of(2, f"bob@{B}")
    async with federated(tmp_path, A, B) as (hub, follower):
        route, chat = Route(hub), await Chat.create(hub, device(hub), [alice])
        joining = partial(hub.services.hub.group_info, chat.room.group_id, Follower(ProviderId(B)))

        async def reads_the_inbox_at_once(passed_on: Answer) -> PeerAnswer:
            answer = await passed_on()
            await joining()
            return answer

        route.instead[WELCOME] = reads_the_inbox_at_once
        package = bob.key_package()
        ref = package.ref(chat.room.suite)
        await hand_out(follower, ref)
        with pytest.raises(UnknownGroup):
            await joining()
        await chat.commit(by_value(Add(package)), welcome=WelcomeData(welcome_to(ref), (ProviderId(B),)))
        await reaches(hub, "delivered")
        await joining()


@pytest.mark.parametrize("outcome", ["refused", "cancelled", "expired", "delivered"])
async def test_the_octets_of_a_welcome_that_nobody_needs_are_deleted(outcome: str, tmp_path: Path) -> None:
    """They are needed only if it was delivered: its provider may be restored from an older backup."""
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock) as (hub, follower):
        route = Route(hub)

        def cancel(tx: Tx) -> None:
            branches.terminate(tx, partitions.partition_by_row(tx, 2), "ended meanwhile", clock.now())

        def expire(tx: Tx) -> None:
            now = Milliseconds(clock.now() + 1)
            assert welcomes.expire_unsent(tx, held_before=now, due_before=now) == 1

        async def ends(passed_on: Answer) -> PeerAnswer:
            answer = await passed_on()
            if outcome in ("cancelled", "expired"):
                await hub.services.store.write(cancel if outcome == "cancelled" else expire)
            return answer

        route.instead[INIT] = ends
        if outcome != "refused":
            await hand_out(follower)
        await invite(hub, Room())
        await reaches(hub, outcome)
        assert await rows(hub, "SELECT length(body) > 0 FROM welcomes") == [(int(outcome == "delivered"),)]


async def test_a_device_may_acknowledge_a_welcome_before_its_delivery_is_recorded(tmp_path: Path) -> None:
    async with federated(tmp_path, A, jobs_of=()) as (hub,):
        await hand_out(hub)
        await invite(hub, Room(), A)
        await hub.services.incoming_welcomes.init(ProviderId(A), WelcomeInitRequest((REF,)))
        await hub.services.incoming_welcomes.store(ProviderId(A), welcome_to(REF))
        (waiting,) = await hub.services.incoming_welcomes.inbox(DeviceRow(1))
        assert await hub.services.incoming_welcomes.acknowledge(DeviceRow(1), waiting.id) == 1
        assert await rows(hub, "SELECT length(body) > 0 FROM welcomes") == [(1,)]
        await hub.services.store.write(lambda tx: welcomes.settle_outgoing(tx, 1, "delivered", None))
        assert await rows(hub, "SELECT length(body) FROM welcomes") == [(0,)]


async def test_a_welcome_without_octets_is_not_sent_again(tmp_path: Path) -> None:
    """Its branch was terminated while it was delivered, and opened again."""
    async with federated(tmp_path, A, B) as (hub, follower):
        await hand_out(follower)
        await invite(hub, Room())
        await reaches(hub, "delivered")
        number = (await rows(hub, "SELECT provider FROM outgoing_welcomes"))[0][0]
        for octets, again in ((b"", 0), (b"a Welcome", 1)):
            await hub.services.store.write(partial(Tx.execute, sql="UPDATE welcomes SET body = ?", params=(octets,)))
            assert await hub.services.store.write(lambda tx: welcomes.deliver_again(tx, number, limit=10)) == again


async def many_invited(hub: Assembled, count: int, *, senders: int) -> None:
    """Queue a Welcome to b.example from each of `count` groups, whose creators are `senders` devices in turn."""
    for number in range(count):
        sender = device(hub, f"user {number % senders}", 50 + number % senders)
        room, following = Room(f"of many {number}"), Room.new_key()
        await hub.services.hub.create_group(room.creation(), sender)
        data = CommitData(following, None, WelcomeData(welcome_to(REF), (ProviderId(B),)))
        await hub.services.hub.send(SendRequest(room.message("add", kind=COMMIT), room.key, data), sender)


async def deliver_many(hub: Assembled, follower: Assembled, wait: Callable[[int], Awaitable[None]]) -> list[int]:
    """Have 24 Welcomes of 12 senders delivered; return how many offers were in flight at each one.

    Each offer waits for `wait`, which gets that number.
    """
    route, at_once = Route(hub), 0
    at_each_call: list[int] = []

    async def slow(passed_on: Answer) -> PeerAnswer:
        nonlocal at_once
        at_once += 1
        at_each_call.append(at_once)
        await wait(at_once)
        at_once -= 1
        return await passed_on()

    route.instead[INIT] = slow
    await hand_out(follower)
    await many_invited(hub, 24, senders=12)
    await until(lambda: has_states(hub, *["delivered"] * 24))
    return at_each_call


async def test_a_provider_that_is_down_is_dialled_as_seldom_for_many_welcomes_as_for_one(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=("outgoing_welcomes",)) as (hub, follower):
        route = Route(hub)

        async def down(passed_on: Answer) -> PeerAnswer:
            raise PeerUnavailable

        route.instead[INIT] = down
        await hand_out(follower)
        await many_invited(hub, 30, senders=10)
        for _ in range(120):
            await trio.testing.wait_all_tasks_blocked(0.002)
            clock.advance(1)
        assert 4 <= len(route.called) <= 20  # the back-off doubles up to a minute
        route.instead.clear()
        await in_time(clock, lambda: has_states(hub, *["delivered"] * 30))


async def test_a_welcome_is_tried_again_as_soon_as_its_back_off_ends(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=("outgoing_welcomes",)) as (hub, follower):
        route = Route(hub)

        async def down(passed_on: Answer) -> PeerAnswer:
            route.instead.clear()
            raise PeerUnavailable

        async def is_put_off() -> bool:
            return await rows(hub, "SELECT failures FROM outgoing_welcomes") == [(1,)]

        route.instead[INIT] = down
        await hand_out(follower)
        await invite(hub, Room())
        await until(is_put_off)
        await trio.testing.wait_all_tasks_blocked(0.05)
        ((next_at,),) = await rows(hub, "SELECT next_attempt_at FROM outgoing_welcomes")
        assert await has_states(hub, "due")
        assert 0 < next_at - clock.now() < IDLE_SECONDS * 1000
        clock.advance((next_at - clock.now()) / 1000)
        await reaches(hub, "delivered")


async def test_welcomes_of_several_senders_are_sent_to_one_provider_at_the_same_time(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=("outgoing_welcomes",)) as (hub, follower):
        together = trio.Event()

        async def wait(at_once: int) -> None:
            if at_once == TASKS_OF_A_PROVIDER:
                together.set()
            with trio.move_on_after(30):
                await together.wait()

        at_each_call = await deliver_many(hub, follower, wait)
        assert max(at_each_call) == TASKS_OF_A_PROVIDER
        await until(lambda: _serves_nobody(hub))


async def test_welcomes_do_not_queue_up_at_a_provider_that_is_slow_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had one task until eight calls in a row were quick, whatever else there was to do."""
    monkeypatch.setattr("mimids.ds.limits.call_slots.PATIENCE_SECONDS", 0.01)
    async with federated(tmp_path, A, B, jobs_of=("outgoing_welcomes",)) as (hub, follower):
        at_each_call = await deliver_many(hub, follower, _a_moment)
        assert max(at_each_call[TASKS_OF_A_PROVIDER:]) == TASKS_OF_A_SLOW_PROVIDER


async def _a_moment(at_once: int) -> None:
    await trio.sleep(0.05)


async def _serves_nobody(hub: Assembled) -> bool:
    return not hub.services.outgoing_welcomes._busy and not hub.services.outgoing_welcomes._serving
