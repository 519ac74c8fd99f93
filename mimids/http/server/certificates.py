"""The certificate watch: renewed files are taken up without a restart (commands: commands, architecture: tasks).

Files are looked at by time and size, so a renewal of several files may be seen half done: then a certificate and its
key do not fit, the old pair stays in use, and the next look tries again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import trio

from mimids.config import Config
from mimids.ds.ports import Clock
from mimids.http.server.tls import CertificateFileError
from mimids.telemetry import Telemetry

Seen = list[tuple[int, int] | None]


def watched_files(config: Config) -> tuple[Path, ...]:
    """Return every certificate, key and trust file of a configuration."""
    files = [config.tls.certificate, config.tls.private_key, *config.tls.presented, config.tls.trust]
    files += [peer.trust for peer in config.providers.values()]
    return tuple(dict.fromkeys(path for path in files if path is not None))


async def watch(
    files: Iterable[Path],
    reload: Callable[[], Awaitable[None]],
    *,
    clock: Clock,
    seconds: float,
    telemetry: Telemetry,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `reload` whenever one of `files` has changed, for ever; `CertificateFileError` is logged and tried again."""
    paths = tuple(files)
    seen = _look(paths)
    task_status.started()
    while True:
        await clock.sleep(seconds)
        now = _look(paths)
        if now == seen:
            continue
        try:
            await reload()
        except CertificateFileError as error:
            telemetry.log.error("certificates not reloaded", reason=str(error))
        else:
            seen = now
            telemetry.log.info("certificates reloaded")


def _look(paths: tuple[Path, ...]) -> Seen:
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
