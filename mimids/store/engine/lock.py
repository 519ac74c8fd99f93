"""The write lock on `data_dir/lock`: a server holds it while it runs, a command while it writes.

The kernel's lock (flock) ends with its process, however the process ends. The file stays, and its existence means
nothing. The pid in the file is only for the error message. A child that is forked while the lock is held shares it, so
a server must be forked before it locks.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = "lock"
PATIENCE_SECONDS = 1.0  # longer than the one write of a command takes
_POLL_SECONDS = 0.02


class Locked(Exception):
    """Another process holds the write lock; `pid` is its pid, if known."""

    def __init__(self, data_dir: Path, pid: int | None) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"{who} writes to {data_dir} (a running server, or a command at work)")
        self.pid = pid


@contextmanager
def hold(data_dir: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Hold the lock of `data_dir` for the block; raise Locked if another process keeps it for `patience_seconds`.

    It waits by sleeping, so call it from a command, or from a server before its event loop starts.
    """
    descriptor = _open(data_dir)
    try:
        give_up_at = time.monotonic() + patience_seconds
        while not _try_lock(descriptor):
            if time.monotonic() >= give_up_at:
                raise Locked(data_dir, _pid(descriptor))
            time.sleep(_POLL_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def holder(data_dir: Path) -> int | None:
    """Return the pid of the process that holds the lock, None if the lock is free.

    To find out, it takes a free lock for a moment that is much shorter than PATIENCE_SECONDS.
    """
    try:
        descriptor = os.open(data_dir / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _try_lock(descriptor) else _pid(descriptor)
    finally:
        os.close(descriptor)


def _open(data_dir: Path) -> int:
    return os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid(descriptor: int) -> int | None:
    """Return the pid that the holder wrote, None if it has not written it yet."""
    text = os.pread(descriptor, 20, 0).strip()
    return int(text) if text.isdigit() else None
