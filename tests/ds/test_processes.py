"""Two processes of one provider on one database: what happens at one holds at the other, and jobs run once.

The file is long because it has a test for each thing that processes tell each other.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from mimids.ds import processes
from mimids.ds.limits.kept_rates import KeptRates
from mimids.ds.limits.rates import TOLD_PARTS, Rate, Rates
from mimids.ds.notifier import EVERYTHING, Notifier, heard_topic, inbox_topic, partition_topic
from mimids.ds.processes import Processes, payloads_of, topics_in
from mimids.errors import ProviderNotAllowed, QuotaExceeded, RateLimited, Unauthenticated
from mimids.store.engine.transaction import Tx
from mimids.values import Device, DeviceRow
from mimids.wire.ids import Counter, MaskedPartitionKey, ProviderId, Secret
from mimids.wire.messages import ReceiveRequest
from tests.support import postgresql
from tests.support.device_streams import Wire
from tests.support.doubles import stopped_clock
from tests.support.federation import Room, device, texts
from tests.support.patience import patience
from tests.support.provider import Assembled, assembled
from tests.support.stored import until
from tests.support.twins import ran, twins

needs_postgresql = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))

A, B = ProviderId("a.example"), ProviderId("b.example")


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes look more often than in earnest whether another one has ended."""
    monkeypatch.setattr(processes, "ALIVE_SECONDS", 0.1)


async def known(at: Assembled, token: str) -> Device | None:
    return await at.services.devices.authenticate(Secret(token.encode()))


async def room_at(at: Assembled) -> Room:
    """Make a device and a group of it."""
    room = Room()
    await at.add_device()
    await at.services.hub.create_group(room.creation(), device(at))
    return room


@needs_postgresql
async def test_what_is_sent_at_one_process_is_heard_at_the_other(tmp_path: Path) -> None:
    async with twins(tmp_path) as (one, other):
        room, heard = await room_at(one), list[str]()

        async def wait() -> None:
            request = ReceiveRequest(room.key, Counter(0))
            heard.extend(texts(await other.services.hub.receive(request, device(other), wait_seconds=60)))

        async with trio.open_nursery() as waiting:
            waiting.start_soon(wait)
            await until(lambda: _returns(other.services.notifier.statistics().topics > 0))
            await trio.sleep(0.05)
            await one.services.hub.send(room.send("hello"), device(one))
            waiting.cancel_scope.deadline = trio.current_time() + 10
        assert heard == ["hello"]


async def _returns(value: bool) -> bool:
    return value


@needs_postgresql
async def test_counters_have_no_gap_and_none_is_given_twice(tmp_path: Path) -> None:
    async with twins(tmp_path) as (one, other):
        room, counters = await room_at(one), list[int]()

        async def send(at: Assembled, text: str) -> None:
            for number in range(15):
                sent = await at.services.hub.send(room.send(f"{text} {number}"), device(at))
                counters.append(sent.counter)

        async with trio.open_nursery() as senders:
            for at, text in ((one, "a"), (other, "b"), (one, "c"), (other, "d")):
                senders.start_soon(send, at, text)
        assert sorted(counters) == list(range(60))
        request = ReceiveRequest(room.key, Counter(0))
        read = [texts(await at.services.hub.receive(request, device(at))) for at in (one, other)]
        assert read[0] == read[1]
        assert len(set(read[0])) == 60


# --- caches -----------------------------------------------------------------------------------------------------


@needs_postgresql
async def test_a_device_that_changes_often_makes_others_read_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "READ_SECONDS", 60)
    async with twins(tmp_path) as (one, other):
        await one.add_device()
        reads = list[None]()

        async def read(devices: object) -> None:
            if devices is not None:  # else it is the read at the start
                reads.append(None)

        monkeypatch.setattr(other.services.sessions, "end_refused", read)
        for _ in range(10):
            answer = await ran(one, "device rotate-token", user="alice", name="phone")
        await until(lambda: _is_known(other, answer["token"]))
        assert len(reads) <= 1


async def _is_known(at: Assembled, token: str) -> bool:
    return await known(at, token) is not None


@needs_postgresql
@pytest.mark.parametrize("command", ["device remove", "device rotate-token", "user suspend", "user remove"])
async def test_a_device_that_is_cut_off_at_one_process_is_cut_off_at_the_other(command: str, tmp_path: Path) -> None:
    names = {"user": "alice"} if command.startswith("user") else {"user": "alice", "name": "phone"}
    async with twins(tmp_path) as (one, other):
        token, ended = await one.add_device(), trio.Event()
        alice = await known(other, token)
        assert alice is not None
        assert await known(other, token) == alice

        async def serve() -> None:
            with pytest.raises(Unauthenticated):
                async with other.services.sessions.open(alice):
                    await trio.sleep_forever()
            ended.set()

        async with trio.open_nursery() as serving:
            serving.start_soon(serve)
            await until(lambda: _returns(other.services.sessions.is_open(alice.row)))
            await ran(one, command, **names)
            with patience():
                await ended.wait()
        try:
            assert await known(other, token) is None
        except Unauthenticated:
            assert command == "user suspend"


async def allows(at: Assembled, provider: ProviderId) -> bool:
    try:
        await at.services.offered_terms.load(provider)
    except ProviderNotAllowed:
        return False
    return True


@needs_postgresql
async def test_what_an_operator_decides_at_one_process_holds_at_the_other(tmp_path: Path) -> None:
    async with twins(tmp_path) as (one, other):
        services = other.services
        assert await allows(other, B)
        await ran(one, "ban add", subject=B)
        await until(lambda: _is_refused(other))
        await ran(one, "ban remove", subject=B)
        await until(lambda: allows(other, B))

        assert not services.config.federation.allows(ProviderId("new.example"), us=services.config.provider)
        services.config.federation.decide({})  # the twins share their configuration here
        await ran(one, "provider allow", provider="new.example")
        services.config.federation.decide({})
        await services.processes._read_again["federation_rules"](None)
        assert services.config.federation.allows(ProviderId("new.example"), us=services.config.provider)


async def _is_refused(at: Assembled) -> bool:
    return not await allows(at, B)


@needs_postgresql
async def test_keys_that_are_rotated_at_one_process_are_used_at_the_other(tmp_path: Path) -> None:
    async with twins(tmp_path) as (one, other):
        before = [key["signature_key"] for key in await other.services.provider_keys.published()]
        await ran(one, "ohttp rotate", retire_others=True)
        await until(lambda: _returns(set(other.services.ohttp_keys.live()) == set(one.services.ohttp_keys.live())))
        assert other.services.ohttp_keys.served().body == one.services.ohttp_keys.served().body
        await ran(one, "signature-key rotate")
        await until(lambda: _are_published(other, one))
        assert before != [key["signature_key"] for key in await other.services.provider_keys.published()]


async def _are_published(at: Assembled, like: Assembled) -> bool:
    return await at.services.provider_keys.published() == await like.services.provider_keys.published()


@needs_postgresql
async def test_messages_that_one_process_deletes_are_not_cached_at_the_other(tmp_path: Path) -> None:
    async with twins(tmp_path) as (one, other):
        room = await room_at(one)
        await other.services.hub.send(room.send("hello"), device(other))
        (partition,) = await one.services.store.read(lambda tx: tx.one("SELECT partition FROM messages")) or (0,)

        def cached() -> list[bytes]:
            return other.services.recent.messages(partition, Counter(0), Counter(1), limit_octets=1000)

        assert cached()
        await one.services.store.write(lambda tx: tx.execute("UPDATE messages SET body = NULL"))
        await until(lambda: _returns(not cached()))


@needs_postgresql
async def test_caches_are_cleared_before_the_next_write_also_if_nothing_was_heard(tmp_path: Path) -> None:
    async with twins(tmp_path, together=False) as (one, other):
        token, found = await one.add_device(), list[Device | None]()
        assert await known(other, token) is not None
        remove = partial(lambda tx: tx.execute("UPDATE devices SET token_digest = ?", (bytes(32),)))
        await one.services.store.write(remove)
        found.append(await known(other, token))  # nothing has told it
        await other.services.store.write(lambda tx: None)
        found.append(await known(other, token))
        assert [each is None for each in found] == [False, True]


@needs_postgresql
async def test_what_no_process_caches_clears_no_cache(tmp_path: Path) -> None:
    async with twins(tmp_path) as (one, other):
        room, cleared = await room_at(one), list[str]()
        await one.services.store.write(lambda tx: None)
        await other.services.store.write(lambda tx: None)
        for at, name in ((one, "one"), (other, "other")):
            at.services.store.when_changed(partial(cleared.append, name))
        for at in (one, other, one, other):
            await at.services.hub.send(room.send("hello"), device(at))
        assert cleared == []


@needs_postgresql
async def test_a_process_that_was_cut_off_looks_at_everything(tmp_path: Path) -> None:
    async with twins(tmp_path) as (one, other):
        room, cleared = Room(), list[int]()
        other.services.store.when_changed(lambda: cleared.append(1))
        with other.services.notifier.listen(partition_topic(MaskedPartitionKey(bytes(32)))) as waiter:

            def end_listeners(tx: Tx) -> None:
                tx.all(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND query LIKE 'LISTEN mimids_n%'"
                )

            await one.services.store.read(end_listeners)
            with patience():
                await waiter.wait()
        assert cleared
        await one.add_device()
        await one.services.hub.create_group(room.creation(), device(one))


# --- jobs -------------------------------------------------------------------------------------------------------


@needs_postgresql
async def test_a_job_runs_in_one_process_and_another_takes_over(tmp_path: Path, quickly: None) -> None:
    async with twins(tmp_path, together=False) as (one, other):
        running: set[str] = set()

        async def job(name: str, *, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            running.add(name)
            try:
                await trio.sleep_forever()
            finally:
                running.discard(name)

        async def serve(at: Assembled, name: str, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
            async with trio.open_nursery() as jobs:
                await jobs.start(at.services.processes.run)
                await jobs.start(partial(at.services.processes.run_in_one_process, partial(job, name)))
                task_status.started(jobs.cancel_scope)

        async with trio.open_nursery() as serving:
            first = await serving.start(serve, one, "one")
            second = await serving.start(serve, other, "other")
            assert running == {"one"}
            rows = (await ran(other, "processes"))["processes"]
            assert {each["name"]: each["runs_jobs"] for each in rows} == {
                one.services.processes.name: True,
                other.services.processes.name: False,
            }
            assert other.services.processes.statistics().runs_jobs == 0
            first.cancel()
            await until(lambda: _returns(running == {"other"}))
            assert len((await ran(other, "processes"))["processes"]) == 1
            second.cancel()


@needs_postgresql
async def test_a_process_that_loses_the_lock_stops_its_jobs_and_may_get_them_again(
    tmp_path: Path, quickly: None
) -> None:
    async with twins(tmp_path, together=False) as (one, other):
        starts: list[int] = []

        async def job(*, task_status: trio.TaskStatus[None]) -> None:
            starts.append(1)
            task_status.started()
            await trio.sleep_forever()

        async with trio.open_nursery() as jobs:
            await jobs.start(one.services.processes.run)
            await jobs.start(one.services.processes.run_in_one_process, job)

            def end_holder(tx: Tx) -> None:
                tx.all(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
                    " WHERE datname = current_database() AND locktype = 'advisory' AND objsubid = 1"
                )

            await other.services.store.read(end_holder)
            await until(lambda: _returns(len(starts) == 2))
            jobs.cancel_scope.cancel()


async def test_without_postgresql_there_is_one_process_and_it_runs_the_jobs(tmp_path: Path) -> None:
    store: Any = None
    alone = Processes(store, Notifier(), None)
    assert alone.runs_jobs()

    async def job(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()

    async with trio.open_nursery() as jobs:
        await jobs.start(alone.run)
        await jobs.start(alone.run_in_one_process, job)
        jobs.cancel_scope.cancel()


# --- rates ------------------------------------------------------------------------------------------------------


@needs_postgresql
async def test_processes_subtract_what_they_counted_from_one_stored_bucket(tmp_path: Path) -> None:
    async with twins(tmp_path, together=False) as (one, other):
        clock = stopped_clock()
        kept: list[tuple[Rates, Callable[[], Awaitable[None]]]] = []
        for at in (one, other):
            rates = Rates(Rate("joins", 10 / 3600, 10))
            kept.append((rates, KeptRates(at.services.store, clock, [rates], shared=True).save))
        (here, save), (there, save_there) = kept
        here.take("alice", clock.now(), 6)
        there.take("alice", clock.now(), 3)
        await save()
        await save_there()
        assert there.left("alice", clock.now(), at_most=10) == 1
        await save()
        here.take("alice", clock.now(), 1)
        await save()
        there.take("alice", clock.now(), 1)  # it does not know yet
        await save_there()
        with pytest.raises(RateLimited):
            there.take("alice", clock.now())
        (stored,) = await one.services.store.read(lambda tx: tx.all("SELECT tokens_left FROM rate_buckets"))
        assert stored == (-1,)

        clock.advance(1800)
        there.take("alice", clock.now(), 2)
        await save_there()
        (stored,) = await one.services.store.read(lambda tx: tx.all("SELECT tokens_left FROM rate_buckets"))
        assert math.isclose(stored[0], -1 + 5 - 2, abs_tol=1)

        clock.advance(1800)
        await save()  # its own bucket is full, and the stored one is not yet
        assert len(await one.services.store.read(lambda tx: tx.all("SELECT 1 FROM rate_buckets"))) == 1
        clock.advance(3600)
        await save_there()
        assert await one.services.store.read(lambda tx: tx.all("SELECT 1 FROM rate_buckets")) == []


@needs_postgresql
async def test_two_processes_together_allow_what_one_allows_and_a_burst_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SHARE_SECONDS", 0.02)
    limits = {"device_sends_per_second": 100, "device_sends_burst": 400, "user_sends_per_second": 0}
    async with twins(tmp_path, limits=limits) as (one, other):
        await one.add_device()
        sender, took, began = device(one), 0, trio.current_time()
        gates = [at.services.gate._rates for at in (one, other)]
        while trio.current_time() < began + 3:
            for rates in gates:
                taken, _ = rates.take_sends(sender, 20)
                took += taken
            await trio.sleep(0.01)
        seconds = trio.current_time() - began
        assert took >= 400 + 100 * (seconds - 1)
        assert took <= 2 * 400 + 100 * seconds + 2 * 400 // TOLD_PARTS + 100


@needs_postgresql
async def test_what_says_who_fetches_is_not_told(tmp_path: Path) -> None:
    async with twins(tmp_path) as (one, _):
        shared = one.services.shared_rates._rates.values()
        limits = {each.rate.limit for each in shared}
        assert {"device_sends_per_second", "provider_sends_per_second", "gateway_requests_per_second"} <= limits
        assert not any("fetches" in limit or "address" in limit for limit in limits)


# --- streams ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_streams(at: Assembled, count: int) -> AsyncIterator[list[Wire]]:
    """Open streams of the device at a process, one after the other; yield those that ended for too many."""
    ended: list[Wire] = []

    async def serve(wire: Wire) -> None:
        try:
            await at.services.streams.serve(device(at), wire)
        except QuotaExceeded:
            ended.append(wire)

    async with trio.open_nursery() as serving:
        for _ in range(count):
            serving.start_soon(serve, Wire())
        await until(lambda: _returns(at.services.streams.statistics().open >= count))
        yield ended
        serving.cancel_scope.cancel()


@needs_postgresql
async def test_a_device_has_at_most_so_many_streams_at_all_processes_together(tmp_path: Path) -> None:
    async with twins(tmp_path, limits={"device_streams": 3}) as (one, other):
        await one.add_device()
        row = device(one).row
        async with open_streams(one, 2) as ended_first:
            await until(lambda: _returns(other.services.streams.open_of(row) == 2))
            async with open_streams(other, 2) as ended_second:
                await until(lambda: _returns(len(ended_first) == 1))
                for each in (one, other):
                    await until(partial(_has_open, each, row, 3))
                assert ended_second == []
            await until(partial(_has_open, one, row, 1))  # it was told that the others have ended


async def _has_open(at: Assembled, row: DeviceRow, streams: int) -> bool:
    return at.services.streams.open_of(row) == streams


@needs_postgresql
async def test_a_process_that_begins_later_learns_which_streams_are_open(tmp_path: Path) -> None:
    async with twins(tmp_path, limits={"device_streams": 3}) as (one, other):
        await one.add_device()
        row = device(one).row
        async with open_streams(one, 2), assembled(one.config) as third:
            await until(partial(_has_open, third, row, 2))
            other.services.streams.forget_processes([])
            assert other.services.streams.open_of(row) == 0


@needs_postgresql
async def test_the_streams_of_a_process_that_gives_no_sign_of_life_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quickly: None
) -> None:
    monkeypatch.setattr(processes, "FROZEN_SECONDS", 0.5)
    async with twins(tmp_path, limits={"device_streams": 3}) as (one, other):
        await one.add_device()
        row = device(one).row
        async with assembled(one.config) as third, open_streams(third, 2):
            await until(partial(_has_open, one, row, 2))
            await until(lambda: _returns(one.services.processes.statistics().alive == 3))
            monkeypatch.setattr(third.services.processes._member, "note_alive", _frozen)
            await until(partial(_has_open, one, row, 0))
            await until(lambda: _returns(other.services.processes.statistics().alive == 2))


async def _frozen() -> bool:
    await trio.sleep_forever()
    return False


# --- what is told -----------------------------------------------------------------------------------------------


def test_topics_travel_as_they_are() -> None:
    topics: set[Hashable] = {"delivery", inbox_topic(DeviceRow(7)), ("heard", "b.example")}
    topics |= {partition_topic(MaskedPartitionKey(bytes([number]) * 48)) for number in range(120)}
    payloads = list(payloads_of(topics))
    assert {topic for payload in payloads for topic in topics_in(payload)} == topics
    assert max(len(payload.encode()) for payload in payloads) < 8000
    long = {heard_topic(ProviderId(f"{number:03}." + "b" * 240)) for number in range(200)}
    assert max(len(payload.encode()) for payload in payloads_of(long)) < 8000
    assert {topic for payload in payloads_of(long) for topic in topics_in(payload)} == long
    assert list(payloads_of({EVERYTHING, "delivery"})) == [""]
    assert topics_in("") == [EVERYTHING]


@needs_postgresql
async def test_the_other_process_hears_who_can_be_reached_and_who_has_subscribed(tmp_path: Path) -> None:
    async with twins(tmp_path) as (one, other):
        called: list[str] = []
        other.services.callers.listen(called.append)
        one.services.callers.note(B)
        one.services.notifier.notify(inbox_topic(DeviceRow(1)))  # calls are told with what comes next
        await until(lambda: _returns(called == [B]))
        with other.services.notifier.listen(heard_topic(B)) as waiter:
            one.services.callers.note(B)
            one.services.notifier.notify(inbox_topic(DeviceRow(1)))
            with patience():
                await waiter.wait()
        await trio.sleep(0.05)
        assert called == [B, B]  # the other process tells nobody of what it has only heard


@needs_postgresql
async def test_a_sweep_that_is_asked_for_at_one_process_runs_where_the_jobs_run(tmp_path: Path) -> None:
    async with twins(tmp_path) as (one, other), trio.open_nursery() as jobs:
        await jobs.start(partial(one.services.processes.run_in_one_process, one.services.sweeper.run))
        other.services.sweeper.sweep_soon()
        await until(lambda: _returns(one.services.sweeper.statistics().sweeps == 1))
        jobs.cancel_scope.cancel()


# --- what each process keeps ------------------------------------------------------------------------------------


@needs_postgresql
async def test_a_position_that_is_stored_late_does_not_replace_a_newer_one_of_another_process(tmp_path: Path) -> None:
    async with twins(tmp_path, together=False) as (one, other):
        room = await room_at(one)
        for number in range(9):
            await one.services.hub.send(room.send(f"message {number}"), device(one))

        def note(at: Assembled, counter: int) -> None:
            at.services.cursors.note(device(at), A, ReceiveRequest(room.key, Counter(counter)))

        async def stored() -> int:
            (found,) = await one.services.store.read(lambda tx: tx.all("SELECT next_counter FROM device_cursors"))
            return int(found[0])

        note(one, 5)
        note(other, 9)
        await other.services.cursors.save()
        await one.services.cursors.save()
        assert await stored() == 9
        note(one, 7)
        note(one, 0)  # it has lost its messages
        await one.services.cursors.save()
        assert await stored() == 0
