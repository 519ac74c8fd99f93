"""How long the sweeper keeps what other services rely on, to the millisecond."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mimids.ds.key_packages import tokens
from mimids.ds.key_packages.stock import ENDED_TOKEN_DAYS
from mimids.ds.key_packages.tokens import TokenTerms
from mimids.ds.upkeep.sweeper import FULL_DISK_SECONDS
from mimids.errors import StorageUnavailable
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.suites import SUITES
from mimids.store import accounts, key_packages, participations
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.testing.clock import MovableClock
from mimids.values import Milliseconds, TokenId, UserRow
from mimids.wire.declare import decode
from mimids.wire.ids import BearerToken, CipherSuite, KeyPackageRef, ProtocolVersion, ProviderId, local_user_id
from mimids.wire.messages import KeyPackageRequest
from tests.support.doubles import stopped_clock
from tests.support.federation import device
from tests.support.mls_makers import NOW
from tests.support.provider import Assembled, Authority, assembled
from tests.support.rig import packages
from tests.support.stored import DAY, rows, sweep, until

ALICE = local_user_id(ProviderId("a.example"), "alice")
WINDOW = 24 * 3600  # of the abuse rule, seconds


@asynccontextmanager
async def stocked(directory: Path, **sections: dict[str, Any]) -> AsyncIterator[tuple[Assembled, MovableClock]]:
    """Run a provider that was swept just now, and has KeyPackages of Alice's phone."""
    clock = stopped_clock(NOW)
    async with assembled(Authority(directory).config("a.example", **sections), clock=clock) as running:
        await running.add_device()
        done = await running.services.key_packages.upload(device(running), packages(ALICE, 8))
        assert done.accepted == 8
        await sweep(running)
        yield running, clock


def _alice(tx: Tx) -> UserRow:
    found = accounts.find_user(tx, ALICE)
    assert found is not None
    return found


async def issued(running: Assembled, scheme: str = "shared", *, seconds: float | None = None) -> BearerToken:
    """Issue a token that ends after so many seconds."""
    now = running.services.clock.now()
    end = None if seconds is None else Milliseconds(now + int(seconds * 1000))

    def work(tx: Tx) -> BearerToken:
        return tokens.issue(tx, _alice(tx), TokenTerms(scheme, expires_at=end), now).bearer_token

    return await running.services.store.write(work)


async def claim(running: Assembled, token: BearerToken) -> KeyPackageRef | None:
    """Claim a KeyPackage; return its reference, None for a refusal."""
    request = KeyPackageRequest(ALICE, token, ProtocolVersion(1), CipherSuite(1))
    (outcome,) = await running.services.key_packages.claim([request])
    return None if outcome.key_package is None else decode(KeyPackageIn, outcome.key_package).ref(SUITES[1])


async def advance(running: Assembled, clock: MovableClock, seconds: float) -> None:
    """Move the clock in steps that the sweeper takes for the passing of time, and sweep after each."""
    while seconds > 0:
        step = min(seconds, DAY)
        clock.advance(step)
        seconds -= step
        await sweep(running)


async def test_a_live_token_stays_also_when_its_end_is_near(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (running, clock):
        near, later = await issued(running, seconds=2 * DAY), await issued(running, seconds=29 * DAY)
        await advance(running, clock, DAY)
        assert await rows(running, "SELECT count(*) FROM tokens") == [(2,)]
        assert await claim(running, near) is not None
        assert await claim(running, later) is not None


@pytest.mark.parametrize("ended_by", ["its end", "revoke", "ban"])
async def test_an_ended_token_is_listed_for_thirty_days(ended_by: str, tmp_path: Path) -> None:
    """To the day, if it was ended: its moment is stored as a day."""
    async with stocked(tmp_path) as (running, clock):
        await issued(running, seconds=0.001 if ended_by == "its end" else None)
        clock.advance(0.001)
        end = {"revoke": tokens.revoke, "ban": tokens.ban}.get(ended_by)
        if end is not None:
            now = running.services.clock.now()
            await running.services.store.write(lambda tx: end(tx, _alice(tx), TokenId(1), now))
        slack = 0 if ended_by == "its end" else DAY
        await advance(running, clock, ENDED_TOKEN_DAYS * DAY - slack)
        assert await rows(running, "SELECT count(*) FROM tokens") == [(1,)]
        await advance(running, clock, slack + 0.001)
        assert await rows(running, "SELECT count(*) FROM tokens") == [(0,)]


async def test_a_claim_keeps_the_link_to_its_token_for_the_window_of_the_abuse_rule(tmp_path: Path) -> None:
    """A Welcome within the window shows that the claim was honest, so the sweeper must not break the link before."""
    rule = {"abuse": "revoke", "abuse_claims": 3, "abuse_window_hours": WINDOW // 3600}
    async with stocked(tmp_path, tokens=rule) as (running, clock):
        token = await issued(running, "unique")
        for _ in range(4):  # more than the rule allows without a Welcome
            ref = await claim(running, token)
            assert ref is not None, "an honest token was banned"
            await advance(running, clock, 3600)
            await running.services.store.write(partial(key_packages.note_welcome, ref=ref))
        last = running.services.clock.now()
        assert await claim(running, token) is not None
        linked = "SELECT count(*) FROM key_package_refs WHERE token IS NOT NULL AND claimed_at = ?"
        await advance(running, clock, WINDOW)
        assert await rows(running, linked, last) == [(1,)]
        await advance(running, clock, 0.001)
        assert await rows(running, linked, last) == [(0,)]


async def test_the_job_sweeps_at_each_interval_and_again_soon_when_the_disk_was_full(tmp_path: Path) -> None:
    async with stocked(tmp_path, retention={"sweep_seconds": 300}) as (running, clock), trio.open_nursery() as jobs:
        sweeper, store = running.services.sweeper, running.services.store
        before, others = sweeper.statistics().sweeps, clock.sleepers
        await jobs.start(sweeper.run)

        async def swept(times: int) -> bool:
            return sweeper.statistics().sweeps == before + times and clock.sleepers > others

        await until(lambda: swept(0))
        clock.advance(300)
        await until(lambda: swept(1))
        clock.advance(299.999)
        await trio.testing.wait_all_tasks_blocked(0.02)
        await until(lambda: swept(1))

        async def full(work: object) -> None:
            raise StorageUnavailable

        working, sweeper._store = store, with_methods(store, write=full)
        clock.advance(0.001)
        await running.log.wait_for("sweep failed: the disk takes no writes")
        sweeper._store = working
        await until(lambda: swept(1))
        clock.advance(FULL_DISK_SECONDS)
        await until(lambda: swept(2))
        jobs.cancel_scope.cancel()


def with_methods(store: Store, **changed: Any) -> Any:
    """Return a double of a store with some methods replaced."""
    return type("Double", (), {"read": staticmethod(store.read), **{n: staticmethod(f) for n, f in changed.items()}})()


async def test_those_who_left_are_forgotten_in_pages(tmp_path: Path) -> None:
    """The groups still know that somebody left, and positions elsewhere stay."""

    def leave(tx: Tx) -> None:
        for group in range(1, 6):
            tx.execute(
                "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at) VALUES (?, 1, ?, 1, 1, 0)",
                (group, b"%d" % group),
            )
            tx.execute(
                "INSERT INTO partitions (id, group_ref, hub, masked_key, opened_at) VALUES (?, ?, 1, ?, 0)",
                (group, group, bytes([group]) * 32),
            )
            tx.execute(
                "INSERT INTO participations (group_ref, device, joined_at, left_at) VALUES (?, 1, 0, ?)",
                (group, 10 if group < 5 else 20),
            )
            tx.execute(
                "INSERT INTO device_cursors (device, partition, next_counter, seen_at) VALUES (1, ?, 1, 0)", (group,)
            )

    def forget(tx: Tx) -> int:
        return participations.forget_left(tx, Milliseconds(11), limit=3)

    async with stocked(tmp_path) as (running, _):
        store = running.services.store
        await store.write(leave)
        assert [await store.write(forget) for _ in range(3)] == [3, 1, 0]
        assert await rows(running, "SELECT id, departed FROM groups ORDER BY id") == [
            (1, 1),
            (2, 1),
            (3, 1),
            (4, 1),
            (5, 0),
        ]
        assert await rows(running, "SELECT group_ref FROM participations") == [(5,)]
        assert await rows(running, "SELECT partition FROM device_cursors") == [(5,)]
