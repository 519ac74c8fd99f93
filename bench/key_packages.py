"""The gateway's work for a KeyPackage compared with HPKE and the store alone (bench: programs-and-bars).

The floor is SetupBaseR, Open and Export on the octets (RFC 9180), then one INSERT of 1 KiB through `Store.write`. The
work is `Gateway.answer`, from the encapsulated request to the sealed response: open, parse, look for a replay, check
the token, claim, store the answer, pad, seal. Neither contains HTTP. Rounds of both alternate on the same store, with
as many in flight. The median of their ratios in CPU time is printed, so that a busy machine affects both.

    python -m bench.key_packages [--requests N] [--rounds N] [--in-flight N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from email.utils import formatdate
from functools import partial
from pathlib import Path

import trio

from bench.ohttp import PRIVATE, hpke_alone
from mimids.ds.clock import SystemClock
from mimids.ds.devices.accounts import add_device, add_user, find_user
from mimids.ds.key_packages.gateway import Gateway, GatewayBounds
from mimids.ds.key_packages.stock import KeyPackageStock, StockRules
from mimids.ds.key_packages.tokens import AbuseRule, Tokens, TokenTerms, issue
from mimids.ds.limits.rates import Rate
from mimids.http.api.problems import document
from mimids.ohttp import bhttp
from mimids.ohttp.client import encapsulate
from mimids.ohttp.config import key_config
from mimids.ohttp.hpke import Aead
from mimids.ohttp.padding import pad_request
from mimids.store import key_packages
from mimids.store.engine.migrate import migrate
from mimids.store.engine.sqlite import connect, open_store
from mimids.store.engine.transaction import Tx
from mimids.store.key_packages import NewKeyPackage
from mimids.values import Milliseconds
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, BearerToken, CipherSuite, KeyPackageRef, ProviderId, local_user_id
from mimids.wire.messages import KeyPackageRequest

PROVIDER = ProviderId("b.example")
SUITE = CipherSuite(1)
PACKAGE_OCTETS = 400  # as in the common suites with a basic credential; a claim does not parse it
BODY_OCTETS = 1024
BAR = 2.5

Step = Callable[[bytes], Awaitable[object]]


async def measure(directory: Path, *, requests: int, rounds: int, in_flight: int) -> list[tuple[float, float]]:
    """Return CPU seconds of floor and work for one request, round by round."""
    path = directory / "bench.sqlite"
    migrate(path)
    connection = connect(path)
    connection.execute("CREATE TABLE floor (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT")
    connection.close()
    clock = SystemClock()
    async with open_store(path) as store, trio.open_nursery() as jobs:
        await jobs.start(store.run)
        token = await store.write(partial(_stock, requests * (rounds + 1), clock.now()))
        rules = StockRules(max_lifetime_seconds=1)
        stock = KeyPackageStock(store, clock, Tokens(AbuseRule(claims=1 << 30)), rules)
        bounds = GatewayBounds(replay_rows=1 << 40, rate=Rate("none", 0, 0))
        gateway = Gateway(store, clock, lambda: {1: PRIVATE}, trio.lowlevel.checkpoint, stock, document, bounds)
        await jobs.start(gateway.run)
        body = os.urandom(BODY_OCTETS)

        async def floor(message: bytes) -> None:
            hpke_alone(message, Aead.AES_128_GCM)
            await store.write(lambda tx: tx.insert("INSERT INTO floor (body) VALUES (?) RETURNING id", (body,)))

        figures = []
        for _ in range(rounds + 1):
            messages = [_sealed(token, clock.now()) for _ in range(requests)]
            figures.append((await _cpu(floor, messages, in_flight), await _cpu(gateway.answer, messages, in_flight)))
        jobs.cancel_scope.cancel()
    return figures[1:]  # without the first round, which warms up


def _stock(packages: int, now: Milliseconds, tx: Tx) -> BearerToken:
    """Insert this many KeyPackages for a user into the store, without the checks of an upload; return a token."""
    add_user(tx, PROVIDER, "bob", now)
    device = add_device(tx, PROVIDER, "bob", "phone", now).row
    for _ in range(packages):
        package = NewKeyPackage(
            device=device,
            version=MLS10,
            cipher_suite=SUITE,
            ref=KeyPackageRef(os.urandom(32)),
            init_key=os.urandom(32),
            last_resort=False,
            expires_at=Milliseconds(now + 86_400_000),
            body=os.urandom(PACKAGE_OCTETS),
        )
        key_packages.insert(tx, package)
    return issue(tx, find_user(tx, PROVIDER, "bob")[0], TokenTerms("shared"), now).bearer_token


def _sealed(token: BearerToken, now: Milliseconds) -> bytes:
    content = encode(KeyPackageRequest(local_user_id(PROVIDER, "bob"), token, MLS10, SUITE))
    fields = (
        (b"content-type", b"application/mimi-ds"),
        (b"date", formatdate(now // 1000, usegmt=True).encode()),
    )
    request = bhttp.encode_request(bhttp.Request("POST", "https", PROVIDER, "/key-packages", fields, content))
    return encapsulate(key_config(1, PRIVATE), pad_request(request), os.urandom(32)).message


async def _cpu(step: Step, messages: Sequence[bytes], in_flight: int) -> float:
    """Return CPU seconds for one message, of all threads of this process."""
    remaining = iter(messages)

    async def worker(messages: Iterator[bytes]) -> None:
        for message in messages:
            await step(message)

    start = time.process_time()
    async with trio.open_nursery() as workers:
        for _ in range(in_flight):
            workers.start_soon(worker, remaining)
    return (time.process_time() - start) / len(messages)


def main() -> None:
    """Measure once and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--requests", type=int, default=1000, help="in each round")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--in-flight", type=int, default=256)
    arguments.add_argument("--json", action="store_true")
    chosen = arguments.parse_args()
    run = partial(measure, requests=chosen.requests, rounds=chosen.rounds, in_flight=chosen.in_flight)
    with tempfile.TemporaryDirectory(dir=".") as directory:
        figures = trio.run(run, Path(directory))
    floor, work = (statistics.median(each) for each in zip(*figures, strict=True))
    ratio = statistics.median(work / floor for floor, work in figures)
    if chosen.json:
        print(json.dumps({"floor_seconds": floor, "work_seconds": work, "ratio": ratio, "bar": BAR}))
        return
    print(
        f"KeyPackage fetch, {chosen.in_flight} in flight: {work * 1e6:.0f} us of CPU, {ratio:.2f} times HPKE and the "
        f"store alone ({floor * 1e6:.0f} us); the bar is {BAR}"
    )


if __name__ == "__main__":
    main()
