"""Who is awake, and up to where a device knows of everything, in virtual time."""

from __future__ import annotations

import trio
import trio.testing

from mimids.ds.wake_ups.listening import (
    AWAKE_AFTER_WAIT_SECONDS,
    AWAKE_SECONDS,
    POSITIONS_APART_SECONDS,
    SENT_PARTITIONS,
    Listening,
)
from mimids.store.push_subscriptions import NewsPosition
from mimids.values import DeviceRow
from mimids.wire.ids import Counter, MaskedPartitionKey

PHONE, OTHER = DeviceRow(1), DeviceRow(2)


def at(stamp: int) -> NewsPosition:
    return NewsPosition(stamp, 1)


async def test_a_request_says_that_a_device_knows_of_what_was_looked_at_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    listening = Listening()
    listening.watch(PHONE)
    listening.note_position(at(5))
    await trio.sleep(1)
    listening.heard(PHONE)
    listening.heard(OTHER)  # has no subscription
    await trio.sleep(1)
    listening.note_position(at(9))
    assert listening.take_contacts() == [(PHONE, at(5))]
    assert listening.take_contacts() == []


async def test_of_a_stream_counts_when_something_came_last_and_not_when_it_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    listening = Listening()
    listening.watch(PHONE)
    listening.note_position(at(5))
    await trio.sleep(10)
    heard_at = trio.current_time()
    await trio.sleep(10)
    listening.note_position(at(6))  # while nobody knows that the device is gone
    await trio.sleep(50)
    listening.ended(PHONE, heard_at)
    assert listening.take_ended() == {PHONE}
    assert listening.take_contacts() == [(PHONE, at(5))]
    assert listening.seconds_awake(PHONE) == 0


async def test_a_contact_never_goes_back(autojump_clock: trio.testing.MockClock) -> None:
    listening = Listening()
    listening.watch(PHONE)
    listening.note_position(at(5))
    opened = trio.current_time()
    await trio.sleep(1)
    listening.note_position(at(6))
    listening.heard(PHONE)
    listening.ended(PHONE, opened)
    assert listening.take_contacts() == [(PHONE, at(6))]


async def test_a_contact_that_could_not_be_stored_is_stored_later() -> None:
    listening = Listening()
    listening.watch(PHONE)
    listening.note_position(at(5))
    listening.heard(PHONE)
    taken = listening.take_contacts()
    listening.put_back([*taken, (OTHER, at(1))])
    assert listening.take_contacts() == taken == [(PHONE, at(5))]


async def test_a_device_stays_awake_for_a_moment(autojump_clock: trio.testing.MockClock) -> None:
    listening = Listening()
    listening.watch(PHONE)
    listening.heard(PHONE)
    assert listening.seconds_awake(PHONE) == AWAKE_SECONDS
    listening.ended(PHONE, None)
    await trio.sleep(AWAKE_SECONDS)
    assert listening.seconds_awake(PHONE) == AWAKE_AFTER_WAIT_SECONDS - AWAKE_SECONDS
    assert listening.seconds_awake(OTHER) == 0


async def test_the_job_hears_at_once_of_a_device_that_was_woken() -> None:
    told: list[int] = []
    listening = Listening(lambda: told.append(1))
    listening.watch(PHONE, is_woken=True)
    listening.note_position(at(5))
    listening.heard(PHONE)
    assert told == [1]
    listening.take_contacts()
    listening.heard(PHONE)
    assert told == [1]
    listening.woken(PHONE)
    listening.heard(PHONE)
    assert told == [1, 1]


async def test_a_woken_device_that_is_heard_before_the_first_look_may_be_woken_again() -> None:
    """After a restart; it was not woken any more. Nothing is known of what it knows, so the stored position stays."""
    told: list[int] = []
    listening = Listening(lambda: told.append(1))
    listening.watch(PHONE, is_woken=True)
    listening.heard(PHONE)
    assert told == [1]
    assert listening.take_contacts() == [(PHONE, NewsPosition(0, 0))]


async def test_positions_that_are_close_together_count_as_the_later_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    listening = Listening()
    listening.watch(PHONE)
    for stamp in (1, 2, 3):
        listening.note_position(at(stamp))
        await trio.sleep(0.01)
    listening.heard(PHONE)
    assert listening.take_contacts() == [(PHONE, at(3))]


async def test_positions_that_are_as_far_apart_as_they_must_be_stay_apart(
    autojump_clock: trio.testing.MockClock,
) -> None:
    listening = Listening()
    listening.watch(PHONE)
    heard_at = 0.0
    for stamp in (1, 2, 3):
        listening.note_position(at(stamp))
        heard_at = trio.current_time() - POSITIONS_APART_SECONDS / 2
        await trio.sleep(POSITIONS_APART_SECONDS)
    listening.ended(PHONE, heard_at)
    assert listening.take_contacts() == [(PHONE, at(2))]


async def test_only_some_partitions_are_remembered_for_a_device() -> None:
    listening = Listening()
    listening.watch(PHONE)
    masks = [MaskedPartitionKey(number.to_bytes(32, "big")) for number in range(SENT_PARTITIONS + 1)]
    for mask in masks:
        listening.sent(PHONE, mask, Counter(7))
    listening.sent(OTHER, masks[0], Counter(7))
    assert list(listening.last_sent(PHONE)) == masks[1:]
    assert listening.last_sent(OTHER) == {}


async def test_a_forgotten_device_leaves_nothing_behind() -> None:
    listening = Listening()
    listening.watch(PHONE)
    listening.note_position(at(5))
    listening.heard(PHONE)
    listening.ended(PHONE, None)
    listening.forget(PHONE)
    assert listening.take_contacts() == []
    assert listening.take_ended() == set()
    assert PHONE not in listening
