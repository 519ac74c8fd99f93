"""When free memory is overwritten, and given back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from mimids import memory
from mimids.memory import (
    BUSY_SECONDS,
    GROWN_OCTETS,
    LARGEST_BLOCK,
    LOOK_SECONDS,
    OVERWRITE_SECONDS,
    give_back_free_memory,
    overwrite_free_blocks,
)

ROOT = Path(__file__).parent.parent


async def test_memory_is_given_back_while_the_process_is_larger_than_at_its_start(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, floor, given_back = 100 * GROWN_OCTETS, 100 * GROWN_OCTETS, 0

    def trim(pad: int) -> None:
        nonlocal size, given_back
        size, given_back = floor, given_back + 1

    async def run_here(function: Callable[[int], None], argument: int) -> None:
        function(argument)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=trim))
    monkeypatch.setattr(trio.to_thread, "run_sync", run_here)
    monkeypatch.setattr(memory, "resident_octets", lambda: size)
    seen = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_back_free_memory)
        await trio.testing.wait_all_tasks_blocked()
        for grows, keeps in ((0, 0), (2, 0), (1, 0), (2, 2), (0, 0), (-2, -2), (2, 0)):  # times GROWN_OCTETS
            size, floor = size + grows * GROWN_OCTETS, floor + keeps * GROWN_OCTETS
            await trio.sleep(LOOK_SECONDS)
            await trio.testing.wait_all_tasks_blocked()
            seen.append(given_back)
        nursery.cancel_scope.cancel()
    assert seen == [0, 1, 1, 2, 3, 3, 4]


async def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    await give_back_free_memory()


async def test_free_blocks_are_overwritten_while_the_process_works(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, filled = 1.0, list[int]()
    monkeypatch.setattr(memory, "time", SimpleNamespace(process_time=lambda: used))
    monkeypatch.setattr(memory, "_fill_free_blocks", filled.append)
    rounds = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(overwrite_free_blocks)
        await trio.testing.wait_all_tasks_blocked()
        for seconds in (0.0, 0.4 * BUSY_SECONDS, 0.8 * BUSY_SECONDS, 0.0):
            used += seconds
            await trio.sleep(OVERWRITE_SECONDS)
            await trio.testing.wait_all_tasks_blocked()
            rounds.append(filled.count(filled[0]))
        nursery.cancel_scope.cancel()
    assert rounds == [1, 1, 2, 2]
    assert max(filled) > LARGEST_BLOCK - memory.BLOCK_STEP
    assert min(filled) == sys.getsizeof(bytes(16))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_small_objects_left_is_overwritten() -> None:
    secrets = [b"secret %09d" % number for number in range(1000)]
    at = {id(each) + sys.getsizeof(b"") - 1: b"secret %09d" % number for number, each in enumerate(secrets)}
    left = []
    del secrets
    memory._fill_free_blocks(sys.getsizeof(bytes(16)))
    with Path("/proc/self/mem").open("rb", buffering=0) as own:
        for address, secret in at.items():
            own.seek(address)
            left.append(own.read(len(secret)) == secret)
    assert sum(left) < 10


GROWS_AND_SHRINKS = """
import trio, trio.testing
from mimids import memory, process

memory.LOOK_SECONDS = 0.05
process._tune()
before = memory.resident_octets()

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.give_back_free_memory)
        await trio.testing.wait_all_tasks_blocked()
        pieces = [bytes(100_000) for _ in range(2_000)]
        kept = pieces[::50]  # between them, and at the end of the heap
        grown = memory.resident_octets()
        await trio.sleep(0.2)
        pieces.clear()
        with trio.move_on_after(20):
            while memory.resident_octets() > before + 60_000_000:
                await trio.sleep(0.05)
        print(grown - before, memory.resident_octets() - before)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_free_memory_between_objects_that_live_longer_is_given_back() -> None:
    grown, left = numbers_printed_by(GROWS_AND_SHRINKS)
    assert grown > 150_000_000
    assert left < 60_000_000


def numbers_printed_by(program: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return [int(each) for each in done.stdout.split()]


LEAVES_SECRETS = """
import ctypes, sys
from mimids import memory, process

process.protect_memory()
secret, sizes = b"a secret of a request. ", range(530, 1000, 20)
kept = [(secret * 50)[:octets] for octets in sizes]
places = [id(each) + sys.getsizeof(b"") - 1 for each in kept]
kept.clear()
seen = lambda: sum(secret[5:] in ctypes.string_at(at, octets) for at, octets in zip(places, sizes))
before = seen()
memory.overwrite_cached_blocks()
print(before, seen())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_free_blocks_that_glibc_keeps_for_a_thread_are_overwritten() -> None:
    before, after = numbers_printed_by(LEAVES_SECRETS)
    assert before > 10
    assert after == 0
