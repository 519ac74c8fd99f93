"""Several processes of one provider write at the same time: nothing is lost, given twice, or answered with 500."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from mimids.ds.key_packages.tokens import TokenTerms, issue
from mimids.store import accounts
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import MLS10, BearerToken, CipherSuite, Counter, PartitionKey, ProviderId, local_user_id
from mimids.wire.messages import KeyPackageRequest, KeyPackageStatus, ReceiveRequest, SendResponse
from tests.support import postgresql
from tests.support.doubles import stopped_clock
from tests.support.federation import Room, commit_at, device, texts
from tests.support.mls_makers import NOW
from tests.support.provider import Assembled, assembled
from tests.support.rig import packages
from tests.support.twins import A, shared_config

pytestmark = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))

PROVIDER = ProviderId(A)
SEED = 1
PROCESSES = 3
WRITERS = 4  # at each process
SENDS = 8  # of each writer
ROOMS = 3
DETACHED = 3  # by each process: a device may open few
STOCK = 20


@asynccontextmanager
async def processes(directory: Path) -> AsyncIterator[list[Assembled]]:
    """Run several processes of a provider for the block."""
    config, clock = shared_config(directory), stopped_clock(NOW)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(assembled(config, clock=clock)) for _ in range(PROCESSES)]


async def whole(at: Assembled, key: PartitionKey) -> list[str]:
    """Return the texts of all messages in a partition."""
    found: list[str] = []
    while page := texts(await at.services.hub.receive(ReceiveRequest(key, Counter(len(found))), device(at))):
        found += page
    return found


# Longer than 40 lines: one story, in which each step needs the one before.
async def test_counters_are_gapless_in_each_group_and_every_message_is_kept_once(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    async with processes(tmp_path) as all_processes:
        await all_processes[0].add_device()
        rooms = [Room(f"room{number}") for number in range(ROOMS)]
        for room in rooms:
            await all_processes[0].services.hub.create_group(room.creation(), device(all_processes[0]))
        sent: dict[str, list[tuple[int, str]]] = {room.key.mask(32).hex(): [] for room in rooms}

        async def write(at: Assembled, name: str, chosen: Sequence[Sequence[int]]) -> None:
            for number, batch in enumerate(chosen):
                some = [rooms[index].send(f"{name} {number} {place}") for place, index in enumerate(batch)]
                answers = await at.services.hub.send_batch(some, device(at))
                for place, (index, answer) in enumerate(zip(batch, answers, strict=True)):
                    assert isinstance(answer, SendResponse)
                    sent[rooms[index].key.mask(32).hex()].append((answer.counter, f"{name} {number} {place}"))

        async def fork(at: Assembled, name: str) -> None:
            """Open detached partitions and commit: such transactions run alone between the others."""
            for number in range(SENDS):
                if number < DETACHED:
                    await at.services.hub.send(rooms[0].send(f"{name} {number}", Room.new_key()), device(at))
                other = Room(f"{name} {number}")
                await at.services.hub.create_group(other.creation(), device(at))
                await at.services.hub.send(commit_at(other, 0, other.key, Room.new_key()), device(at))

        async with trio.open_nursery() as writers:
            for number, at in enumerate(all_processes):
                for writer in range(WRITERS):
                    chosen = [[chance.randrange(ROOMS) for _ in range(chance.choice([1, 1, 5]))] for _ in range(SENDS)]
                    writers.start_soon(write, at, f"{number}.{writer}", chosen)
                writers.start_soon(fork, at, f"fork {number}")

        for room in rooms:
            expected = sorted(sent[room.key.mask(32).hex()])
            assert [counter for counter, _ in expected] == list(range(len(expected)))
            for at in all_processes:  # also from what a process has cached
                assert await whole(at, room.key) == [text for _, text in expected]
        seqs = await all_processes[0].services.store.read(
            lambda tx: tx.all("SELECT partition, seq FROM messages ORDER BY partition, counter")
        )
        assert len({seq for _, seq in seqs}) == len(seqs)
        assert all(one[1] < other[1] for one, other in pairwise(seqs) if one[0] == other[0])


async def test_no_key_package_is_handed_out_twice(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    async with processes(tmp_path) as all_processes:
        tokens: dict[str, BearerToken] = {}
        for user in ("alice", "bob"):
            for name in ("phone", "laptop"):
                await all_processes[0].add_device(user, name)
            tokens[user] = await all_processes[0].services.store.write(partial(_token, user))
        for row, user in enumerate(("alice", "alice", "bob", "bob"), 1):
            stock = packages(local_user_id(PROVIDER, user), STOCK)
            uploaded = await all_processes[row % PROCESSES].services.key_packages.upload(
                device(all_processes[0], user, row), stock
            )
            assert uploaded.refused == ()
        given: list[bytes] = []

        async def claim(at: Assembled, users: Sequence[str]) -> None:
            for user in users:
                request = KeyPackageRequest(local_user_id(PROVIDER, user), tokens[user], MLS10, CipherSuite(1))
                for outcome in await at.services.key_packages.claim([request]):
                    if outcome.key_package is None:
                        assert outcome.result().status is KeyPackageStatus.EXHAUSTED
                    else:
                        given.append(outcome.key_package)

        async with trio.open_nursery() as claimers:
            for at in all_processes:
                for _ in range(WRITERS):
                    claimers.start_soon(claim, at, [chance.choice(["alice", "bob"]) for _ in range(SENDS)])
        assert len(set(given)) == len(given) == min(4 * STOCK, PROCESSES * WRITERS * SENDS)


def _token(user: str, tx: Tx) -> BearerToken:
    row = accounts.find_user(tx, local_user_id(PROVIDER, user))
    assert row is not None
    return issue(tx, row, TokenTerms("shared"), Milliseconds(NOW * 1000)).bearer_token
