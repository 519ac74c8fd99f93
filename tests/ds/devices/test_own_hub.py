"""This provider as the hub of its own devices."""

from __future__ import annotations

from pathlib import Path

from mimids.mls.code_points import ContentType
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import ReceiveRequest
from tests.support.commands import command
from tests.support.federation import Room, device, federated, read

A, B = ProviderId("a.example"), ProviderId("b.example")


async def test_a_page_for_a_banned_reader_of_the_hubs_own_holds_handshakes_only(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        room, alice, anna = Room(), device(hub), device(hub, "anna", 2)
        await hub.services.hub.create_group(room.creation(), alice)
        for request in (
            room.send("app 0"),
            room.commit("commit 1", Room.new_key()),
            room.commit("commit 2", Room.new_key()),
            room.send("app 3"),
            room.commit("commit 4", Room.new_key()),
            room.send("app 5"),
        ):
            await hub.services.hub_router.hub(A).send(alice, request)
        await command(hub, "ban add", subject="mimi://a.example/u/anna")
        seen, counter = [], 0
        while page := await read(hub, anna, A, room.key, counter):
            seen += page
            counter += len(page)
        assert set(seen) == {"commit 1", "commit 2", "commit 4"}
        counters: list[int] = []
        asking = ReceiveRequest(room.key, Counter(0))
        while (found := await hub.services.hub_router.hub(A).page(anna, asking, limit_octets=300)) and found[
            1
        ].messages:
            page_ = found[1]
            assert page_.kinds == {ContentType.COMMIT}
            counters += range(page_.counter, page_.counter + len(page_.messages))
            asking = ReceiveRequest(room.key, Counter(counters[-1] + 1))
        assert counters == [1, 2, 4]
        assert len(await read(hub, alice, A, room.key)) == 6
