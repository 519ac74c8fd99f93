"""Machines of a test, each a network namespace; cables between them can be cut.

A machine exists as long as the process that holds it, which ends with this one, however this one ends. Its network
devices end with it, and so do all programs that were started on it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import IO, Final

import attrs
import trio

TOOLS: Final = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "setpriv": "util-linux"}
COMMAND_SECONDS: Final = 30
_CLONE_NEWNET: Final = 0x40000000
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@cache
def why_missing() -> str | None:
    """Return why there can be no machines here, None if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "not root on Linux, so there are no network namespaces"
    for program, package in TOOLS.items():
        if shutil.which(program) is None:
            return f"apt install {package}"
    tried = subprocess.run(["unshare", "--net", "ip", "link"], capture_output=True, text=True, check=False)
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else None


@attrs.frozen
class Machine:
    """A network namespace, by the process that holds it."""

    name: str
    holder: int

    @property
    def _namespace(self) -> str:
        return f"/proc/{self.holder}/ns/net"

    def prefix(self, *, user: str | None = None, signal: str = "KILL") -> list[str]:
        """Return what to write before a command that is to run here; the command ends with this process."""
        as_user = ["--reuid", user, "--regid", user, "--clear-groups"] if user is not None else []
        return ["nsenter", f"--net={self._namespace}", "--", "setpriv", *as_user, "--pdeathsig", signal, "--"]

    def run(self, *command: str) -> None:
        """Run a command here, and wait for its end."""
        ran = subprocess.run(
            [*self.prefix(), *command], capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
        )
        assert ran.returncode == 0, (command, ran.stderr)

    def connect(self, host: str, port: int) -> trio.socket.SocketType:
        """Connect to an address as seen from here; call it in a thread."""
        with _inside(self._namespace):
            import socket

            return trio.socket.from_stdlib_socket(socket.create_connection((host, port), COMMAND_SECONDS))


@attrs.frozen
class Switch:
    """A machine that joins the cables of other machines to one network."""

    machine: Machine

    def cable(self, other: Machine, address: str) -> str:
        """Lay a cable to a machine, which gets this address; return the name of the cable."""
        name = f"{other.name}-{address.rpartition('.')[2]}-{address.split('.')[2]}"
        inside = f"net{address.split('.')[2]}"
        self.machine.run("ip", "link", "add", name, "type", "veth", "peer", inside, "netns", str(other.holder))
        self.machine.run("ip", "link", "set", name, "master", "bridge", "up")
        other.run("ip", "address", "add", f"{address}/24", "dev", inside)
        other.run("ip", "link", "set", inside, "up")
        return name

    def cut(self, cable: str) -> None:
        """Let nothing through, as if the cable were pulled out."""
        self.machine.run("ip", "link", "set", cable, "down")

    def mend(self, cable: str) -> None:
        """Let everything through again."""
        self.machine.run("ip", "link", "set", cable, "up")


@contextmanager
def machine(name: str) -> Iterator[Machine]:
    """Make a machine for the block, without cables."""
    holder = subprocess.Popen(["unshare", "--net", "setpriv", "--pdeathsig", "KILL", "--", "sleep", "infinity"])
    try:
        own, give_up_at = os.readlink("/proc/self/ns/net"), time.monotonic() + COMMAND_SECONDS
        while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        made = Machine(name, holder.pid)
        made.run("ip", "link", "set", "lo", "up")
        yield made
    finally:
        holder.kill()
        holder.wait()


@contextmanager
def switch(name: str) -> Iterator[Switch]:
    """Make a switch for the block."""
    with machine(name) as made:
        made.run("ip", "link", "add", "bridge", "type", "bridge")
        made.run("ip", "link", "set", "bridge", "up")
        yield Switch(made)


@contextmanager
def started(
    at: Machine, *command: str | Path, log: Path, user: str | None = None, signal: str = "KILL"
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on a machine for the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*at.prefix(user=user, signal=signal), *command], cwd=log.parent, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def forward(
    at: Machine, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Let this process reach an address as seen from a machine, through a port of loopback, which is the status."""

    async def carry(caller: trio.SocketStream) -> None:
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            other = trio.SocketStream(await trio.to_thread.run_sync(partial(at.connect, host, port)))
            async with other, trio.open_nursery() as both:
                both.start_soon(_copy, caller, other, both.cancel_scope)
                both.start_soon(_copy, other, caller, both.cancel_scope)

    async with trio.open_nursery() as serving:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await serving.start(trio.serve_listeners, carry, [listener])
        task_status.started(listener.socket.getsockname()[1])


async def _copy(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for octets in source:
            await target.send_all(octets)
    scope.cancel()


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """Make sockets in a namespace in this block: only the present thread does, and only in the block."""
    with ExitStack() as stack:
        own, there = (stack.enter_context(_opened(path)) for path in ("/proc/thread-self/ns/net", namespace))
        _set_namespace(there)
        try:
            yield
        finally:
            _set_namespace(own)


def _opened(path: str) -> IO[bytes]:
    return Path(path).open("rb")


def _set_namespace(file: IO[bytes]) -> None:
    if _LIBC.setns(file.fileno(), _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
