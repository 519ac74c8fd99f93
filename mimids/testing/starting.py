"""Starting the processes of a test: forked from the fork server, or each as a new interpreter.

Forking takes tens of milliseconds, a new interpreter about a second. `MIMIDS_TESTING_START=spawn` selects new
interpreters. They are also used if forking is not safe: on macOS, or if importing the server started a thread.
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
FORK: Final = b"fork"  # the command to the fork server, sent with the descriptors of control, log and exit code
METHOD: Final = "MIMIDS_TESTING_START"


class Process:
    """A process that was started; `control` is the connection to it."""

    def __init__(self, pid: int, control: Control, exit_code: _ExitCode) -> None:
        self.pid = pid
        self.control = control
        self._exit_code = exit_code
        self._reading = threading.Lock()
        self._code: int | None = None

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, or the negative number of the signal; None if it still runs after `seconds`."""
        if self._code is None and self._exit_code.wait(seconds):
            with self._reading:
                if self._code is None:
                    self._code = self._exit_code.code()
        return self._code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended: another process may have its number by now."""
        if self.wait(0) is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """Close the connection, which ends the process if it still runs."""
        self.control.close()
        self._exit_code.close()

    def kill(self, seconds: float = 10) -> int:
        """End the process by SIGKILL and return the exit code."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        code = self.wait(seconds)
        self.close()
        if code is None:
            raise TimeoutError(f"process {self.pid} does not end within {seconds} s of SIGKILL")
        return code


class _ExitCode(Protocol):
    """The exit code of a process. Call `code` once, after `wait` returned True."""

    def wait(self, seconds: float) -> bool: ...

    def code(self) -> int: ...

    def close(self) -> None: ...


class Starter(Protocol):
    """Starts processes. Any thread may use it."""

    def start(self, what: Mapping[str, Any], log: Path) -> Process:
        """Start a process; `what` is the first message for `process.main`. Its output is appended to `log`."""
        ...

    def close(self) -> None:
        """End all processes that were started here."""
        ...


class Spawning:
    """Starts each process as a new interpreter."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, what: Mapping[str, Any], log: Path) -> Process:
        """See `Starter.start`."""
        ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as output:
            popen = _interpreter("mimids.testing.process", theirs, output=output)
        self._started.append(popen)
        return _started(Process(popen.pid, Control(ours), _Spawned(popen)), what)

    def close(self) -> None:
        """See `Starter.close`."""
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
        """Do nothing: `Spawning.close` waits for the process."""


class Forking:
    """Forks processes from the fork server."""

    def __init__(self) -> None:
        self._commands, theirs = socket.socketpair()
        with theirs:
            self._server = _interpreter("mimids.testing.forkserver", theirs)
        self._lock = threading.Lock()
        self._preloaded: bool | None = None

    def is_safe(self) -> bool:
        """Wait until the fork server is ready; tell whether it may fork. Forking is safe only with a single thread."""
        with self._lock:
            return self._wait_preloaded()

    def start(self, what: Mapping[str, Any], log: Path) -> Process:
        """See `Starter.start`."""
        ours, theirs = socket.socketpair()
        exit_code, written = os.pipe()
        with theirs, log.open("ab") as output, self._lock:
            try:
                self._wait_preloaded()
                socket.send_fds(self._commands, [FORK], [theirs.fileno(), output.fileno(), written])
                pid = self._receive()["pid"]
            finally:
                os.close(written)
        return _started(Process(pid, Control(ours), _Forked(exit_code)), what)

    def close(self) -> None:
        """End the fork server, which ends its children."""
        self._commands.close()
        self._server.wait()

    def _wait_preloaded(self) -> bool:
        if self._preloaded is None:
            self._preloaded = self._receive()["threads"] == 1
        return self._preloaded

    def _receive(self) -> dict[str, Any]:
        self._commands.settimeout(START_SECONDS)
        answer: dict[str, Any] = json.loads(self._commands.recv(4096) or "{}")
        if not answer:
            raise RuntimeError(f"the fork server of the test's processes ended with exit code {self._server.wait()}")
        return answer


class _Forked:
    def __init__(self, exit_code: int) -> None:
        self._exit_code = exit_code

    def wait(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._exit_code, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def code(self) -> int:
        return int(os.read(self._exit_code, 16) or -signal.SIGKILL)  # nothing: the fork server was killed

    def close(self) -> None:
        os.close(self._exit_code)


def _started(process: Process, what: Mapping[str, Any]) -> Process:
    try:
        process.control.send_start(what)
    except OSError:
        process.kill()
        raise
    return process


def _interpreter(module: str, connected: socket.socket, *, output: Any = None) -> subprocess.Popen[bytes]:
    """Start an interpreter with the same import path, in its own session so that Ctrl-C reaches only the test."""
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
    """Return a starter for `fork` or `spawn`; by default MIMIDS_TESTING_START, else fork where that is safe."""
    method = method or os.environ.get(METHOD) or ("spawn" if sys.platform == "darwin" else "fork")
    if method not in ("fork", "spawn"):
        raise ValueError(f"{METHOD} is {method!r}; set it to fork or spawn")
    if method == "spawn":
        return Spawning()
    return Forking()
