"""How often the delivery job looks for due pushes and for followers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import trio
import trio.testing

from mimids.ds.following import delivery as module
from mimids.ds.following.pushes import Pushes
from mimids.ds.notifier import DELIVERY
from mimids.ds.ports import PeerAnswer
from mimids.store import follows, peers
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import ReceiveRequest
from tests.support.doubles import Called, stopped_clock
from tests.support.federation import Room, device, federated
from tests.support.patience import patience

if TYPE_CHECKING:
    import pytest

A, B = ProviderId("a.example"), ProviderId("b.example")


async def test_the_job_looks_less_often_while_it_serves_all_followers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with federated(tmp_path, A, B) as (hub, follower):
        room, called, looks = Room(), trio.Event(), itertools.count()

        async def never_answers(_: Called) -> PeerAnswer:
            called.set()
            await trio.sleep_forever()
            raise AssertionError

        def counted(*of: object) -> set[int]:
            next(looks)
            return behind(*of)  # type: ignore[arg-type]

        await hub.services.hub.create_group(room.creation(), device(hub))
        await follower.services.hub_router.hub(A).receive(device(follower), ReceiveRequest(room.key, Counter(0)))
        hub.peers.add(B, never_answers)
        await hub.services.hub.send(room.send("to a follower that does not answer"), device(hub))
        with patience():
            await called.wait()
        behind = follows.followers_behind
        monkeypatch.setattr(follows, "followers_behind", counted)
        started = trio.current_time()
        for _ in range(100):
            hub.services.notifier.notify(DELIVERY)
            await trio.sleep(0.005)
        seconds = trio.current_time() - started
        assert 1 <= next(looks) <= 2 + seconds / module.QUERY_SECONDS_WHILE_ALL_BUSY


async def test_a_follower_for_which_nothing_is_due_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Counted(Pushes):
        def next_push(self, peer: peers.PeerState, *of: object) -> object:  # type: ignore[override]
            asked.append(peer.domain)
            return super().next_push(peer, *of)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "Pushes", Counted)
    async with federated(tmp_path, A, B, clock=stopped_clock(), jobs_of=()) as (hub, follower):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await follower.services.hub_router.hub(A).receive(device(follower), ReceiveRequest(room.key, Counter(0)))
        async with trio.open_nursery() as jobs:
            await jobs.start(hub.services.delivery.run)
            for _ in range(10):
                hub.services.notifier.notify(DELIVERY)
                await trio.testing.wait_all_tasks_blocked(2 * module.QUERY_SECONDS)
            assert asked == [B], "once at the start"
            jobs.cancel_scope.cancel()
