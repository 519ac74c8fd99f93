"""A hub on a database of its own, and recorded messages sent to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mimids.config import parse
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.states import States
from mimids.ds.notifier import Notifier
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import open_store
from mimids.values import Device, DeviceRow
from mimids.wire.ids import ProviderId, local_user_id
from mimids.wire.messages import ExternalJoinRequest, ExternalProposalRequest, SendResponse
from tests.support.doubles import stopped_clock
from tests.support.recordings import Recorded

A = ProviderId("a.example")
ALICE = Device(A, local_user_id(A, "alice"), DeviceRow(1), "1")


@asynccontextmanager
async def running_hub(directory: Path, **sections: Mapping[str, object]) -> AsyncIterator[LocalHub]:
    """Run a hub for the block, on the database in `directory`; `sections` configure it."""
    database = directory / "mimids.sqlite3"
    migrate(database)
    config = parse({"provider": A, "data_dir": str(directory), **sections}, directory)
    async with open_store(database) as store, trio.open_nursery() as jobs:
        await jobs.start(store.run)
        yield LocalHub(config, store, stopped_clock(), MlsJudge(States()), Notifier())
        jobs.cancel_scope.cancel()


async def offer(hub: LocalHub, recorded: Recorded) -> SendResponse:
    """Send a recorded message to the hub, by the call that its kind asks for."""
    request = recorded.request
    if isinstance(request, ExternalJoinRequest):
        return await hub.join(request, ALICE)
    if isinstance(request, ExternalProposalRequest):
        return await hub.propose(request, ALICE)
    return await hub.send(request, ALICE)
