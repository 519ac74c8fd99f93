"""What is kept of a Welcome for our own devices, and of its repeats."""

from __future__ import annotations

from pathlib import Path

from mimids.values import DeviceRow
from mimids.wire.ids import ProviderId
from mimids.wire.messages import WelcomeInitRequest
from tests.support.federation import federated
from tests.support.stored import rows
from tests.support.welcomes import REF, hand_out, welcome_to

A, B = ProviderId("a.example"), ProviderId("b.example")
PHONE = DeviceRow(1)


async def test_a_repeat_of_an_acknowledged_welcome_is_neither_delivered_nor_kept(tmp_path: Path) -> None:
    async with federated(tmp_path, B, jobs_of=(), federation={"allow": [A]}) as (provider,):
        await hand_out(provider)
        incoming = provider.services.incoming_welcomes
        assert (await incoming.init(A, WelcomeInitRequest((REF,)))).accepted == (REF,)
        for _ in range(2):
            await incoming.store(A, welcome_to(REF))
            assert await rows(provider, "SELECT length(body) > 0 FROM welcomes") == [(1,)]
        (waiting,) = await incoming.inbox(PHONE)
        assert await incoming.acknowledge(PHONE, waiting.id) == 1
        await incoming.store(A, welcome_to(REF))
        assert await incoming.inbox(PHONE) == []
        assert await rows(provider, "SELECT length(body) FROM welcomes") == [(0,)]
