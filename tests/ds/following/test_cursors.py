"""The positions of devices, as they are kept and stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from mimids.ds.following.cursors import Cursors
from mimids.errors import StorageUnavailable
from mimids.store.engine.locks import Locks
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Ahead, Tx
from mimids.wire.ids import Counter, PartitionKey, ProviderId
from mimids.wire.messages import ReceiveRequest
from tests.support.doubles import stopped_clock
from tests.support.hub import ALICE, running_hub

T = TypeVar("T")
B = ProviderId("b.example")
KEY = PartitionKey(bytes(PartitionKey.SIZE))


class FullStore(Store):
    """A store whose disk is full until it is told otherwise."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.full = True

    async def write(self, work: Callable[[Tx], T], *, locks: Locks | None = None, ahead: Ahead | None = None) -> T:
        if self.full:
            raise StorageUnavailable
        return await self._store.write(work, locks=locks, ahead=ahead)


async def test_positions_of_a_sleeping_device_wait_until_they_can_be_stored(tmp_path: Path) -> None:
    """Also those of partitions that have no row yet: their first message is to wake the device."""
    async with running_hub(tmp_path) as hub:
        await hub._store.write(
            lambda tx: (
                tx.execute("INSERT INTO users (id, user_id, created_at) VALUES (1, ?, 0)", (ALICE.user_id,)),
                tx.execute(
                    "INSERT INTO devices (id, owner, name, token_digest, created_at) VALUES (1, 1, '1', ?, 0)",
                    (bytes(32),),
                ),
            )
        )
        store = FullStore(hub._store)
        cursors = Cursors(store, stopped_clock(), is_watched=lambda device: True)
        cursors.note(ALICE, B, ReceiveRequest(KEY, Counter(3)))
        with pytest.raises(StorageUnavailable):
            await cursors.save_of(cursors.watched())
        await cursors.save()
        assert cursors.watched() == [ALICE.row]
        store.full = False
        await cursors.save()
        assert not cursors.watched()
        early = await hub._store.read(lambda tx: tx.all("SELECT count(*) FROM early_positions"))
        assert early[0][0] > 0
