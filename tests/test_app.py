"""The tree of jobs: it starts and stops in order, and the failure of any job ends it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from mimids import app
from mimids.app import JOBS, JobCrashed, ServingProvider, Stage
from mimids.errors import StorageUnavailable
from mimids.http.api import operator
from tests.support import postgresql
from tests.support.doubles import SpyLog, stopped_clock
from tests.support.patience import patience
from tests.support.provider import HOST, Authority, running


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def get(
    address: str, path: str, context: ssl.SSLContext | None = None, host: str = "localhost", *, certified: str = ""
) -> bytes:
    """Return the whole answer to one GET; the certificate must name `certified`, or else `host`."""
    name, _, port = address.rpartition(":")
    stream: Any = await trio.open_tcp_stream(name, int(port))
    if context is not None:
        stream = trio.SSLStream(stream, context, server_hostname=certified or host, https_compatible=True)
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        while piece := await stream.receive_some():
            answer += piece
        return answer


async def test_a_provider_answers_on_all_its_listeners(authority: Authority) -> None:
    async with running(authority.config(), telemetry=SpyLog().telemetry) as bound:
        assert set(bound.addresses) == {"public", "client", "operator", "operator-socket"}
        context = authority.client_context()
        directory = await get(bound.addresses["public"], "/.well-known/mimi-ds", context, "a.example")
        assert json.loads(directory.partition(b"\r\n\r\n")[2])["provider"] == "a.example"
        assert b" 401 " in await get(bound.addresses["client"], "/client/v1/me", context, "a.example")
        assert b"ready" in await get(bound.addresses["operator"], "/readyz")
        metrics = (await get(bound.addresses["operator"], "/metrics")).decode()
        assert 'mimids_requests_total{code="unauthenticated",route="me"} 1.0' in metrics
        assert "mimids_store_writable 1.0" in metrics


async def test_requests_that_the_log_only_counts_are_logged_at_the_end(authority: Authority) -> None:
    log = SpyLog()
    async with running(authority.config(), telemetry=log.telemetry) as bound:
        await get(bound.addresses["public"], "/.well-known/ohttp-gateway", authority.client_context(), "a.example")
    logged = [(line["route"], line["code"], line["count"]) for line in log.lines if line["event"] == "requests"]
    assert logged == [("ohttp-keys", "ok", 1)]


async def test_two_providers_in_one_process_do_not_share_a_log(authority: Authority) -> None:
    first, second = SpyLog("a.example"), SpyLog("b.example")
    async with (
        running(authority.config("a.example"), telemetry=first.telemetry) as a,
        running(authority.config("b.example"), telemetry=second.telemetry),
    ):
        await get(a.addresses["operator"], "/healthz")
    assert [line["route"] for line in first.lines if line["event"] == "request"] == ["healthz"]
    assert not [line for line in second.lines if line["event"] == "request"]


async def test_a_certificate_that_is_renewed_is_shown_without_a_restart(authority: Authority) -> None:
    clock, log = stopped_clock(), SpyLog()
    config = authority.config()
    async with running(config, clock=clock, telemetry=log.telemetry) as bound:
        authority.certify("a.example", "renewed.example")
        os.utime(config.tls.certificate, (1, 1))  # files of equal size within one tick of the file system
        await trio.testing.wait_all_tasks_blocked(0.01)
        clock.advance(config.tls.watch_seconds)
        await log.wait_for("certificates reloaded")
        context = authority.client_context()
        answer = await get(
            bound.addresses["public"], "/.well-known/mimi-ds", context, "a.example", certified="renewed.example"
        )
        assert b" 200 " in answer
        # The certificate alone does not make another name of ours: the Host must be the provider's.
        refused = await get(bound.addresses["public"], "/.well-known/mimi-ds", context, "renewed.example")
        assert b" 400 " in refused


async def test_a_renewal_that_is_half_done_is_tried_again(authority: Authority) -> None:
    clock, log = stopped_clock(), SpyLog()
    config = authority.config()
    key = config.tls.private_key.read_bytes()
    async with running(config, clock=clock, telemetry=log.telemetry) as bound:
        authority.certify("a.example", "renewed.example")
        renewed = config.tls.private_key.read_bytes()
        for written, event in ((key, "certificates not reloaded"), (renewed, "certificates reloaded")):
            config.tls.private_key.write_bytes(written)
            await trio.testing.wait_all_tasks_blocked(0.01)
            clock.advance(config.tls.watch_seconds)
            await log.wait_for(event)
            context = authority.client_context()
            assert b" 200 " in await get(bound.addresses["public"], "/.well-known/mimi-ds", context, "a.example")


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
async def test_a_job_that_ends_by_itself_is_a_crash(authority: Authority, job: app.Job) -> None:
    async def end(provider: object, *, task_status: trio.TaskStatus[Any]) -> None:
        started: Any = attrs.make_class("ServingProvider", ["name", "address", "statistics"])("x", "y", None)
        task_status.started(started)
        await trio.sleep(0.05)

    jobs = tuple(attrs.evolve(each, run=end) if each is job else each for each in JOBS)
    if job.stage is Stage.STORE:  # nothing else gets far without it
        jobs = tuple(each for each in jobs if each.stage is not Stage.WORK)
    crashes: list[JobCrashed] = []
    with pytest.RaisesGroup(pytest.RaisesExc(JobCrashed), flatten_subgroups=True), patience():
        await app.run(
            authority.config(), telemetry=SpyLog().telemetry, jobs=jobs, on_crash=crashes.append, stop=trio.Event()
        )
    assert [crash.name for crash in crashes] == [job.name]


@pytest.mark.parametrize(("in_postgresql", "damage"), [(True, ""), (False, ""), (False, "a page is torn")])
async def test_a_job_that_cannot_read_the_database_starts_again_unless_it_is_damaged(
    in_postgresql: bool, damage: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_postgresql and postgresql.why_missing() is not None:
        pytest.skip(str(postgresql.why_missing()))
    monkeypatch.setattr(app, "AGAIN_SECONDS", 0.01)
    starts, log = trio.Semaphore(0), SpyLog()

    async def fail(provider: object, *, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started()
        starts.release()
        async with trio.open_nursery():
            error = StorageUnavailable()
            error.damage = damage
            raise error

    jobs = (*JOBS[:2], app.Job("counts", Stage.WORK, fail))
    store = {"url": postgresql.database_of(tmp_path / "shared")} if in_postgresql else {}
    run = partial(app.run, authority.config(store=store), telemetry=log.telemetry, jobs=jobs)
    if damage:
        with pytest.RaisesGroup(pytest.RaisesExc(JobCrashed), flatten_subgroups=True), trio.fail_after(5):
            await run()
        return
    async with trio.open_nursery() as running:
        await running.start(run)
        for _ in range(3):
            await starts.acquire()
        running.cancel_scope.cancel()


async def test_a_request_that_waits_is_answered_at_shutdown(authority: Authority, nursery: trio.Nursery) -> None:
    config = authority.config()
    stop = trio.Event()
    bound: ServingProvider = await nursery.start(partial(app.run, config, telemetry=SpyLog().telemetry, stop=stop))
    notifier = bound.provider.services.notifier
    waited = trio.Event()

    async def wait() -> None:
        with notifier.listen("something") as waiter:
            await waiter.wait()
        waited.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked(0.01)
    stop.set()
    with patience():
        await waited.wait()


async def test_an_address_in_use_is_named_in_the_error(authority: Authority) -> None:
    with socket.create_server((HOST, 0)) as taken:
        address = f"{HOST}:{taken.getsockname()[1]}"
        config = authority.config(listen={"client": address})
        said = pytest.RaisesExc(JobCrashed, match=f"client-listener.*in use.*{address}")
        with pytest.RaisesGroup(said, flatten_subgroups=True):
            await app.run(config, telemetry=SpyLog().telemetry)


async def test_readyz_fails_on_a_full_disk_before_a_write_has_failed(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(authority.config(), telemetry=SpyLog().telemetry) as bound:
        assert b" 200 " in await get(bound.addresses["operator"], "/readyz")
        free = shutil.disk_usage(bound.provider.services.config.data_dir).free
        monkeypatch.setattr(operator, "FULL_OCTETS", 2 * free)
        answer = await get(bound.addresses["operator"], "/readyz")
        assert b" 503 " in answer
        assert b"the disk of data_dir is full" in answer
        assert bound.provider.services.store.statistics().storage_failures == 0
        monkeypatch.undo()
        assert b" 200 " in await get(bound.addresses["operator"], "/readyz")
