"""The answer of the gateway shows its outcome neither by its time nor by its size."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from math import sqrt
from pathlib import Path
from typing import TypeVar

import attrs
import pytest
import trio
import trio.testing
from outcome import Value

from mimids.ds.key_packages.gateway import Gateway, GatewayBounds
from mimids.ds.key_packages.stock import StockRules
from mimids.http.api.problems import document
from mimids.store.engine.locks import Locks
from mimids.store.engine.queued_work import QueuedWork
from mimids.store.engine.sqlite import connect
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Ahead, Tx
from mimids.wire.declare import encode
from mimids.wire.ids import BearerToken
from mimids.wire.messages import KeyPackageRequest
from tests.support.mls_makers import DAY
from tests.support.rig import UNLIMITED, Rig, ask, bundle, packages, running

T = TypeVar("T")

SEED = 11
OUTCOMES = ("ok", "last resort", "exhausted", "wrong token", "unknown user")
WRONG = BearerToken(bytes(32))
BOUNDS = GatewayBounds(rate=UNLIMITED, replay_rows=1_000_000)
AT_ONCE = 4
SAMPLES = 5000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


async def requests(rig: Rig, ok: int) -> dict[str, Callable[[], KeyPackageRequest]]:
    """Stock the gateway, and return a maker of requests for each outcome."""
    bob = await rig.device(user="bob")
    made = packages(bob.user_id, 20)
    for start in range(0, ok, 500):
        made = packages(bob.user_id, min(500, ok - start))
        assert (await rig.key_packages.upload(bob, made)).accepted == len(made)
    tokens = {"bob": await rig.token("bob")}
    tokens["lars"] = await rig.stocked(0, last_resort=True, user="lars")
    tokens["emma"] = await rig.stocked(0, user="emma")
    return {
        "ok": lambda: ask(tokens["bob"], "bob"),
        "last resort": lambda: ask(tokens["lars"], "lars"),
        "exhausted": lambda: ask(tokens["emma"], "emma"),
        "wrong token": lambda: ask(WRONG, "bob"),
        "unknown user": lambda: ask(WRONG, "nobody"),
    }


def distance(one: list[float], other: list[float]) -> float:
    """Return the Kolmogorov-Smirnov statistic of two samples: the largest distance of their distributions."""
    one, other = sorted(one), sorted(other)
    largest = i = j = 0.0
    at, to = iter([*one, float("inf")]), iter([*other, float("inf")])
    left, right = next(at), next(to)
    while min(left, right) < float("inf"):
        value = min(left, right)
        while left == value:
            i, left = i + 1, next(at)
        while right == value:
            j, right = j + 1, next(to)
        largest = max(largest, abs(i / len(one) - j / len(other)))
    return largest


def critical(one: list[float], other: list[float]) -> float:
    """Return the distance that two samples of one distribution exceed in a hundredth of all cases."""
    return 1.628 * sqrt((len(one) + len(other)) / (len(one) * len(other)))


def told_apart(times: dict[str, list[float]]) -> dict[tuple[str, str], float]:
    """Return the pairs of outcomes whose times differ."""
    return {
        (one, other): round(found, 4)
        for one, other in itertools.combinations(OUTCOMES, 2)
        if (found := distance(times[one], times[other])) > critical(times[one], times[other])
    }


def test_the_statistic_is_that_of_kolmogorov_and_smirnov() -> None:
    assert distance([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 0
    assert distance([1.0, 2.0], [3.0, 4.0]) == 1
    assert distance([1.0, 2.0, 3.0, 4.0], [2.5, 3.0, 3.0, 9.0]) == pytest.approx(0.5)
    chance = random.Random(SEED)
    apart, alike = [chance.gauss(0.2) for _ in range(2000)], [chance.gauss() for _ in range(2000)]
    assert distance(alike, [chance.gauss() for _ in range(2000)]) < critical(alike, alike) < distance(apart, alike)


async def test_every_answer_waits_for_a_commit_that_writes_about_as_much(path: Path) -> None:
    async with running(path) as rig:
        makers = await requests(rig, 40)
        wal = path.with_name(f"{path.name}-wal")
        written: defaultdict[str, int] = defaultdict(int)
        for outcome in OUTCOMES * 20:
            before = wal.stat().st_size
            await rig.gateway.answer(rig.encapsulate(encode(makers[outcome]()))[0])
            written[outcome] += wal.stat().st_size - before
        assert max(written.values()) < 1.6 * min(written.values())


@pytest.mark.parametrize("size", [1, 2, 8, 20, 64])
async def test_answers_to_bundles_have_one_size_however_many_are_given(path: Path, size: int) -> None:
    async with running(path) as rig:
        makers = await requests(rig, 3 * size)
        sizes = set()
        for outcome in OUTCOMES:
            for given in {1, size // 2, size} - {0}:
                asked = [makers[outcome]()] * given + [makers["wrong token"]()] * (size - given)
                sizes.add(
                    len(await rig.gateway.answer(rig.encapsulate(bundle(*asked), path="/key-packages?bundle")[0]))
                )
        asked = [makers["ok"]()] * size
        late = rig.encapsulate(bundle(*asked), path="/key-packages?bundle", late=9999)[0]
        sizes.add(len(await rig.gateway.answer(late)))
        assert len(sizes) == 1


class UnevenStore(Store):
    """A store whose commits take a random time, longer if something was handed out."""

    def __init__(self, tx: Tx, chance: random.Random) -> None:
        self._tx = tx
        self._chance = chance

    async def write(self, work: Callable[[Tx], T], *, locks: Locks | None = None, ahead: Ahead | None = None) -> T:
        answer = work(self._tx)
        claimed = getattr(answer, "claimed", None)
        handed_out = claimed is not None and claimed.consumed
        await trio.sleep(0.004 + self._chance.expovariate(1000) + 0.003 * handed_out)
        return answer

    async def write_each(self, jobs: Sequence[QueuedWork]) -> None:
        for job in jobs:
            job.finish(Value(await self.write(job.work)))


@contextmanager
def transaction(path: Path) -> Iterator[Tx]:
    with closing(connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield Tx(connection)
        connection.execute("ROLLBACK")


@asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[None]:
    async with trio.open_nursery() as jobs:
        if gateway._bounds.step_seconds:
            await jobs.start(gateway.run)
        yield
        jobs.cancel_scope.cancel()


async def stocked(path: Path, samples: int, bounds: GatewayBounds = BOUNDS) -> tuple[list[tuple[str, bytes]], Gateway]:
    chance, sealed = random.Random(SEED), []
    rules = StockRules(max_lifetime_seconds=366 * DAY, device_packages=100_000)
    async with running(path, rules=rules) as rig:
        makers = await requests(rig, samples)
        for outcome in OUTCOMES * samples:
            sealed.append((outcome, rig.encapsulate(encode(makers[outcome]()))[0]))
        chance.shuffle(sealed)
        gateway = Gateway(rig.store, rig.clock, rig.keys.live, rig.keys.look, rig.key_packages, document, bounds)
        keys = rig.keys.live()
        gateway._keys = lambda: keys
        return sealed, gateway


@pytest.mark.parametrize(("step_seconds", "alike"), [(BOUNDS.step_seconds, True), (0, False)])
def test_the_time_of_an_answer_does_not_show_that_a_commit_took_longer(
    path: Path, step_seconds: float, alike: bool
) -> None:
    """In virtual time, with commits that take longer when something is handed out; without steps it shows."""
    sealed, gateway = trio.run(stocked, path, 200, attrs.evolve(BOUNDS, step_seconds=step_seconds))
    times: defaultdict[str, list[float]] = defaultdict(list)

    async def measure() -> None:
        async with serving(gateway):
            for outcome, message in sealed:
                began = trio.current_time()
                await gateway.answer(message)
                times[outcome].append(round(trio.current_time() - began, 6))

    with transaction(path) as tx:
        gateway._store = UnevenStore(tx, random.Random(SEED))
        trio.run(measure, clock=trio.testing.MockClock(autojump_threshold=0))
    assert (not told_apart(times)) is alike


@pytest.mark.parametrize("milliseconds", [0, 3, 9, 11, 30, 49])
def test_answers_leave_at_the_same_moment_whatever_is_refused(path: Path, milliseconds: int) -> None:
    """A request that is refused before any claim waits as long as one that is claimed."""
    leaves: dict[str, float] = {}

    async def seal() -> tuple[dict[str, bytes], Gateway]:
        async with running(path) as rig:
            content = encode((await requests(rig, 1))["ok"]())
            made = {
                "ok": rig.encapsulate(content),
                "date": rig.encapsulate(content, late=9999),
                "path": rig.encapsulate(content, path="/nowhere"),
                "malformed": rig.seal(b"\xff"),
            }
            gateway = Gateway(rig.store, rig.clock, rig.keys.live, rig.keys.look, rig.key_packages, document, BOUNDS)
            keys = rig.keys.live()
            gateway._keys = lambda: keys
            return {name: message for name, (message, _) in made.items()}, gateway

    async def ask_for(name: str, message: bytes) -> None:
        await trio.sleep(milliseconds / 1000)
        await gateway.answer(message)
        leaves[name] = trio.current_time()

    async def ask_all(messages: dict[str, bytes]) -> None:
        async with serving(gateway), trio.open_nursery() as asking:
            for name, message in messages.items():
                asking.start_soon(ask_for, name, message)

    sealed, gateway = trio.run(seal)
    with transaction(path) as tx:
        gateway._store = UnevenStore(tx, random.Random(SEED))
        trio.run(ask_all, sealed, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(leaves) == 4
    assert len(set(leaves.values())) == 1


class CountingStore(UnevenStore):
    """Also counts the works of each call."""

    def __init__(self, tx: Tx, chance: random.Random) -> None:
        super().__init__(tx, chance)
        self.works: list[int] = []

    async def write_each(self, jobs: Sequence[QueuedWork]) -> None:
        self.works.append(len(jobs))
        await super().write_each(jobs)


def test_claims_that_arrive_one_after_the_other_are_committed_together(path: Path) -> None:
    """Behind a relay that was slower than the gateway, nearly every claim had a commit of its own."""
    sealed, gateway = trio.run(stocked, path, 4)

    async def arrive() -> None:
        async with serving(gateway), trio.open_nursery() as nursery:
            await trio.sleep(0.001)
            for _, message in sealed[:8]:
                nursery.start_soon(gateway.answer, message)
                await trio.sleep(0.001)

    with transaction(path) as tx:
        gateway._store = store = CountingStore(tx, random.Random(SEED))
        trio.run(arrive, clock=trio.testing.MockClock(autojump_threshold=0))
    assert store.works == [8]


@pytest.mark.soak
async def test_neither_time_nor_size_tells_outcomes_apart_in_thousands_of_samples(path: Path) -> None:
    rules = StockRules(max_lifetime_seconds=366 * DAY, device_packages=10 * SAMPLES)
    times: defaultdict[str, list[float]] = defaultdict(list)
    sizes: defaultdict[str, set[int]] = defaultdict(set)
    async with running(path, rules=rules, bounds=BOUNDS) as rig:
        makers = await requests(rig, SAMPLES)
        order = list(OUTCOMES * SAMPLES)
        random.Random(SEED).shuffle(order)

        async def ask_on() -> None:
            while order:
                outcome = order.pop()
                message, _ = rig.encapsulate(encode(makers[outcome]()))
                began = trio.current_time()
                answer = await rig.gateway.answer(message)
                times[outcome].append(trio.current_time() - began)
                sizes[outcome].add(len(answer))

        async with trio.open_nursery() as asking:
            for _ in range(AT_ONCE):
                asking.start_soon(ask_on)
    assert {len(found) for found in times.values()} == {SAMPLES}
    assert len(set().union(*sizes.values())) == 1
    assert told_apart(times) == {}
