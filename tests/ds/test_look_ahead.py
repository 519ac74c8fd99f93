"""On PostgreSQL, a write makes its reads in one request and its writes in a second, and waits for nothing between."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from mimids.store.engine.postgresql.connection import Statements
from mimids.wire.messages import PushRequest
from tests.support import postgresql
from tests.support.federation import Room, device, federated, wait_stored
from tests.support.followers import HUB, epoch, follower
from tests.support.rig import ask, running
from tests.support.stored import rows, until
from tests.support.tables import ON_POSTGRESQL

pytestmark = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the statements beside others for whose answers a work waits, one by one."""
    found: list[str] = []
    execute = Statements.execute

    def note(self: Statements, sql: str, parameters: Any = (), /) -> Any:
        answer = execute(self, sql, parameters)
        if self.is_shared and hasattr(answer, "statusmessage"):  # from the database
            found.append(sql)
        return answer

    monkeypatch.setattr(Statements, "execute", note)
    return found


async def test_a_claim_waits_twice(tmp_path: Path, waited: list[str]) -> None:
    url = postgresql.database_of(tmp_path / "shared")
    async with running(cast("Path", url)) as rig:
        token = await rig.stocked(4)
        (first,) = await rig.key_packages.claim([ask(token)])
        waited.clear()
        (second,) = await rig.key_packages.claim([ask(token)])
        assert waited == []
        assert first.key_package != second.key_package
        assert first.key_package is not None
        assert second.key_package is not None


async def test_a_push_waits_twice(tmp_path: Path, waited: list[str]) -> None:
    room = Room(hub=HUB)
    store = {"url": postgresql.database_of(tmp_path / "shared")}
    async with follower(tmp_path, room.group_id, store=store) as (_, receiver):
        await receiver.receive_push(HUB, PushRequest((epoch(room, room.key, ["zero"]),)))
        waited.clear()
        answer = await receiver.receive_push(HUB, PushRequest((epoch(room, room.key, ["one", "two"], 1),)))
        assert answer.next_counters == (3,)
        assert waited == []


@pytest.mark.skipif(not ON_POSTGRESQL, reason="each of two providers needs a database")
async def test_the_answer_to_a_push_is_stored_without_waiting_for_the_database(
    tmp_path: Path, waited: list[str]
) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("hello"))
        await wait_stored(b, room.hub, bob, room.key, 1)
        settled = "SELECT 1 FROM follows WHERE next_counter = 2"
        await a.services.hub.send(room.send("again"), alice)
        await until(lambda: rows(a, settled))
        assert not [sql for sql in waited if sql.startswith(("UPDATE follows", "UPDATE peers"))]
