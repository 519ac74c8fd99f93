"""Storms of requests that are refused: they delay nobody else, and a refusal costs no more than an answer."""

from __future__ import annotations

import secrets
import ssl
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from bench.floor import cpu_seconds
from bench.raw_client import Connection, Target, request
from mimids.http.api.devices import DEVICES
from mimids.http.server.holding import Holding
from mimids.http.server.messages import HttpRequest
from mimids.listeners import make_app
from mimids.store.engine.transaction import Tx
from mimids.testing import DeviceAccount, PretendGroup, Session, federation
from mimids.wire.declare import encode
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import READERS
from tests.support.stored import provider

MANY = 50
ADDRESS = ("address", "192.0.2.1")
UNLIMITED = {
    "limits": {name: 0 for name in ("device_requests_per_minute", "device_sends_per_second", "user_sends_per_second")}
}
REQUESTS = 100
TICK_SECONDS = 0.02  # a process's CPU time is counted in steps


async def nothing() -> tuple[bytes, bool]:
    return b"", False


async def test_junk_tokens_delay_no_other_read(tmp_path: Path) -> None:
    """Each of them is looked up in the database, and all of them counted as the server's own jobs."""
    waiting: list[int] = []
    async with provider(tmp_path) as (running, _), trio.open_nursery() as tasks:
        store, app, release = running.services.store, make_app(running.services, DEVICES), threading.Event()

        async def ask(token: str) -> None:
            headers = {"host": "a.example", "authorization": f"Bearer {token}"}
            asked = HttpRequest("GET", b"/client/v1/me", b"", headers, None, nothing, holding=Holding(ADDRESS))
            assert (await app.answer(asked)).status == 401

        for _ in range(READERS):
            tasks.start_soon(store.read, lambda _: release.wait(PATIENCE_SECONDS))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(MANY):
            tasks.start_soon(ask, secrets.token_hex(16))
        await trio.testing.wait_all_tasks_blocked()

        def of_a_job(tx: Tx) -> None:
            waiting.append(store.statistics().waiting_reads)

        tasks.start_soon(store.read, of_a_job)
        await trio.testing.wait_all_tasks_blocked()
        assert store.statistics().waiting_reads > MANY  # jobs of the provider may read, too
        release.set()
    assert waiting[0] >= MANY - 3


def device_requests(account: DeviceAccount) -> Mapping[str, tuple[int, Callable[[], bytes]]]:
    """Return requests by name, each with the status of its answer; the first one is not refused."""
    hub, token = "a.example", f"Authorization: Bearer {account.token}"
    group = PretendGroup.at(hub)
    account.ask(lambda device: device.create_group(group.creation()))

    def post(body: bytes, *headers: str, to: str = hub, media_type: str = "application/mimi-ds") -> bytes:
        return request("POST", f"/client/v1/hubs/{to}/send", hub, body, *headers, media_type=media_type)

    def message() -> bytes:
        return encode(group.message(secrets.token_bytes(8)))

    return {
        "accepted": (200, lambda: post(message(), token)),
        "without a token": (401, lambda: post(message())),
        "with a junk token": (401, lambda: post(message(), f"Authorization: Bearer {secrets.token_hex(16)}")),
        "no message": (400, lambda: post(secrets.token_bytes(20), token)),
        "of another type": (415, lambda: post(message(), token, media_type="text/plain")),
        "to an unknown partition": (404, lambda: post(encode(PretendGroup.at(hub).message(b"")), token)),
        "to a hub that is not allowed": (403, lambda: post(message(), token, to=f"{secrets.token_hex(4)}.example")),
        "to an unknown path": (404, lambda: request("POST", f"/{secrets.token_hex(8)}", hub, message(), token)),
    }


@pytest.mark.slow
def test_a_refusal_costs_no_more_than_an_answer(mimids_session: Session) -> None:
    with federation("a.example", config=UNLIMITED, links=False, session=mimids_session) as [a]:
        pid = a.pid
        assert pid is not None
        context = ssl.create_default_context(cafile=str(a.ca_file))
        connection = Connection(Target(a.client_url.removeprefix("https://"), a.name, context))
        costs = {}
        for name, (status, make) in device_requests(a.add_device("mallory")).items():
            octets = [make() for _ in range(REQUESTS)]
            assert connection.ask(make()) == status, name
            began = cpu_seconds(pid)
            assert {connection.ask(each) for each in octets} == {status}, name
            costs[name] = cpu_seconds(pid) - began
        connection.close()
    answered = costs.pop("accepted")
    assert {name: cost for name, cost in costs.items() if cost > answered + TICK_SECONDS} == {}, answered
