"""Queues and back-off for each push service."""

from __future__ import annotations

import trio
import trio.testing

from mimids.ds.wake_ups.push_queue import CALLS_TO_ONE, CAP_SECONDS, PushQueue
from mimids.values import DeviceRow
from tests.support.doubles import stopped_clock
from tests.support.patience import patience

FIRST, SECOND = "https://one.example", "https://two.example"


def test_a_device_is_queued_once_and_each_service_has_workers_of_its_own() -> None:
    started: list[str] = []
    queue = PushQueue(stopped_clock(), started.append)
    for row in (1, 2, 1):
        queue.add(DeviceRow(row), FIRST)
    queue.add(DeviceRow(3), SECOND)
    assert started == [FIRST, FIRST, SECOND]
    assert len(queue) == 3
    assert queue.take(FIRST) == 1
    queue.add(DeviceRow(1), FIRST)  # it is in hand
    assert [queue.take(FIRST), queue.take(FIRST)] == [2, None]
    queue.done(DeviceRow(1), FIRST)
    queue.add(DeviceRow(1), FIRST)
    assert DeviceRow(1) in queue
    assert started == [FIRST, FIRST, SECOND, FIRST]


def test_a_service_has_some_workers_and_one_while_it_fails() -> None:
    started: list[str] = []
    queue = PushQueue(stopped_clock(), started.append)
    for row in range(100):
        queue.add(DeviceRow(row), FIRST)
    assert len(started) == CALLS_TO_ONE
    (taken, *others) = [queue.take(FIRST) for _ in range(CALLS_TO_ONE)]
    assert taken == 0
    queue.failed(DeviceRow(0), FIRST)
    queue.done(DeviceRow(0), FIRST)
    assert queue.failing == 1
    assert [queue.take(FIRST) for _ in others] == [None] * (CALLS_TO_ONE - 1)
    assert queue.take(FIRST) == CALLS_TO_ONE
    queue.answered(FIRST)
    assert len(started) == 2 * CALLS_TO_ONE - 1


async def test_a_service_that_fails_for_one_device_after_another_is_left_alone_up_to_a_cap() -> None:
    clock = stopped_clock()
    queue = PushQueue(clock, lambda origin: None)
    for row in range(20):
        queue.failed(DeviceRow(row), FIRST)
    async with trio.open_nursery() as nursery:
        await queue.wait(SECOND)  # delays no other
        nursery.start_soon(queue.wait, FIRST)
        await trio.testing.wait_all_tasks_blocked()
        clock.advance(CAP_SECONDS / 2 - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        clock.advance(CAP_SECONDS / 2 + 2)


async def test_a_service_that_fails_for_one_device_only_goes_on_for_others() -> None:
    queue = PushQueue(stopped_clock(), lambda origin: None)
    for _ in range(20):
        queue.failed(DeviceRow(1), FIRST)
    with patience():
        await queue.wait(FIRST)


def test_failures_are_remembered_without_a_queue() -> None:
    queue = PushQueue(stopped_clock(), lambda origin: None)
    queue.add(DeviceRow(1), FIRST)
    assert queue.take(FIRST) == 1
    queue.failed(DeviceRow(1), FIRST)
    queue.done(DeviceRow(1), FIRST)
    assert queue.take(FIRST) is None
    assert (queue.failing, len(queue)) == (1, 0)
