"""The fork server: a process that has imported the server, and forks a child for each process of a test.

It is an interpreter of its own with one thread, so forking it is safe whatever the test's own process does. For each
child it gets file descriptors: the control connection, the log, and the pipe for the exit code. When the test's process
ends, the fork server and its children end too.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Final, NoReturn

import mimids.process
import mimids.store.engine.driver  # noqa: F401  # together with mimids.process, all that a server imports before it serves
from mimids.testing import process
from mimids.testing.starting import FORK

DESCRIPTORS: Final = 3  # control, log, exit code


def serve(commands: socket.socket) -> None:
    """Fork a child for each command until the other end closes; then kill all children."""
    gc.collect()
    gc.freeze()  # keeps memory pages shared with the children
    commands.sendall(json.dumps({"threads": threading.active_count()}).encode())
    wake, notified = socket.socketpair()
    notified.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(notified.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, int] = {}  # the pipe for its exit code, by pid
    while True:
        ready, _, _ = select.select([commands, wake], [], [])
        if wake in ready:
            with suppress(BlockingIOError):
                wake.recv(4096)
            _reap(children)
        if commands in ready:
            command, descriptors, _, _ = socket.recv_fds(commands, len(FORK), DESCRIPTORS)
            if not command:
                break
            control, log, code = descriptors
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for inherited in (commands, wake, notified):
                    inherited.close()
                for inherited_pipe in (*children.values(), code):
                    os.close(inherited_pipe)
                _run_child(control, log)
            os.close(control)
            os.close(log)
            children[pid] = code
            commands.sendall(json.dumps({"pid": pid}).encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _run_child(control: int, log: int) -> NoReturn:
    """Run the child; never return into the parent's loop."""
    code = 70
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        code = process.main(socket.socket(fileno=control))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _reap(children: dict[int, int]) -> None:
    for pid in tuple(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            descriptor = children.pop(pid)
            with suppress(BrokenPipeError):
                os.write(descriptor, b"%d" % os.waitstatus_to_exitcode(status))
            os.close(descriptor)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
