"""An acknowledged write is on the disk: processes are killed under load, stopped around a commit, and traced."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mimids.store.engine.sqlite import read_here
from mimids.store.engine.transaction import Tx
from tests.support import store_child

ROOT = Path(__file__).parents[3]
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["tests.support.store_child"])


@contextmanager
def running(target: Callable[..., None], *args: object) -> Iterator[tuple[BaseProcess, int]]:
    """Run target(*args, acknowledgements) in a process; yield the process and the descriptor to read from."""
    reading, writing = FORKING.Pipe(duplex=False)
    process = FORKING.Process(target=_with_descriptor, args=(target, args, writing), daemon=True)
    process.start()
    writing.close()
    with reading:
        try:
            yield process, reading.fileno()
        finally:
            process.kill()
            process.join()
            process.close()


def _with_descriptor(target: Callable[..., None], args: tuple[object, ...], writing: object) -> None:
    target(*args, writing.fileno())  # type: ignore[attr-defined]


def rest_of(descriptor: int) -> bytes:
    chunks = []
    while chunk := os.read(descriptor, 1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def acknowledged(report: bytes) -> list[tuple[int, int, int]]:
    """Return row, sender and number of each answer; ignore a line that the kill cut short."""
    lines = report.split(b"\n")[:-1]
    return [(int(row), int(sender), int(number)) for row, sender, number in (line.split() for line in lines)]


def check(tx: Tx, answers: list[tuple[int, int, int]], rows_before: int) -> int:
    """Check that every answered write is there, whole, in order and once; return the number of rows."""
    rows = tx.all("SELECT id, sender, number, arrival FROM sent ORDER BY id")
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    arrivals = [row[3] for row in rows[rows_before:]]
    assert arrivals == sorted(arrivals)
    assert set(answers) <= {row[:3] for row in rows}
    for sender, numbers in tx.all("SELECT sender, numbers FROM counted"):
        assert [row[2] for row in rows if row[1] == sender] == list(range(numbers))
    assert tx.all("PRAGMA integrity_check") == [("ok",)]
    return len(rows)


@pytest.mark.slow
def test_acknowledged_writes_survive_a_kill_at_any_moment(tmp_path: Path) -> None:
    path, dice, rows, answered = tmp_path / "db", random.Random(20), 0, 0
    store_child.create(path)
    end = time.monotonic() + 15
    for _ in range(20):
        with running(store_child.stream, path) as (process, descriptor):
            report = os.read(descriptor, 1 << 16)  # the first answers: the process is under load now
            stop = time.monotonic() + dice.uniform(0, 0.15)
            while time.monotonic() < stop:
                report += os.read(descriptor, 1 << 16)
            process.kill()
            answers = acknowledged(report + rest_of(descriptor))
        answered += len(answers)
        with read_here(path) as tx:
            rows = check(tx, answers, rows)
        if time.monotonic() > end:
            break
    assert 0 < answered <= rows


@pytest.mark.parametrize(("point", "kept"), [("before_commit", 0), ("after_commit", store_child.SENDERS)])
def test_a_process_that_dies_around_a_commit_keeps_all_or_nothing_of_the_batch(
    tmp_path: Path, point: str, kept: int
) -> None:
    path = tmp_path / "db"
    store_child.create(path)
    with running(store_child.die_at, point, 3, path) as (process, descriptor):
        answers = acknowledged(rest_of(descriptor))
        process.join(10)
        assert process.exitcode == 9
    with read_here(path) as tx:
        assert check(tx, answers, 0) == len(answers) + kept


# --- strace -----------------------------------------------------------------------------------------------------

_CALL = re.compile(r"(?P<pid>\d+) +(?:<\.\.\. )?(?P<call>pwrite64|fdatasync|fsync|write)(?P<rest>.*)")


def answers_without_sync(trace: str) -> tuple[int, int]:
    """Count the answers in a trace, and those that came before all writes to the WAL were synced."""
    answers = unsynced_answers = 0
    written = 0  # writes to the WAL that have begun
    synced = 0  # writes that a finished sync has covered
    syncing: dict[str, int] = {}  # by thread: the number of writes when its sync began
    for line in trace.splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        pid, call, rest = match["pid"], match["call"], match["rest"]
        if call == "write" and '"answer ' in rest:
            answers += 1
            unsynced_answers += written > synced
        elif call == "pwrite64" and "-wal>" in rest:
            written += 1
        elif call in ("fdatasync", "fsync"):
            if "-wal>" in rest:
                syncing[pid] = written
            if rest.endswith("= 0") and pid in syncing:
                synced = max(synced, syncing.pop(pid))
    return answers, unsynced_answers


@pytest.mark.parametrize(("synchronous", "safe"), [("FULL", True), ("NORMAL", False)])
def test_a_write_is_answered_after_its_sync(tmp_path: Path, synchronous: str, safe: bool) -> None:
    """Killing a process does not test power loss. With NORMAL, this test sees answers that come before their sync."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (Debian: apt install strace)")
    path, trace = tmp_path / "db", tmp_path / "trace"
    store_child.create(path)
    program = [sys.executable, "-m", "tests.support.store_child", str(path), synchronous, "20"]
    watched = "trace=pwrite64,fdatasync,fsync,write"
    ran = subprocess.run(
        [strace, "-f", "-y", "-e", watched, "-o", str(trace), *program], cwd=ROOT, capture_output=True, check=False
    )
    if b"ptrace" in ran.stderr:
        pytest.skip("this machine does not allow tracing")
    assert ran.returncode == 0, ran.stderr.decode()
    answers, unsynced = answers_without_sync(trace.read_text())
    assert answers == 20
    assert unsynced == 0 if safe else unsynced > 0
