"""A hub on a database of its own, and recorded messages sent to it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mimids.config import parse
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.states import States
from mimids.ds.notifier import Notifier
from mimids.mls.code_points import ExtensionType, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.leaf_node import Extension
from mimids.store.engine.access import migrate, open_store
from mimids.values import Device, DeviceRow
from mimids.wire.ids import MLS10, PartitionKey, ProviderId, local_user_id
from mimids.wire.messages import CreateGroupRequest, ExternalJoinRequest, ExternalProposalRequest, SendResponse
from tests.support import signing
from tests.support.doubles import stopped_clock
from tests.support.recordings import Recorded
from tests.support.tables import every_row

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


async def everything(hub: LocalHub) -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of a hub's database, by table."""
    return await hub._store.read(every_row)


async def create(hub: LocalHub, room: signing.Room, *, linear: bool = False, joinable: bool = False) -> PartitionKey:
    """Create the group of a room, with its GroupInfo; return the key of its first partition."""
    key = PartitionKey(secrets.token_bytes(PartitionKey.SIZE))
    external = (Extension(ExtensionType.EXTERNAL_PUB, bytes(32)),) if joinable else ()
    info = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info(*external))
    creation = CreateGroupRequest(room.group_id, MLS10, room.suite.code, key, info, None, None)
    await hub.create_group(creation, ALICE, linear=linear)
    return key
