"""The job that records the progress of acknowledged writes (`store.acknowledged`).

The job reads the progress a moment after a commit, on another thread than the writer's, so no write waits for the job.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from mimids.errors import StorageUnavailable
from mimids.store import acknowledged
from mimids.store.acknowledged import AcknowledgedRecord
from mimids.store.engine.store import Store

RECORD_SECONDS: Final = 0.25  # after a crash, the record may lack the writes of the last RECORD_SECONDS
SYNC_SECONDS: Final = 30.0
LAST_SECONDS: Final = 2  # for the last record, at shutdown


async def record_acknowledged(
    store: Store, database: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Record the acknowledged writes until cancelled. If the disk takes no writes, the last record stays."""
    record = AcknowledgedRecord(database)
    commits, synced_at = -1, trio.current_time()
    task_status.started()
    try:
        while True:
            commits, now = await store.wait_for_commit(commits), trio.current_time()
            await _record(store, record, sync=now >= synced_at + SYNC_SECONDS)
            synced_at = now if now >= synced_at + SYNC_SECONDS else synced_at
            await trio.sleep(RECORD_SECONDS)
    finally:
        with trio.move_on_after(LAST_SECONDS, shield=True):
            await _record(store, record, sync=True)
        record.close()


async def _record(store: Store, record: AcknowledgedRecord, *, sync: bool) -> None:
    with suppress(StorageUnavailable, OSError):
        number = await store.read(acknowledged.progress)
        await trio.to_thread.run_sync(lambda: record.write(number, sync=sync))
