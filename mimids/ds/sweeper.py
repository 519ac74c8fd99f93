"""The sweeper: drops what is over (DESIGN 6.12), one transaction at a time; a stop loses nothing."""

from __future__ import annotations

import trio

from mimids.ds import keypackages
from mimids.ds.services import Services
from mimids.errors import StorageUnavailable
from mimids.store.db import Tx


async def run(services: Services, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Sweep every `[retention] sweep_seconds`, for ever; a disk that takes nothing is tried again next time."""
    task_status.started()
    while True:
        await services.clock.sleep(services.config.retention.sweep_seconds)
        try:
            await services.store.write(lambda tx: _sweep(tx, services))
        except StorageUnavailable:
            services.telemetry.log.warning("nothing swept: the disk takes no writes")


def _sweep(tx: Tx, services: Services) -> None:
    window = services.config.tokens.abuse_window_hours * 3600
    keypackages.sweep(tx, services.clock.now(), abuse_window_seconds=window)
