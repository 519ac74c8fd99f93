"""A caller with very many reads at the same time: the others do not wait until all of them are done."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.owners import WORKING_FOR
from mimids.store.engine.sqlite import open_store
from mimids.store.engine.store import Store
from tests.support import notes
from tests.support.patience import PATIENCE_SECONDS

MANY = 50


@pytest.fixture
def path(tmp_path: Path) -> Path:
    notes.create(tmp_path / "notes.sqlite")
    return tmp_path / "notes.sqlite"


@asynccontextmanager
async def busy_store(path: Path, release: threading.Event) -> AsyncIterator[tuple[Store, trio.Nursery]]:
    """Open a store whose only reader is busy until `release` is set; the tasks end with the block."""
    async with open_store(path, readers=1) as store, trio.open_nursery() as tasks:
        tasks.start_soon(store.read, lambda _: release.wait(PATIENCE_SECONDS))
        await trio.testing.wait_all_tasks_blocked()
        yield store, tasks


async def test_a_caller_with_many_reads_delays_no_other_caller(path: Path) -> None:
    """500 requests of one device made three reads each, and everybody else's reads came after them."""
    order: list[str] = []

    async def read(store: Store, owner: str) -> None:
        WORKING_FOR.set(owner)
        await store.read(lambda _: order.append(owner))

    release = threading.Event()
    async with busy_store(path, release) as (store, tasks):
        for owner in [*["greedy"] * MANY, "one", "another"]:
            tasks.start_soon(read, store, owner)
            await trio.testing.wait_all_tasks_blocked()
        assert store.statistics().waiting_reads == MANY + 2
        release.set()
    assert len(order) == MANY + 2
    assert set(order[:3]) == {"greedy", "one", "another"}


async def test_a_read_that_is_cancelled_while_it_waits_gives_up_its_turn(path: Path) -> None:
    release = threading.Event()
    async with busy_store(path, release) as (store, _):
        with trio.move_on_after(0.01) as waiting:
            await store.read(notes.texts)
        assert waiting.cancelled_caught
        assert store.statistics().waiting_reads == 0
        release.set()
        assert await store.read(notes.texts) == []


async def test_reads_that_wait_do_not_wait_for_the_event_loop(path: Path) -> None:
    """The reader was idle until the event loop had come round, once for each read, however short the reads were."""
    read: list[int] = []
    release = threading.Event()
    async with busy_store(path, release) as (store, tasks):
        for number in range(MANY):
            tasks.start_soon(store.read, lambda _, number=number: read.append(number))
        await trio.testing.wait_all_tasks_blocked()
        release.set()
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while len(read) < MANY and time.monotonic() < give_up_at:
            time.sleep(0.001)  # noqa: ASYNC251  # the event loop stands still
        assert sorted(read) == list(range(MANY))
