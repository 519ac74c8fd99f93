"""A disk that takes nothing: writes are refused as such, reading goes on, nothing is lost, and it shows."""

from __future__ import annotations

import http.client
import json
import resource
import ssl
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mimids.ds.upkeep.sweeper import FULL_DISK_SECONDS
from mimids.http.api.devices import DEVICES
from mimids.http.api.operator import OPERATOR
from mimids.wire.declare import encode
from mimids.wire.ids import Counter
from mimids.wire.messages import ReceiveRequest
from tests.support.cli_runs import provider as make_provider
from tests.support.cli_runs import run, serving
from tests.support.federation import Room, texts
from tests.support.inmemory import InMemory
from tests.support.stored import provider, until

pytestmark = pytest.mark.sqlite_file("the disk is full by SQLite's own limits")

MIMI_DS = "application/mimi-ds"


# Longer than 40 lines: one story, in which each step needs the one before.
async def test_writes_get_503_reads_go_on_and_readiness_ends_until_the_disk_takes_writes_again(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        services, room = running.services, Room()
        token = await running.add_device("alice", "laptop")
        devices, operator = InMemory(running.app(DEVICES)), InMemory(running.app(OPERATOR))

        async def ask(path: str, body: bytes) -> Any:
            headers = {"authorization": f"Bearer {token}", "content-type": MIMI_DS}
            return await devices.ask("POST", path, body, headers)

        async def health() -> tuple[int, int]:
            answers = [await operator.ask("GET", path, b"", {}) for path in ("/healthz", "/readyz")]
            return answers[0].status, answers[1].status

        here = f"/client/v1/hubs/{room.hub}"
        assert (await ask("/client/v1/groups", encode(room.creation()))).status == 201
        acknowledged = []
        for n in range(20):
            assert (await ask(f"{here}/send", encode(room.send(f"{n}")))).status == 200
            acknowledged.append(f"{n}")
        assert await health() == (200, 200)

        await services.store.write(lambda tx: tx.one("PRAGMA max_page_count = 1"))  # no less than there is
        refused = 0
        for n in range(20, 120):
            answer = await ask(f"{here}/send", encode(room.send(f"{n}".ljust(3000))))
            if answer.status == 200:
                acknowledged.append(f"{n}".ljust(3000))
                continue
            assert answer.status == 503
            assert json.loads(answer.body)["type"] == "urn:mimids:problem:storage-unavailable"
            refused += 1
        assert refused > 90
        assert await health() == (200, 503)

        async def received() -> list[str]:
            request = encode(ReceiveRequest(room.key, Counter(0)))
            return [text.rstrip() for text in texts((await ask(f"{here}/receive", request)).body)]

        assert await received() == [text.rstrip() for text in acknowledged]
        async with trio.open_nursery() as jobs:
            await jobs.start(services.sweeper.run)
            await trio.testing.wait_all_tasks_blocked()
            clock.advance(services.config.retention.sweep_seconds)
            await running.log.wait_for("sweep failed: the disk takes no writes")
            assert await health() == (200, 503)
            await services.store.write(lambda tx: tx.one("PRAGMA max_page_count = 1000000"))
            await trio.testing.wait_all_tasks_blocked(0.05)
            clock.advance(FULL_DISK_SECONDS)
            await until(lambda: _equals(health, (200, 200)))
            jobs.cancel_scope.cancel()
        answer = await ask(f"{here}/send", encode(room.send("after")))
        assert answer.status == 200
        assert await received() == [text.rstrip() for text in [*acknowledged, "after"]]


async def _equals(ask: Callable[[], Awaitable[object]], wanted: object) -> bool:
    return await ask() == wanted


def exchange(place: str, trust: Path | None, method: str, path: str, body: bytes = b"", token: str = "") -> Any:
    """Exchange one request with a listener; return status and body."""
    host, _, port = place.removeprefix("https://").removeprefix("http://").rpartition(":")
    connection: http.client.HTTPConnection
    if trust is None:
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
    else:
        context = ssl.create_default_context(cafile=str(trust))
        connection = http.client.HTTPSConnection(host, int(port), timeout=30, context=context)
    with closing(connection):
        headers = {"Authorization": f"Bearer {token}", "Content-Type": MIMI_DS} if token else {}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.mark.slow
def test_a_server_whose_files_may_not_grow_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    config, room = make_provider(tmp_path), Room()
    here = f"/client/v1/hubs/{room.hub}"
    acknowledged = []
    request = encode(ReceiveRequest(room.key, Counter(0)))
    with serving("--config", "mimids.toml", cwd=tmp_path) as (process, said):
        places = {line.split()[0]: line.split()[-1] for line in said[1:]}
        run("user", "add", "alice", cwd=tmp_path)
        token = run("device", "add", "alice", "phone", "--json", cwd=tmp_path).json["token"]

        def ask(path: str, body: bytes) -> Any:
            return exchange(places["client"], tmp_path / "ca.pem", "POST", path, body, token)

        assert ask("/client/v1/groups", encode(room.creation()))[0] == 201
        largest = max(path.stat().st_size for path in config.data_dir.iterdir())
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest + 20_000, resource.RLIM_INFINITY))
        refused = 0
        for n in range(400):
            status, body = ask(f"{here}/send", encode(room.send(f"{n}".ljust(8000))))
            if status == 200:
                acknowledged.append(f"{n}")
            else:
                assert (status, json.loads(body)["type"]) == (503, "urn:mimids:problem:storage-unavailable")
                refused += 1
            if refused == 5:
                break
        assert refused
        assert exchange(places["operator"], None, "GET", "/readyz")[0] == 503
        assert exchange(places["operator"], None, "GET", "/healthz")[0] == 200
        status, body = ask(f"{here}/receive", request)
        assert status == 200
        assert [text.rstrip() for text in texts(body)] == acknowledged
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert ask(f"{here}/send", encode(room.send("after")))[0] == 200
        assert exchange(places["operator"], None, "GET", "/readyz")[0] == 200
    with serving("--config", "mimids.toml", cwd=tmp_path) as (_, said):
        places = {line.split()[0]: line.split()[-1] for line in said[1:]}
        status, body = exchange(places["client"], tmp_path / "ca.pem", "POST", f"{here}/receive", request, token)
        assert [text.rstrip() for text in texts(body)] == [*acknowledged, "after"]
