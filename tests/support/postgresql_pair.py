"""A primary of PostgreSQL with a synchronous standby, each with a data directory and a socket of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from tests.support.postgresql import end_with_parent, programs, server_user

if TYPE_CHECKING:
    import psycopg

_SECONDS: Final = 60
_SETTINGS: Final = {
    "listen_addresses": "",
    "fsync": "off",  # the machine does not lose power: only processes are killed
    "shared_buffers": "16MB",
    "max_connections": "60",
    "max_wal_senders": "4",
    "wal_receiver_status_interval": "1",
}


class Server:
    """A server of PostgreSQL; `name` is also that of a standby for its primary."""

    def __init__(self, home: Path, name: str) -> None:
        self.name = name
        self.socket = home / name
        self.data = self.socket / "data"
        self.socket.mkdir()
        if user := server_user():
            shutil.chown(self.socket, user)
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of PostgreSQL's programs and wait for its end."""
        directory, user = programs(), server_user()
        assert directory is not None
        with (self.socket / "programs.log").open("ab") as log:
            command = [directory / program, *arguments]
            subprocess.run(command, check=True, user=user, cwd=self.socket, stdout=log, stderr=log, timeout=_SECONDS)

    def start(self, **settings: str) -> None:
        """Start the server and wait until it answers."""
        directory, user = programs(), server_user()
        assert directory is not None
        all_settings = {**_SETTINGS, "cluster_name": self.name, **settings}
        options = [part for name, value in all_settings.items() for part in ("-c", f"{name}={value}")]
        with (self.socket / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [directory / "postgres", "-D", self.data, "-k", self.socket, *options],
                user=user,
                cwd=self.socket,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
            )
        give_up_at = time.monotonic() + _SECONDS
        while True:
            with suppress(Exception):
                self.connect("postgres").close()
                return
            assert time.monotonic() < give_up_at, (self.socket / "log").read_text()
            time.sleep(0.05)

    def connect(self, database: str = "mimids") -> psycopg.Connection[Any]:
        """Open a connection that commits each statement, and waits for no standby."""
        import psycopg

        url = f"postgresql://mimids@/{database}?host={quote(str(self.socket))}"
        connection = psycopg.connect(url, autocommit=True)
        connection.execute("SET synchronous_commit = local")
        return connection

    def answer(self, query: str) -> Any:
        """Return the only value of a query."""
        with self.connect() as connection:
            row = connection.execute(query.encode()).fetchone()
            return row and row[0]

    def kill(self) -> None:
        """Kill all processes of the server at once, as the end of its machine would."""
        assert self._process is not None
        pid = self._process.pid
        os.kill(pid, signal.SIGSTOP)  # it starts no other process
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (*map(int, children), pid):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self._process.wait()

    def promote(self) -> None:
        """Make a standby the primary; return once it takes writes."""
        self.run("pg_ctl", "promote", "-D", self.data, "-w")

    def stop(self) -> None:
        """End the server."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()


class Pair:
    """`first` is the primary; each of its commits waits for `second`."""

    def __init__(self, home: Path) -> None:
        self.first, self.second = Server(home, "first"), Server(home, "second")
        self.first.run(
            "initdb", "-D", self.first.data, "-U", "mimids", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"
        )
        self.first.start()
        with self.first.connect("postgres") as connection:
            connection.execute("CREATE DATABASE mimids")
        source = ("-h", self.first.socket, "-U", "mimids", "-D", self.second.data, "-R", "-c", "fast", "-N")
        self.second.run("pg_basebackup", *source)
        self.second.start(synchronous_standby_names="")  # when it is promoted, it has no standby
        while not self.first.answer("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"):
            time.sleep(0.05)
        with self.first.connect() as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'second'")
            connection.execute("SELECT pg_reload_conf()")
        while self.first.answer("SELECT sync_state FROM pg_stat_replication") != "sync":
            time.sleep(0.05)

    @property
    def url(self) -> str:
        """Return a URL that leads to the server that takes writes."""
        hosts = ",".join(quote(str(each.socket), safe="") for each in (self.first, self.second))
        return f"postgresql://mimids@/mimids?host={hosts}&target_session_attrs=read-write"


@contextmanager
def pair() -> Iterator[Pair]:
    """Run a pair for the block."""
    home = Path(tempfile.mkdtemp(prefix="mimids-pair-"))
    home.chmod(0o755)
    made: Pair | None = None
    try:
        made = Pair(home)
        yield made
    finally:
        if made is not None:
            made.first.stop()
            made.second.stop()
        shutil.rmtree(home, ignore_errors=True)
