"""Metrics, the overview of the console and the log do not show when a single KeyPackage was fetched."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import attrs
import pytest

from mimids import telemetry as telemetries
from mimids.ds.key_packages.tokens import TokenTerms, issue
from mimids.http.api import kept_page, stock_totals
from mimids.metrics import HELD_METRICS
from mimids.store import accounts
from mimids.store.engine.transaction import Tx
from mimids.telemetry import COUNT_SECONDS, Telemetry
from mimids.values import Device, Milliseconds, UserRow
from mimids.wire.ids import BearerToken, Secret
from tests.support.doubles import SpyLog, stopped_clock
from tests.support.federation import federated
from tests.support.mls_makers import NOW
from tests.support.rig import ask, packages

MINUTES = 25
ROUTES = ("relay", "ohttp-gateway")


@attrs.define
class Clock:
    seconds: float = 0

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return self.seconds


@attrs.define
class Gateway:
    answered: int = 0
    repeated: int = 0


@attrs.define
class Store:
    writes: int = 0
    commits: int = 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(10_000.0)
    monkeypatch.setattr(telemetries, "time", clock)
    return clock


def shown(telemetry: Telemetry) -> tuple[object, ...]:
    return telemetry.metrics(), telemetry.requests()


def test_metrics_that_are_read_every_second_show_no_single_request(clock: Clock) -> None:
    """At one request a minute, every change of what is shown is of several requests, at a time that is no request's."""
    log = SpyLog()
    gateway, store = Gateway(), Store()
    log.telemetry.watch("gateway", lambda: gateway)
    log.telemetry.watch("store", lambda: store)
    changes, before, asked = [], shown(log.telemetry), 0
    for second in range(MINUTES * 60):
        clock.seconds += 1
        if second % 60 == 17:
            asked += 1
            for route in ROUTES:
                log.telemetry.request_unlinkable(route, "ok")
            gateway.answered += 1
            log.telemetry.bound_hit("replay-share")
            store.writes, store.commits = store.writes + 1, store.commits + 1
        now = shown(log.telemetry)
        if now != before:
            changes.append((clock.seconds, sum(log.telemetry.requests().values())))
            before = now
    assert {seconds % COUNT_SECONDS for seconds, _ in changes} == {0}
    counts = [count for _, count in changes]
    steps = [later - earlier for earlier, later in itertools.pairwise(counts)]
    assert min(steps) >= len(ROUTES) * (COUNT_SECONDS // 60)
    assert counts[-1] >= len(ROUTES) * (asked - COUNT_SECONDS // 60), "nothing is lost"


async def test_the_stock_of_the_overview_shows_no_single_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(10_000.0)
    monkeypatch.setattr(kept_page, "monotonic", clock.monotonic)
    async with federated(tmp_path, "b.example", jobs_of=(), clock=stopped_clock(NOW)) as (b,):
        token = await b.add_device("bob", "phone")
        phone = await b.services.devices.authenticate(Secret(token.encode()))
        assert phone is not None
        uploaded = await b.services.key_packages.upload(phone, packages(phone.user_id, MINUTES + 5))
        assert uploaded.accepted == MINUTES + 5
        bearer = await b.services.store.write(partial(a_token, phone, b.services.clock.now()))
        left, before, changes = MINUTES + 5, (await stock_totals.stock_totals(b.services)).suites, []
        for second in range(MINUTES * 60):
            clock.seconds += 1
            if second % 60 == 17:
                (given,) = await b.services.key_packages.claim([ask(bearer, "bob")])
                left -= given.key_package is not None
            if (now := (await stock_totals.stock_totals(b.services)).suites) != before:
                assert [each.ordinary for each in now] == [left]
                changes.append(clock.seconds % COUNT_SECONDS)
                before = now
        assert changes == [0] * (MINUTES * 60 // COUNT_SECONDS)


def a_token(phone: Device, now: Milliseconds, tx: Tx) -> BearerToken:
    user = accounts.find_user(tx, phone.user_id)
    assert user is not None
    return issue(tx, UserRow(user), TokenTerms("shared"), now, device=phone.row).bearer_token


def test_the_log_of_counts_is_not_written_because_of_a_request(clock: Clock) -> None:
    log = SpyLog()
    for _ in range(100):
        clock.seconds += COUNT_SECONDS
        log.telemetry.request_unlinkable("relay", "ok")
        log.telemetry.request("me", "ok", id_="1", peer=None, received=0, sent=0, milliseconds=1)
    assert {line["event"] for line in log.lines} == {"request"}


def test_the_held_metrics_are_those_of_gateway_relay_and_what_they_use() -> None:
    assert {"mimids_gateway_answered", "mimids_store_writes", "mimids_peers_answered"} <= set(HELD_METRICS)
