"""The cache of newest messages agrees with the store, also after undone transactions and evictions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.ds.groups.recent import Recent
from mimids.store.messages import NewMessage
from mimids.values import Milliseconds
from mimids.wire.ids import Counter

APPLICATION, COMMIT = 1, 3
ROOM = 1 << 20


def message(partition: int, counter: int, body: bytes, kind: int = APPLICATION) -> NewMessage:
    return NewMessage(0, partition, Counter(counter), Milliseconds(0), kind, b"", 0, None, body, None)


def add(recent: Recent, partition: int, counter: int, *bodies: bytes) -> None:
    recent.add([message(partition, counter + number, body) for number, body in enumerate(bodies)])


def read(recent: Recent, counter: int, end: int, limit_octets: int = ROOM, partition: int = 1) -> list[bytes]:
    return recent.messages(partition, Counter(counter), Counter(end), limit_octets=limit_octets)


def test_messages_between_two_counters_are_returned() -> None:
    recent = Recent()
    add(recent, 1, 5, b"five", b"six", b"seven")
    assert read(recent, 5, 8) == [b"five", b"six", b"seven"]
    assert read(recent, 6, 7) == [b"six"]
    assert read(recent, 8, 8) == read(recent, 4, 8) == read(recent, 5, 8, partition=2) == []


@pytest.mark.parametrize(("limit", "found"), [(0, 1), (9, 1), (10, 1), (11, 2), (16, 3)])
def test_the_first_message_and_as_many_as_fit_are_returned(limit: int, found: int) -> None:
    recent = Recent()
    add(recent, 1, 0, b"12345678", b"two", b"three")
    assert len(read(recent, 0, 3, limit)) == found


def test_a_commit_empties_the_cache_of_its_partition() -> None:
    recent = Recent()
    add(recent, 1, 0, b"zero")
    recent.add([message(1, 1, b"commit", COMMIT)])
    add(recent, 1, 2, b"two")
    assert read(recent, 0, 3) == []
    assert read(recent, 2, 3) == [b"two"]


def test_the_partition_that_grew_last_is_evicted_last_and_loses_its_older_half() -> None:
    recent = Recent(10)
    add(recent, 1, 0, b"1234")
    add(recent, 2, 0, b"1234")
    add(recent, 1, 1, b"5678")
    assert read(recent, 0, 1, partition=2) == []
    assert read(recent, 0, 2) == [b"1234", b"5678"]
    add(recent, 1, 2, b"9", b"10")
    assert read(recent, 1, 4) == []
    assert read(recent, 2, 4) == [b"9", b"10"]
    add(recent, 1, 4, b"more than there is room for")
    assert read(recent, 4, 5) == []


def test_clear_empties_the_cache() -> None:
    recent = Recent()
    add(recent, 1, 0, b"zero")
    recent.clear()
    assert read(recent, 0, 1) == []


@given(seed=st.integers(0, 2**32), octets=st.integers(0, 60))
def test_messages_below_the_next_counter_are_the_committed_ones(seed: int, octets: int) -> None:
    chance, recent = random.Random(seed), Recent(octets)
    committed: dict[int, list[tuple[int, bytes]]] = {1: [], 2: []}
    for step in range(60):
        partition = chance.choice((1, 2))
        held = committed[partition]
        kinds = chance.choices((APPLICATION, COMMIT), (9, 1), k=chance.randrange(1, 4))
        bodies = [b"%d.%d" % (step, number) for number in range(len(kinds))]
        if chance.random() < 0.9:  # else they were written in another way: by a recovery, or by another process
            start = len(held)
            recent.add([message(partition, start + n, bodies[n], kind) for n, kind in enumerate(kinds)])
        held += zip(kinds, bodies, strict=True)
        if chance.random() < 0.02:
            recent.clear()
        counter = chance.randrange(len(held) + 1)
        found = read(recent, counter, len(held), partition=partition)
        assert found == [body for _, body in held[counter : counter + len(found)]]
