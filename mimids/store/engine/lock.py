"""The write lock on `data_dir/lock`: a server holds it while it runs, a command while it writes.

The kernel's lock (flock) ends with its process, however the process ends. The file stays; its existence does not mean
that the lock is held. The pid in the file is only for the error message. A child that is forked while the lock is held
shares it, so a server must be forked before it locks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = "lock"
PATIENCE_SECONDS = 1.0  # longer than the one write of a command takes
_POLL_SECONDS = 0.02


class Locked(Exception):
    """Another process holds the write lock; `pid` is its pid, if known."""

    def __init__(self, place: Path | str, pid: int | None) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"{who} writes to {place} (a running server, or a command at work)")
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
    """Return the pid of the process that holds the lock; None if the lock is free, or if the pid is not written yet.

    It tests the lock by trying to take it. A free lock is held only for a moment, so a process that waits
    PATIENCE_SECONDS for the lock still gets it.
    """
    path = data_dir / LOCK_FILE
    try:
        with _no_link(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return None if _try_lock(descriptor) else _pid(descriptor)
    finally:
        os.close(descriptor)


def open_private(path: Path) -> int:
    """Open a file of ours for reading and writing, creating it if necessary, and make it readable by its owner only.

    Raises `OSError` for a symbolic link, which may lead to somebody else's file, or if it is not a regular file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file: move it away and try again", str(path))
        if status.st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(data_dir: Path) -> int:
    path = data_dir / LOCK_FILE
    with _no_link(path):
        return open_private(path)
    raise AssertionError("nothing is suppressed")


@contextmanager
def _no_link(path: Path) -> Iterator[None]:
    """Turn the error of opening a symbolic link into an error that tells the operator what to do."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "it is a symbolic link: delete it and try again", str(path)) from error


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
