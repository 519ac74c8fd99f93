"""The right to write: a lock on `data_dir/lock`, held by a server for its life and by a command for one write.

The lock is the kernel's (flock) and ends with its process, however that ends; the file stays and means nothing by
itself. The pid in it is for the message only. A child forked while the lock is held holds it too: whoever forks a
server does so before the server locks.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = "lock"
PATIENCE_SECONDS = 1.0  # longer than a command's one write takes
_POLL_SECONDS = 0.02


class Locked(Exception):
    """Another process may write; `pid` is it, where that is known."""

    def __init__(self, data_dir: Path, pid: int | None) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"{who} writes to {data_dir} (a running server, or a command at work)")
        self.pid = pid


@contextmanager
def hold(data_dir: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Hold the lock of `data_dir` for the block; raise Locked if another still holds it after the patience.

    Waits by sleeping: for a command, or for a server that has not started its loop.
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
    """Return the pid of the process that holds the lock, None if none does.

    It takes the lock for a moment where it is free: less than anybody's patience.
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
    """Return the pid that the holder wrote, None in the moment before it has."""
    text = os.pread(descriptor, 20, 0).strip()
    return int(text) if text.isdigit() else None
