"""The tree: it starts in order, ends in order, and no failure of a job goes unnoticed."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from mimids import app
from mimids.app import EXIT_CRASHED, JOBS, JobCrashed, ServingProvider, Stage
from mimids.config import Config
from mimids.store.engine import lock
from tests.support.doubles import FakeClock, SpyLog
from tests.support.provider import HOST, Authority, running
from tests.support.sabotage import HANGING

ROOT = Path(__file__).parent.parent


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def get(address: str, path: str, context: ssl.SSLContext | None = None, host: str = "localhost") -> bytes:
    """Return the whole answer to one GET."""
    name, _, port = address.rpartition(":")
    stream: Any = await trio.open_tcp_stream(name, int(port))
    if context is not None:
        stream = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
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


async def test_what_the_log_only_counts_is_told_at_the_end(authority: Authority) -> None:
    log = SpyLog()
    async with running(authority.config(), telemetry=log.telemetry) as bound:
        await get(bound.addresses["public"], "/.well-known/ohttp-gateway", authority.client_context(), "a.example")
    told = [(line["route"], line["code"], line["count"]) for line in log.lines if line["event"] == "requests"]
    assert told == [("ohttp-keys", "ok", 1)]


async def test_two_providers_in_one_process_keep_apart(authority: Authority) -> None:
    first, second = SpyLog("a.example"), SpyLog("b.example")
    async with (
        running(authority.config("a.example"), telemetry=first.telemetry) as a,
        running(authority.config("b.example"), telemetry=second.telemetry),
    ):
        await get(a.addresses["operator"], "/healthz")
    assert [line["route"] for line in first.lines if line["event"] == "request"] == ["healthz"]
    assert not [line for line in second.lines if line["event"] == "request"]


async def test_a_certificate_that_is_renewed_is_shown_without_a_restart(authority: Authority) -> None:
    clock, log = FakeClock(), SpyLog()
    config = authority.config()
    async with running(config, clock=clock, telemetry=log.telemetry) as bound:
        authority.certify("a.example", "renewed.example")
        os.utime(config.tls.certificate, (1, 1))  # files of equal size within one tick of the file system
        await trio.testing.wait_all_tasks_blocked(0.01)
        clock.advance(config.tls.watch_seconds)
        await log.wait_for("certificates reloaded")
        context = authority.client_context()
        assert b" 200 " in await get(bound.addresses["public"], "/.well-known/mimi-ds", context, "renewed.example")


async def test_a_renewal_seen_half_done_is_tried_again(authority: Authority) -> None:
    clock, log = FakeClock(), SpyLog()
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
    with pytest.RaisesGroup(pytest.RaisesExc(JobCrashed), flatten_subgroups=True), trio.fail_after(5):
        await app.run(
            authority.config(), telemetry=SpyLog().telemetry, jobs=jobs, on_crash=crashes.append, stop=trio.Event()
        )
    assert [crash.name for crash in crashes] == [job.name]


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
    with trio.fail_after(2):
        await waited.wait()


async def test_an_address_that_is_taken_is_said(authority: Authority) -> None:
    with socket.create_server((HOST, 0)) as taken:
        address = f"{HOST}:{taken.getsockname()[1]}"
        config = authority.config(listen={"client": address})
        said = pytest.RaisesExc(JobCrashed, match=f"client-listener.*in use.*{address}")
        with pytest.RaisesGroup(said, flatten_subgroups=True):
            await app.run(config, telemetry=SpyLog().telemetry)


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failure_in_any_job_ends_the_process_in_time_with_its_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.sabotage", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [outcome["job"] for outcome in outcomes] == [*(job.name for job in JOBS), HANGING], done.stderr
    for outcome in outcomes:
        log = (tmp_path / f"{outcome['job']}.log").read_text()
        assert outcome["code"] == EXIT_CRASHED, (outcome, log)
        assert outcome["seconds"] < 5, outcome
        name = "sweeper" if outcome["job"] == HANGING else outcome["job"]
        assert f"mimids: {name}: " in log
        assert "sabotaged" in log  # with its traceback


SERVE = """
import json, sys
from pathlib import Path
from mimids.app import serve
from tests.support.provider import Authority

config = Authority(Path(sys.argv[1])).config()
sys.exit(serve(config, on_ready=lambda bound: print(json.dumps(dict(bound.addresses)), flush=True)))
"""


@contextmanager
def served(config_directory: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run `serve` of a configuration made in that directory as a process; its addresses."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(config_directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.slow
def test_a_stalled_reader_on_each_listener_does_not_hold_the_end(tmp_path: Path) -> None:
    with served(tmp_path) as (process, addresses):
        stalled = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        paths = {"public": "/.well-known/mimi-ds", "client": "/client/v1/me", "operator": "/metrics"}
        for listener, path in paths.items():
            host, _, port = addresses[listener].rpartition(":")
            plain = socket.socket()
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.connect((host, int(port)))
            connected = plain if listener == "operator" else context.wrap_socket(plain)
            connected.settimeout(1)
            request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
            try:
                for _ in range(20_000):  # until nothing more goes either way
                    connected.sendall(request * 50)
            except TimeoutError:
                pass
            stalled.append(connected)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert time.monotonic() - began < 10
        for connected in stalled:
            connected.close()


def test_an_idle_server_ends_at_once_and_gives_back_the_lock(tmp_path: Path) -> None:
    with served(tmp_path) as (process, _):
        data_dir = tmp_path / "a.example"
        assert lock.holder(data_dir) == process.pid
        second = subprocess.run(
            [sys.executable, "-c", SERVE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        assert second.returncode == app.EXIT_REFUSED
        assert f"process {process.pid}" in second.stderr
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - began < 6, "it waits for no drain, which would last eight"
        assert lock.holder(data_dir) is None
        assert not (data_dir / "operator.sock").exists()


def test_a_database_that_was_not_migrated_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config: Config = Authority(tmp_path).config()
    config.database.unlink()
    for suffix in ("-wal", "-shm"):
        config.database.with_name(config.database.name + suffix).unlink(missing_ok=True)
    assert app.serve(config) == app.EXIT_REFUSED
    assert "mimids migrate" in capsys.readouterr().err
