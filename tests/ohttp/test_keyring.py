from __future__ import annotations

import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.ohttp.at_rest import KeyUnavailable, OperatorKey
from mimids.ohttp.config import decode_keys, key_config
from mimids.ohttp.hpke import PrivateKey
from mimids.ohttp.keyring import (
    KEY_IDS,
    MARGIN_SECONDS,
    MAX_AGE_SECONDS,
    STORED_AHEAD_SECONDS,
    KeyIdsExhausted,
    Keyring,
    KeyRow,
    Schedule,
    load_row,
)

DAY = 86400
SCHEDULE = Schedule(rotate=30 * DAY, grace=7 * DAY)
START = 1_700_000_000
EMPTY = Keyring((), SCHEDULE)


def rotated(keyring: Keyring, now: int) -> Keyring:
    row = keyring.next_row(now, random.Random(now).randbytes(32))
    return attrs.evolve(keyring, rows=(*keyring.rows, row))


def test_the_first_key_is_due_at_once_and_the_next_after_rotate() -> None:
    assert EMPTY.rotation_due_at(START) == START
    assert EMPTY.served(START) is None
    keyring = rotated(EMPTY, START)
    (row,) = keyring.rows
    assert (row.key_id, row.created_at, row.retire_at) == (0, START, START + 37 * DAY)
    assert keyring.rotation_due_at(START + DAY) == START + 30 * DAY
    assert keyring.live(START) == {0: row.private}


def test_the_next_key_is_stored_before_it_is_served() -> None:
    keyring = rotated(EMPTY, START)
    due = START + 30 * DAY
    assert keyring.storing_due_at(due) == due - STORED_AHEAD_SECONDS
    keyring = rotated(keyring, due)
    first, second = keyring.rows
    before = due - STORED_AHEAD_SECONDS
    assert keyring.current(before) == first
    assert keyring.live(before) == {0: first.private, 1: second.private}
    assert keyring.rotation_due_at(before) == due + 30 * DAY
    assert keyring.current(due) == second
    # A key that a command makes meanwhile is served at once, and the stored one in its time.
    third = keyring.next_row(before, b"n" * 32)
    assert (third.key_id, third.created_at) == (2, before)
    keyring = attrs.evolve(keyring, rows=(*keyring.rows, third))
    assert [keyring.current(at) for at in (before, due)] == [third, second]


def test_clients_get_the_newest_key_while_the_old_one_still_decrypts() -> None:
    first = rotated(EMPTY, START)
    moment = START + 30 * DAY
    keyring = rotated(first, moment)
    old, new = keyring.rows
    assert keyring.live(moment) == {0: old.private, 1: new.private}
    served = keyring.served(moment)
    assert served is not None
    assert decode_keys(served.body) == (key_config(1, new.private),)
    assert served.not_after == new.retire_at - MARGIN_SECONDS
    assert served.max_age == MAX_AGE_SECONDS
    assert keyring.outlived(old.retire_at - 1) == ()
    assert keyring.outlived(old.retire_at) == (old,)
    assert keyring.live(old.retire_at) == {1: new.private}


def test_a_late_rotation_serves_the_old_key_no_longer_than_clients_may_use_it() -> None:
    keyring = rotated(EMPTY, START)
    (row,) = keyring.rows
    for now in (row.not_after - 5, row.not_after):
        served = keyring.served(now)
        assert served is not None
        assert served.max_age == row.not_after - now
    assert keyring.served(row.not_after + 1) is None
    assert keyring.rotation_due_at(row.not_after + 1) <= row.not_after
    assert keyring.rotation_due_at(row.retire_at) == row.retire_at


@given(
    rotate=st.integers(1, 40 * DAY),
    grace=st.integers(MARGIN_SECONDS + 1, 10 * DAY),
    steps=st.lists(st.integers(1, 20 * DAY), min_size=1, max_size=60),
)
def test_over_the_years_no_client_holds_a_key_longer_than_it_lives(rotate: int, grace: int, steps: list[int]) -> None:
    if grace // rotate + 2 > KEY_IDS:
        with pytest.raises(ValueError, match="run out"):
            Schedule(rotate, grace)
        return
    keyring, now = Keyring((), Schedule(rotate, grace)), START
    promised: list[tuple[int, int, bytes]] = []  # until when, key id, public key
    for step in steps:
        if keyring.rotation_due_at(now) <= now:
            gone = keyring.outlived(now)
            keyring = rotated(attrs.evolve(keyring, rows=tuple(row for row in keyring.rows if row not in gone)), now)
        ids = [row.key_id for row in keyring.rows if now < row.retire_at]
        assert len(set(ids)) == len(ids) <= KEY_IDS
        served = keyring.served(now)
        assert served is not None
        (config,) = decode_keys(served.body)
        assert 0 <= served.max_age <= served.not_after - now
        promised.append((served.not_after, config.key_id, config.public_key))
        for until, key_id, public in promised:
            if now <= until + MARGIN_SECONDS - 1:
                assert keyring.live(now)[key_id].public == public
        now += step


def test_identifiers_wrap_around_and_skip_those_of_live_keys() -> None:
    private = PrivateKey(b"k" * 32)
    live = KeyRow(0, private, START - 5, START + 100)
    newest = KeyRow(255, private, START, START + 100)
    keyring = Keyring((newest, live), SCHEDULE)
    assert keyring.next_row(START + 10, b"n" * 32).key_id == 1
    assert keyring.next_row(START + 100, b"n" * 32).key_id == 0
    every = tuple(KeyRow(key_id, private, START, START + 1) for key_id in range(KEY_IDS))
    with pytest.raises(KeyIdsExhausted):
        Keyring(every, SCHEDULE).next_row(START, b"n" * 32)


def test_keys_are_ordered_even_within_a_second_or_after_the_clock_is_set_back() -> None:
    keyring = rotated(rotated(EMPTY, START), START)
    first, second = keyring.rows
    assert second.created_at == first.created_at + 1
    assert keyring.current(START) == second
    third = keyring.next_row(START - DAY, b"n" * 32)
    assert third.created_at > second.created_at


def test_a_key_made_under_an_earlier_schedule_keeps_its_lifetime() -> None:
    made = rotated(EMPTY, START).rows
    longer = Keyring(made, Schedule(rotate=90 * DAY, grace=7 * DAY))
    assert longer.rotation_due_at(START) == START + 30 * DAY
    shorter = Keyring(made, Schedule(rotate=DAY, grace=7 * DAY))
    assert shorter.rotation_due_at(START) == START + DAY


@pytest.mark.parametrize(("rotate", "grace"), [(0, DAY), (-1, DAY), (DAY, 0), (DAY, MARGIN_SECONDS)])
def test_a_schedule_that_leaves_clients_without_a_key_is_refused(rotate: int, grace: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Schedule(rotate, grace)


@pytest.mark.parametrize("operator", [None, OperatorKey(b"o" * 32)])
def test_a_row_is_read_back_from_its_stored_form(operator: OperatorKey | None) -> None:
    (row,) = rotated(EMPTY, START).rows
    stored = row.stored(operator, bytes(12))
    assert load_row(row.key_id, row.created_at, row.retire_at, stored, operator) == row


def test_an_encrypted_key_cannot_be_moved_to_another_row_or_given_a_longer_life() -> None:
    operator = OperatorKey(b"o" * 32)
    (row,) = rotated(EMPTY, START).rows
    stored = row.stored(operator, bytes(12))
    for key_id, created_at, retire_at in [
        (row.key_id + 1, row.created_at, row.retire_at),
        (row.key_id, row.created_at + 1, row.retire_at),
        (row.key_id, row.created_at, row.retire_at + 1),
    ]:
        with pytest.raises(KeyUnavailable):
            load_row(key_id, created_at, retire_at, stored, operator)
