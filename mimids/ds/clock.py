"""The clock of a running server."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Final

import trio

from mimids.values import Milliseconds

_SINCE_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_THIS_PROCESS: Final = secrets.token_hex(16)


class SystemClock:
    """`ports.Clock` that shows the machine's time."""

    def now(self) -> Milliseconds:
        """Return the time in milliseconds since the epoch."""
        return Milliseconds(time.time_ns() // 1_000_000)

    def running(self) -> Milliseconds:
        """Return the milliseconds since the machine started, including the time that it slept."""
        return Milliseconds(time.clock_gettime_ns(_SINCE_BOOT) // 1_000_000)

    def boot(self) -> str:
        """Return the identifier that the kernel gave to this start of the machine."""
        try:
            return _BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            return _THIS_PROCESS  # without it, times of another process are not comparable

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`; do not wait if they are negative (the moment has passed already)."""
        await trio.sleep(max(0, seconds))

    def move_on_after(self, seconds: float) -> trio.CancelScope:
        """Cancel the block after `seconds`, at once if they are negative."""
        return trio.move_on_after(max(0, seconds))
