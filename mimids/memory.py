"""Overwrite memory that is free in the process, and give it back to the system."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from itertools import repeat
from pathlib import Path
from struct import Struct
from typing import Final

import trio

LOOK_SECONDS: Final = 5
GROWN_OCTETS: Final = 16 * 1024 * 1024  # growth since the start from which free memory is given back

OVERWRITE_SECONDS: Final = 5
SMALLEST_BLOCK: Final = sys.getsizeof(bytes(16))  # octets: the size of a partition key
LARGEST_BLOCK: Final = 512  # octets: Python's own allocator hands out no larger blocks
BLOCK_STEP: Final = 16  # octets between the sizes of its blocks
OVERWRITTEN_OCTETS: Final = 1024 * 1024  # of each size
BLOCKS_AT_ONCE: Final = 64
BUSY_SECONDS: Final = 0.002  # after this CPU time since the last overwriting, memory is overwritten again

_ZEROS: Final = bytes(BLOCKS_AT_ONCE * LARGEST_BLOCK)


async def overwrite_free_blocks() -> None:
    """Overwrite regularly what freed objects of up to 512 octets left in memory: keys, and short bodies with keys.

    Python's own allocator leaves the contents of freed memory as they are until the memory is used again. (glibc
    overwrites larger objects, see `process.protect_memory`.) So up to OVERWRITTEN_OCTETS of each size are allocated and
    filled. All sizes take about 5 ms, with a checkpoint after each size.
    """
    used = 0.0
    while True:
        await trio.sleep(OVERWRITE_SECONDS)
        if time.process_time() < used + BUSY_SECONDS:
            continue
        for octets in range(SMALLEST_BLOCK, LARGEST_BLOCK + 1, BLOCK_STEP):
            _fill_free_blocks(octets)
            await trio.lowlevel.checkpoint()
        used = time.process_time()


def _fill_free_blocks(octets: int) -> None:
    """Allocate objects of a size, filled with zeros; free them only after all are allocated."""
    # half the time of making each object by a call of its own
    some = Struct(f"{octets - sys.getsizeof(b'')}s" * BLOCKS_AT_ONCE)
    list(map(some.unpack_from, repeat(_ZEROS, -(-OVERWRITTEN_OCTETS // octets // BLOCKS_AT_ONCE))))


async def give_back_free_memory() -> None:
    """Call glibc's malloc_trim regularly while the process is larger than at the start; without glibc, return.

    glibc itself gives back only the end of its heap, and only above the threshold of `process.MALLOC_OPTIONS`. Large
    bodies also leave free memory between objects that live longer. The call takes milliseconds, so it runs in a thread.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return
    at_start = resident_octets()
    while True:
        await trio.sleep(LOOK_SECONDS)
        if resident_octets() > at_start + GROWN_OCTETS:
            await trio.to_thread.run_sync(trim, 0)


def resident_octets() -> int:
    """Return how much memory of the process is resident; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
