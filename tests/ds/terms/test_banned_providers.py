"""Provider bans are read once, and again after each change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import attrs
import pytest

from mimids.ds.terms.banned_providers import BannedProviders
from mimids.errors import ProviderNotAllowed
from mimids.store import bans
from mimids.store.bans import Ban
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.testing.clock import MovableClock
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId
from tests.support.doubles import stopped_clock
from tests.support.hub import running_hub

T = TypeVar("T")
B, C = ProviderId("b.example"), ProviderId("c.example")


class CountedStore(Store):
    """A store that counts reads; `after_read` is called before a read returns what it found."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._forgets = []
        self.reads = 0
        self.after_read: Callable[[], None] = lambda: None

    async def read(self, work: Callable[[Tx], T]) -> T:
        self.reads += 1
        found = await self._store.read(work)
        self.after_read()
        return found


@attrs.define
class Bans:
    inner: Store
    store: CountedStore
    clock: MovableClock
    banned: BannedProviders

    async def ban(self, provider: ProviderId, *, seconds: float | None = None) -> None:
        now = self.clock.now()
        end = None if seconds is None else Milliseconds(now + int(seconds * 1000))
        await self.inner.write(lambda tx: bans.put_ban(tx, Ban(provider, "", now, end)))

    async def is_banned(self, provider: ProviderId) -> bool:
        try:
            await self.banned.check_allowed(provider)
        except ProviderNotAllowed:
            return True
        return False


@asynccontextmanager
async def stored_bans(directory: Path) -> AsyncIterator[Bans]:
    async with running_hub(directory) as hub:
        store, clock = CountedStore(hub._store), stopped_clock()
        yield Bans(hub._store, store, clock, BannedProviders(store, clock))


async def test_bans_are_read_once_until_they_change(tmp_path: Path) -> None:
    async with stored_bans(tmp_path) as each:
        await each.ban(B)
        assert [await each.is_banned(provider) for provider in (B, C, B)] == [True, False, True]
        assert each.store.reads == 1
        await each.ban(C)
        each.banned.forget()
        assert [await each.is_banned(provider) for provider in (B, C)] == [True, True]
        assert each.store.reads == 2


@pytest.mark.parametrize(("table", "is_seen"), [("bans", True), ("messages", False)])
async def test_a_ban_by_another_process_holds_once_the_store_hears_of_it(
    table: str, is_seen: bool, tmp_path: Path
) -> None:
    async with stored_bans(tmp_path) as each:
        assert not await each.is_banned(B)
        await each.ban(B)
        each.store.forget([table])
        assert await each.is_banned(B) == is_seen


async def test_a_ban_that_is_stored_while_older_bans_are_read_holds_for_the_next_call(tmp_path: Path) -> None:
    async with stored_bans(tmp_path) as each:
        each.store.after_read = each.banned.forget  # as a commit just after the snapshot does
        assert not await each.is_banned(B)
        await each.ban(B)
        each.store.after_read = lambda: None
        assert await each.is_banned(B)


async def test_a_ban_ends_at_its_end(tmp_path: Path) -> None:
    async with stored_bans(tmp_path) as each:
        await each.ban(B, seconds=60)
        await each.ban(C)
        each.clock.advance(59.999)
        assert await each.is_banned(B)
        each.clock.advance(0.001)
        assert not await each.is_banned(B)
        assert await each.is_banned(C)
        assert each.store.reads == 1
