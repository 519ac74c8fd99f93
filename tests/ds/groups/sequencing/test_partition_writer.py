"""Partitions within one batch: what a commit changes holds for the messages after it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest

from mimids.config import parse
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.states import States
from mimids.ds.notifier import Notifier
from mimids.errors import PolicyRefused
from mimids.mls.code_points import ContentType, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import connect
from mimids.store.engine.transaction import MustRunAlone
from mimids.wire.ids import MLS10
from mimids.wire.messages import CommitData, SendRequest, SendResponse
from tests.support import signing
from tests.support.chats import private_message
from tests.support.doubles import stopped_clock
from tests.support.federation import Room
from tests.support.hub import ALICE, A, create, running_hub
from tests.support.one_connection import OneConnection
from tests.support.rooms import ALICE as USER
from tests.support.rooms import MEMBER, MUTED, dictionary, sets

WORDS = ContentType.APPLICATION


async def test_a_message_is_judged_by_the_state_that_a_commit_gave_its_partition_in_the_same_batch(
    tmp_path: Path,
) -> None:
    room, apart = signing.Room.create(signing.Client.of(1, "alice"), dictionary({USER: MEMBER})), Room.new_key()
    message, after = room.commit(0, signing.by_value(sets({USER: MUTED})))
    info = MLSMessage(MLS10, WireFormat.GROUP_INFO, after.info())
    async with running_hub(tmp_path) as hub:
        key = await create(hub, room)
        before, commit, muted = await hub.send_batch(
            [
                SendRequest(private_message(after, WORDS), apart, None),
                SendRequest(message, key, CommitData(apart, info, None)),
                SendRequest(private_message(after, WORDS), apart, None),
            ],
            attrs.evolve(ALICE, user_id=USER),
        )
        assert isinstance(before, SendResponse)
        assert isinstance(commit, SendResponse)
        assert isinstance(muted, PolicyRefused)


class Shared:
    """A connection beside whose transaction other processes may write."""

    is_shared = True

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.execute, self.executemany = connection.execute, connection.executemany


@pytest.mark.sqlite_file("it says that a database in SQLite is shared")
async def test_what_reads_more_than_its_group_runs_alone(tmp_path: Path) -> None:
    room, (database, config) = Room(), (tmp_path / "mimids.sqlite3", {"provider": A, "data_dir": str(tmp_path)})
    migrate(database)
    with closing(connect(database)) as connection:
        shared: Any = OneConnection(Shared(connection))
        hub = LocalHub(parse(config, tmp_path), shared, stopped_clock(), MlsJudge(States()), Notifier())
        await hub.create_group(room.creation(), ALICE)
        await hub.send(room.send("reads its group"), ALICE)
        with pytest.raises(MustRunAlone):
            await hub.send(room.commit("counts branches", Room.new_key()), ALICE)
        with pytest.raises(MustRunAlone):
            await hub.send(room.send("counts detached partitions", Room.new_key()), ALICE)
