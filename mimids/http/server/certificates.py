"""The certificate watch: use renewed files without a restart (commands: commands, architecture: tasks).

A file counts as changed when its modification time or its size differs. If a check finds only some of the files
renewed, the certificate and the key do not match. Then the old pair stays in use, and the next check tries again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import trio

from mimids.http.server.tls import CertificateFileError

_Stamps = list[tuple[int, int] | None]


async def watch(
    files: Iterable[Path],
    reload: Callable[[], Awaitable[None]],
    *,
    sleep: Callable[[float], Awaitable[None]],
    seconds: float,
    on_reload: Callable[[], None],
    on_failure: Callable[[CertificateFileError], None],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Check `files` every `seconds`, forever, and call `reload` when one of them has changed.

    Calls `on_reload` after a success. If `reload` raises `CertificateFileError`, `watch` calls `on_failure`, and tries
    again at the next check.
    """
    paths = tuple(files)
    seen = _stamps(paths)
    task_status.started()
    while True:
        await sleep(seconds)
        now = _stamps(paths)
        if now == seen:
            continue
        try:
            await reload()
        except CertificateFileError as error:
            on_failure(error)
        else:
            seen = now
            on_reload()


def _stamps(paths: tuple[Path, ...]) -> _Stamps:
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return modification time (ns) and size of a file, None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
