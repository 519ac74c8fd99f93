"""The process of `mimids serve`: exit codes, signals, and its end within a bounded time."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mimids.app import JOBS
from mimids.config import Config
from mimids.http.peers.pools import FILES_FOR_KEPT
from mimids.process import EXIT_CRASHED, EXIT_REFUSED, serve
from mimids.store.engine import lock
from tests.support.provider import Authority
from tests.support.sabotage import HANGING

ROOT = Path(__file__).parent.parent


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
from mimids.process import serve
from tests.support.provider import Authority

config = Authority(Path(sys.argv[1])).config()
sys.exit(serve(config, on_ready=lambda bound: print(json.dumps(dict(bound.addresses)), flush=True)))
"""


@contextmanager
def served(config_directory: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run `serve` as a process, with a configuration made in that directory; give the process and its addresses."""
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
def test_a_stalled_reader_on_each_listener_does_not_delay_the_end(tmp_path: Path) -> None:
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


def test_an_idle_server_ends_at_once_and_releases_the_lock(tmp_path: Path) -> None:
    with served(tmp_path) as (process, _):
        data_dir = tmp_path / "a.example"
        assert lock.holder(data_dir) == process.pid
        second = subprocess.run(
            [sys.executable, "-c", SERVE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        assert second.returncode == EXIT_REFUSED
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
    assert serve(config) == EXIT_REFUSED
    assert "mimids migrate" in capsys.readouterr().err


KEPT = """
import os, resource, signal, sys
from pathlib import Path
from mimids.process import serve
from tests.support.provider import Authority

resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 8192))

def report(bound):
    print(bound.provider.peers._named._most_kept, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

sys.exit(serve(Authority(Path(sys.argv[1])).config(), on_ready=report))
"""


def test_as_many_connections_are_kept_as_the_hard_limit_on_files_allows(tmp_path: Path) -> None:
    """The limit was raised after the number of kept connections had been taken from it."""
    ran = subprocess.run(
        [sys.executable, "-c", KEPT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert int(ran.stdout) == 8192 // FILES_FOR_KEPT // 2, "of each of two pools"
