"""Ends waits for a PostgreSQL server that no longer answers: its machine froze, or the network drops everything.

PostgreSQL bounds how long a statement takes. But a process that is cut off from PostgreSQL would wait for the answer
for ever. TCP's own limits do not help if a proxy is between them. So a thread looks at the sessions that have been busy
for seconds. It opens another connection to the same server; if that fails, it shuts the session's socket down.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

import psycopg
from psycopg import conninfo

from mimids.store.engine.postgresql.connection import connect

BUSY_SECONDS: Final = 5.0  # before a session is looked at
PROBE_SECONDS: Final = 5  # for opening the other connection
LOOK_SECONDS: Final = 1.0
AGAIN_SECONDS: Final = 1.0  # how long further connections fail at once, after one could not be opened


class ServerWatch:
    """The connections of one store, and the thread that watches them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._busy: dict[Callable[[], psycopg.Connection], float] = {}  # since when each is busy
        self._failed_at = -AGAIN_SECONDS
        self._over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch the connections while the block runs."""
        thread = threading.Thread(target=self._look, name="postgresql-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()  # the thread ends by itself, at the latest after a probe

    def connect(self) -> psycopg.Connection:
        """Open a connection; raise `psycopg.Error`, at once if another one failed a moment ago.

        Otherwise each waiting request would wait until its own attempt to connect has failed.
        """
        if time.monotonic() - self._failed_at < AGAIN_SECONDS:
            raise psycopg.OperationalError("the server could not be reached a moment ago")
        try:
            return connect(self._url)
        except psycopg.Error:
            self._failed_at = time.monotonic()
            raise

    @contextmanager
    def busy(self, connection: Callable[[], psycopg.Connection]) -> Iterator[None]:
        """Watch a connection while the block uses it; the block may replace it by another one."""
        self._busy[connection] = time.monotonic()
        try:
            yield
        finally:
            self._busy.pop(connection, None)

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            now = time.monotonic()
            for present, since in list(self._busy.items()):
                is_slow = now - since > BUSY_SECONDS
                if is_slow and not _answers(connection := present()) and self._busy.get(present) == since:
                    shut_down(connection)


def _answers(connection: psycopg.Connection) -> bool:
    """Tell whether the server of a connection accepts another connection."""
    with suppress(psycopg.Error):
        info = connection.info
        parameters = {
            **conninfo.conninfo_to_dict(info.dsn),
            "password": info.password,
            "host": info.host,
            "port": info.port,
            "target_session_attrs": "any",
            "connect_timeout": PROBE_SECONDS,
        }
        if info.hostaddr:
            parameters["hostaddr"] = info.hostaddr
        psycopg.connect(**cast("Any", parameters)).close()
        return True
    return connection.closed  # nobody waits for a closed connection


def shut_down(connection: psycopg.Connection) -> None:
    """Make the thread that waits for an answer see the end of the connection."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as copy:
        copy.shutdown(socket.SHUT_RDWR)
