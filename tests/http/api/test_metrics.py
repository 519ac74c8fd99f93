"""Metrics of followers: how far each is behind, and which are tried only rarely."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.http.api.operator import OPERATOR
from mimids.store import follows, peers
from mimids.store.engine.transaction import Tx
from mimids.values import Follower, Milliseconds
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import ReceiveRequest
from tests.support.federation import Room, device
from tests.support.inmemory import InMemory
from tests.support.stored import provider


@pytest.mark.parametrize(("named", "labels"), [(50, {"b.example", "c.example"}), (1, {"c.example", "others"})])
async def test_only_so_many_followers_have_metrics_of_their_own(tmp_path: Path, named: int, labels: set[str]) -> None:
    async with provider(tmp_path, metrics={"named_peers": named}) as (running, clock):
        hub, alice, room = running.services.hub, device(running), Room()
        await hub.create_group(room.creation(), alice)
        for n in range(3):
            await hub.send(room.send(f"{n}"), alice)
            clock.advance(10)
        for name in ("b.example", "c.example"):
            await hub.receive(ReceiveRequest(room.key, Counter(0)), Follower(ProviderId(name)))

        def settle(tx: Tx) -> None:
            follows.settle(tx, 2, 1, Counter(3))
            follows.settle(tx, 3, 1, Counter(1))
            if (peer := peers.find_peer(tx, 3)) is not None:
                peers.note_failure(tx, peer, 5, Milliseconds(0), Milliseconds(0))
            follows.suspend(tx, 3, 1, "why")

        await running.services.store.write(settle)
        answer = await InMemory(running.app(OPERATOR)).ask("GET", "/metrics")
        lines = dict(
            line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if line.startswith("mimids_peer_")
        )
        assert {line.partition('peer="')[2].rstrip('"}') for line in lines if "peer=" in line} == labels
        of_c = {name: float(lines[f'mimids_peer_{name}{{peer="c.example"}}']) for name in NUMBERS}
        assert of_c == {
            "behind_messages": 2,
            "behind_seconds": 20,
            "failures": 5,
            "circuit_open": 1,
            "stuck_partitions": 1,
        }
        other = (labels - {"c.example"}).pop()
        assert all(float(lines[f'mimids_peer_{name}{{peer="{other}"}}']) == 0 for name in NUMBERS)


NUMBERS = ("behind_messages", "behind_seconds", "failures", "circuit_open", "stuck_partitions")
