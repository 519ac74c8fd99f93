"""A provider in a test: the handle by which the test uses it, reaches into it, and harms it."""

from __future__ import annotations

import http.client
import signal
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from mimids.cli import running
from mimids.client import Contact
from mimids.config import Config
from mimids.ds.commands import command_named
from mimids.store.engine.sqlite import connect_to_read
from mimids.testing.control import Json, NotAnswering
from mimids.testing.devices import Asking, DeviceAccount
from mimids.testing.session import Session
from mimids.testing.starting import START_SECONDS, Process
from mimids.wire.ids import PartitionKey

STOP_SECONDS: Final = 30
LOG_TAIL_LINES: Final = 30

Row = tuple[Any, ...]
Point = Literal["handling", "answering", "calling", "answered"]


class ProviderFailed(Exception):
    """A provider's process ended, or does not answer; the end of its log is part of the message."""


class Clock:
    """A provider's clock, seen from the test. At first it is the machine's."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._offset = 0  # milliseconds
        self._stopped_at: int | None = None  # milliseconds since the epoch

    @property
    def state(self) -> list[int | None]:
        """Return what the process is told: what is added to the machine's clock, and where it stands."""
        return [self._offset, self._stopped_at]

    def advance(self, seconds: float) -> None:
        """Move on at once, whether it goes or stands; what waited for that time happens now."""
        milliseconds = int(seconds * 1000)
        if self._stopped_at is None:
            self._offset += milliseconds
        else:
            self._stopped_at += milliseconds
        self._tell()

    def stop(self, at: datetime) -> None:
        """Let it stand at a moment, until it is moved."""
        self._stopped_at = int(at.timestamp() * 1000)
        self._tell()

    def reset(self) -> None:
        """Let it be the machine's again."""
        self._offset, self._stopped_at = 0, None
        self._tell()

    def _tell(self) -> None:
        self._provider.tell({"clock": self.state})


@attrs.define(eq=False)
class Provider:
    """One provider, made by a `Federation`. Calls are short and wait for their answer; any thread may make them."""

    name: str
    directory: Path
    config: Config = attrs.field(repr=False)
    ca_file: Path
    clock: Clock = attrs.field(init=False, repr=False)
    _session: Session = attrs.field(repr=False)
    _asking: Asking = attrs.field(repr=False)
    _process: Process | None = attrs.field(default=None, repr=False)
    _faults: list[Json] = attrs.field(factory=list, repr=False)

    def __attrs_post_init__(self) -> None:
        self.clock = Clock(self)

    # --- where it is ----------------------------------------------------------------------------------------------

    @property
    def public_url(self) -> str:
        """Where other providers reach it, if no link lies between."""
        return f"https://{self.config.listen.public}"

    @property
    def client_url(self) -> str:
        """Where its users' devices reach it."""
        return f"https://{self.config.listen.client}"

    @property
    def operator_url(self) -> str:
        """Where its operator reaches it."""
        return f"http://{self.config.listen.operator}"

    @property
    def config_file(self) -> Path:
        """The file that it serves by; `mimids --config FILE ...` works on it too."""
        return self.directory / "mimids.toml"

    @property
    def data_dir(self) -> Path:
        """The directory of everything that it stores."""
        return self.config.data_dir

    @property
    def database(self) -> Path:
        """Its SQLite file."""
        return self.config.database

    @property
    def log_file(self) -> Path:
        """The file that its process writes to."""
        return self.directory / "log"

    @property
    def log(self) -> str:
        """All that it has logged so far, over all its restarts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def pid(self) -> int | None:
        """Its process, None if none was started or it is known to have ended."""
        return None if self._process is None else self._process.pid

    # --- who is there ---------------------------------------------------------------------------------------------

    def command(self, name: str, /, **arguments: object) -> Json:
        """Run a command of the operator's, such as `user list`, and return what it prints with `--json`.

        While the provider runs it is asked over its socket; else the command does it. Raises `cli.refusals.Refused`.
        """
        return running.run(self.config, command_named(name), arguments)

    def add_user(self, user: str) -> str:
        """Add a user; return the user id."""
        return str(self.command("user add", name=user)["user_id"])

    def add_device(self, user: str, name: str = "phone") -> DeviceAccount:
        """Give a user a device; a user who is not there yet is added."""
        user_id = self.user_id(user)
        known = {each["user_id"] for each in self.command("user list")["users"]}
        if user_id not in known:
            self.add_user(user)
        token = self.command("device add", user=user, name=name)["token"]
        return DeviceAccount(user_id, name, token, self.client_url, self.ca_file, self._asking)

    def user_id(self, user: str) -> str:
        """Return the user id of a local name."""
        return f"mimi://{self.name}/u/{user}"

    def issue_token(self, user: str, scheme: str = "unique", **terms: object) -> str:
        """Issue a bearer token for a user's KeyPackages; return it in base64url."""
        return str(self.command("token issue", user=user, scheme=scheme, **terms)["bearer_token"])

    def contact(self, user: str) -> Contact:
        """Return a user's contact card, with a bearer token of its own."""
        return Contact.from_json(self.command("contact", user=user))

    # --- what it holds --------------------------------------------------------------------------------------------

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Return the rows of a query on its database, whether it runs or not; nothing can be written."""
        with closing(connect_to_read(self.database)) as connection:
            return connection.execute(sql, tuple(parameters)).fetchall()

    def stored(self, key: PartitionKey) -> list[bytes]:
        """Return the messages that it holds of a partition, in order, as MLSMessages."""
        rows = self.read(
            "SELECT m.body FROM messages m JOIN partitions p ON p.id = m.partition"
            " WHERE p.masked_key IN (?, ?, ?) ORDER BY m.counter",
            key.masks(),
        )
        return [row[0] for row in rows]

    def metrics(self) -> dict[str, float]:
        """Return its metrics, by name with labels, as they stand in the Prometheus text."""
        connection = http.client.HTTPConnection(str(self.config.listen.operator), timeout=STOP_SECONDS)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def files(self) -> dict[Path, bytes]:
        """Return every file that it wrote, with its contents: database, write-ahead log, log."""
        paths = [self.log_file, *self.data_dir.rglob("*")]
        return {path: path.read_bytes() for path in paths if path.is_file()}

    # --- its process ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start its process, and wait until it serves; raise `ProviderFailed`."""
        self.begin()
        self.wait_ready()

    def begin(self) -> None:
        """Start its process, and do not wait; `wait_ready` is to follow."""
        if self.is_running():
            raise ProviderFailed(f"{self.name} runs already")
        self.close()
        start = {"config": str(self.config_file), "clock": self.clock.state, "faults": self._faults}
        self._process = self._session.start({"provider": start}, self.log_file)

    def wait_ready(self) -> None:
        """Wait until it serves; raise `ProviderFailed`."""
        process = self._running()
        try:
            ready = process.control.hear(START_SECONDS)
        except NotAnswering as error:
            raise self._failed(f"ended ({process.wait(1)}) before it served") from error
        if ready is None:
            raise self._failed("does not begin to serve")

    def kill(self) -> None:
        """End it as kill -9 does."""
        process = self._running()
        process.signal(signal.SIGKILL)
        self._end(process)

    def terminate(self, *, seconds: float = STOP_SECONDS) -> int:
        """End it as `systemctl stop` does, and return its exit code; raise `ProviderFailed` if it does not end."""
        process = self._running()
        process.signal(signal.SIGTERM)
        return self._end(process, seconds)

    def wait_ended(self, *, seconds: float = STOP_SECONDS) -> int:
        """Wait until it has ended by itself, and return its exit code (of a signal, its negative number)."""
        return self._end(self._running(), seconds)

    def restart(self) -> None:
        """Start it again on the same ports and data; what still runs is terminated first."""
        if self.is_running():
            self.terminate()
        self.start()

    def stop(self) -> None:
        """Freeze it where it stands (SIGSTOP): its connections stay, and nothing answers."""
        self._running().signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Let it go on."""
        self._running().signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        self._running().signal(number)

    def is_running(self) -> bool:
        """Tell whether its process has not ended."""
        return self._process is not None and self._process.wait(0) is None

    # --- harm -----------------------------------------------------------------------------------------------------

    def crash(self, job: str) -> None:
        """Raise an exception in one of its named jobs (`mimids.app.JOBS`)."""
        self.tell({"crash": job})

    def die_at(self, point: Point, path: str, *, skip: int = 0) -> None:
        """Let it kill itself at a point of a request between providers, such as `/ds/v1/push`.

        As callee before `handling` it or before `answering` it, as caller before `calling` or once it is `answered`;
        `skip` requests pass first. It is over with the next start.
        """
        self.tell({"faults": [*self._faults, {"do": "die", "point": point, "path": path, "skip": skip}]})

    def put_faults(self, caller: str | None, faults: Sequence[Mapping[str, Any]]) -> None:
        """Replace the faults of what one caller asks of it (None: of what anybody asks); also after a restart."""
        others = [fault for fault in self._faults if fault["caller"] != caller]
        self._faults = [*others, *({**fault, "caller": caller} for fault in faults)]
        if self.is_running():
            self.tell({"faults": self._faults})

    def answer(self, status: int, *, retry_after: int | None = None) -> None:
        """Answer every request to its public listener with this status, until `restore`."""
        self.put_faults(None, [{"do": "answer", "status": status, "retry_after": retry_after}])

    def garbage(self) -> None:
        """Answer every request to its public listener with 200 and octets that are no answer, until `restore`."""
        self.put_faults(None, [{"do": "garbage"}])

    def restore(self) -> None:
        """Answer as it should again."""
        self.put_faults(None, [])

    def tell(self, request: Json) -> None:
        """Tell its process something, if there is one; raise `ProviderFailed` if it does not listen."""
        if self._process is None:
            return
        try:
            self._process.control.ask(request)
        except NotAnswering as error:
            raise self._failed("does not answer the test") from error

    def close(self) -> None:
        """End its process, whatever state it is in."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def _running(self) -> Process:
        if self._process is None:
            raise ProviderFailed(f"{self.name} does not run")
        return self._process

    def _end(self, process: Process, seconds: float = STOP_SECONDS) -> int:
        code = process.wait(seconds)
        if code is None:
            raise self._failed(f"does not end within {seconds} s")
        process.close()
        self._process = None
        return code

    def _failed(self, why: str) -> ProviderFailed:
        tail = "\n".join(self.log.splitlines()[-LOG_TAIL_LINES:])
        return ProviderFailed(f"{self.name} {why}; its log ends with\n{tail}")
