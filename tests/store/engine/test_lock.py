from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mimids.store.engine.lock import Locked, hold, holder

HOLD = """if True:
    import pathlib, sys, time
    from mimids.store.engine.lock import hold
    with hold(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


@contextmanager
def held_elsewhere(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-c", HOLD, str(data_dir)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_learns_the_pid_of_the_holder(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with held_elsewhere(tmp_path) as other:
        assert holder(tmp_path) == other.pid
        with pytest.raises(Locked, match=f"process {other.pid} ") as refused, hold(tmp_path, patience_seconds=0.05):
            pass
        assert refused.value.pid == other.pid


def test_the_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as other:
        other.kill()
        other.wait()
        assert (tmp_path / "lock").read_text() == f"{other.pid}\n"  # stale: the process has ended
        assert holder(tmp_path) is None
        with hold(tmp_path, patience_seconds=0):
            assert holder(tmp_path) == os.getpid()


def test_a_second_command_waits_while_the_first_writes(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as other:
        assert other.stdin
        end = threading.Timer(0.1, other.stdin.close)
        end.start()
        with hold(tmp_path, patience_seconds=10):
            assert holder(tmp_path) == os.getpid()
        end.join()


def test_the_lock_is_free_after_its_block_even_if_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(tmp_path):
        raise ZeroDivisionError
    assert holder(tmp_path) is None
    with hold(tmp_path, patience_seconds=0), pytest.raises(Locked), hold(tmp_path, patience_seconds=0):
        pass


def test_the_lock_file_is_private_and_not_inherited(tmp_path: Path) -> None:
    with hold(tmp_path):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
        sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        assert holder(tmp_path) is None
    finally:
        sleeper.kill()
        sleeper.communicate()
