"""Start processes for a test: forked from a preloaded parent, or each as an interpreter of its own.

Forking takes tens of milliseconds, an interpreter about a second. `MIMIDS_TESTING_START=spawn` asks for the latter;
it is what happens anyway where forking is not safe (macOS, or a thread in the parent after its imports).
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from mimids.testing.control import Control

START_SECONDS: Final = 60  # for the imports of a busy machine
FORK: Final = b"fork"  # what the parent is told, with the descriptors of control, log and exit code
METHOD: Final = "MIMIDS_TESTING_START"


class Process:
    """A process that was started; `control` is the way to it."""

    def __init__(self, pid: int, control: Control, ending: _Ending) -> None:
        self.pid = pid
        self.control = control
        self._ending = ending
        self._reading = threading.Lock()
        self._code: int | None = None

    def wait(self, seconds: float) -> int | None:
        """Return the exit code (of a signal, its negative number), None if it still runs after `seconds`."""
        if self._code is None and self._ending.wait(seconds):
            with self._reading:
                if self._code is None:
                    self._code = self._ending.code()
        return self._code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended: its number may be another's by now."""
        if self.wait(0) is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """Let go of it; it ends, if it has not."""
        self.control.close()
        self._ending.close()

    def end(self, seconds: float = 10) -> int:
        """See to it that it has ended, by SIGKILL, and return the exit code."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        code = self.wait(seconds)
        self.close()
        if code is None:
            raise TimeoutError(f"process {self.pid} does not end")
        return code


class _Ending(Protocol):
    """How one knows of a process's end; `code` is asked once, after `wait` said that it has come."""

    def wait(self, seconds: float) -> bool: ...

    def code(self) -> int: ...

    def close(self) -> None: ...


class Starter(Protocol):
    """A way to start processes; any thread may use it."""

    def start(self, what: Mapping[str, Any], log: Path) -> Process:
        """Start what `process.main` is told; its output goes to the end of `log`."""
        ...

    def close(self) -> None:
        """End every process that was started here and has not ended."""
        ...


class Spawning:
    """Each process is an interpreter of its own."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, what: Mapping[str, Any], log: Path) -> Process:
        """Start one; see `Starter`."""
        ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as output:
            popen = _interpreter("mimids.testing.process", theirs, output=output)
        self._started.append(popen)
        return _begun(Process(popen.pid, Control(ours), _Spawned(popen)), what)

    def close(self) -> None:
        """End what still runs."""
        for popen in self._started:
            popen.kill()
            popen.wait()


class _Spawned:
    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    def wait(self, seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)
        return self._popen.returncode is not None

    def code(self) -> int:
        return self._popen.wait()

    def close(self) -> None:
        """Do nothing: whoever started it waits for it."""


class Forking:
    """Processes are forked from one that has imported the server."""

    def __init__(self) -> None:
        self._commands, theirs = socket.socketpair()
        with theirs:
            self._server = _interpreter("mimids.testing.forkserver", theirs)
        self._lock = threading.Lock()
        self._preloaded: bool | None = None

    def is_safe(self) -> bool:
        """Tell, once the parent is ready, whether it may fork: whether it has one thread."""
        with self._lock:
            return self._wait_preloaded()

    def start(self, what: Mapping[str, Any], log: Path) -> Process:
        """Start one; see `Starter`."""
        ours, theirs = socket.socketpair()
        exit_code, told = os.pipe()
        with theirs, log.open("ab") as output, self._lock:
            try:
                self._wait_preloaded()
                socket.send_fds(self._commands, [FORK], [theirs.fileno(), output.fileno(), told])
                pid = self._hear()["pid"]
            finally:
                os.close(told)
        return _begun(Process(pid, Control(ours), _Forked(exit_code)), what)

    def close(self) -> None:
        """End the parent, which ends what it forked."""
        self._commands.close()
        self._server.wait()

    def _wait_preloaded(self) -> bool:
        if self._preloaded is None:
            self._preloaded = self._hear()["threads"] == 1
        return self._preloaded

    def _hear(self) -> dict[str, Any]:
        self._commands.settimeout(START_SECONDS)
        said: dict[str, Any] = json.loads(self._commands.recv(4096) or "{}")
        if not said:
            raise RuntimeError(f"the parent of the test's processes ended ({self._server.wait()})")
        return said


class _Forked:
    def __init__(self, exit_code: int) -> None:
        self._exit_code = exit_code

    def wait(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._exit_code, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def code(self) -> int:
        return int(os.read(self._exit_code, 16) or -signal.SIGKILL)  # nothing: the parent was killed

    def close(self) -> None:
        os.close(self._exit_code)


def _begun(process: Process, what: Mapping[str, Any]) -> Process:
    try:
        process.control.begin(what)
    except OSError:
        process.end()
        raise
    return process


def _interpreter(module: str, connected: socket.socket, *, output: Any = None) -> subprocess.Popen[bytes]:
    """Start an interpreter that sees what this one sees; it is not in our session, so Ctrl-C is for the test alone."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", module, str(connected.fileno())],
        pass_fds=[connected.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    )


def new_starter(method: str | None = None) -> Starter:
    """Return a starter: `fork` or `spawn`, by default as the environment says, else fork where that is safe."""
    method = method or os.environ.get(METHOD) or ("spawn" if sys.platform == "darwin" else "fork")
    if method not in ("fork", "spawn"):
        raise ValueError(f"{METHOD}: fork or spawn is wanted, not {method}")
    if method == "spawn":
        return Spawning()
    return Forking()
