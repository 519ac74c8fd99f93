"""The handle of a provider in a test: to use it, to read its database, and to inject faults."""

from __future__ import annotations

import difflib
import http.client
import signal
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from mimids.cli import running
from mimids.cli.refusals import CommandRefused
from mimids.client import Contact
from mimids.config import Config
from mimids.ds.commands import COMMANDS, command_named
from mimids.store.engine.access import read_here
from mimids.testing.control import Json, NotAnswering
from mimids.testing.devices import DeviceAccount, DeviceThread
from mimids.testing.session import Session
from mimids.testing.starting import START_SECONDS, Process
from mimids.wire.ids import PartitionKey

STOP_SECONDS: Final = 30
LOG_TAIL_LINES: Final = 30

Row = tuple[Any, ...]
Point = Literal["handling", "answering", "calling", "answered"]


class ProviderFailed(Exception):
    """A provider's process ended or does not answer. The message contains the end of its log."""


class ProviderClock:
    """The clock of a provider, moved by the test. At first it shows the machine's time."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._offset = 0  # milliseconds
        self._stopped_at: int | None = None  # milliseconds since the epoch

    @property
    def state(self) -> list[int | None]:
        """The clock's offset and the time at which it is stopped, in milliseconds, as the process gets them."""
        return [self._offset, self._stopped_at]

    def advance(self, seconds: float) -> None:
        """Move the clock forward at once, whether it runs or is stopped; tasks whose time has come wake."""
        milliseconds = int(seconds * 1000)
        if self._stopped_at is None:
            self._offset += milliseconds
        else:
            self._stopped_at += milliseconds
        self._update()

    def stop(self, at: datetime) -> None:
        """Stop the clock at a moment; `advance` still moves it."""
        self._stopped_at = int(at.timestamp() * 1000)
        self._update()

    def reset(self) -> None:
        """Show the machine's time again."""
        self._offset, self._stopped_at = 0, None
        self._update()

    def _update(self) -> None:
        self._provider.control({"clock": self.state})


@attrs.define(eq=False)
class Provider:
    """One provider, made by a `Federation`. Methods block until they are done; any thread may call them."""

    name: str
    directory: Path
    config: Config = attrs.field(repr=False)
    ca_file: Path
    clock: ProviderClock = attrs.field(init=False, repr=False)
    _session: Session = attrs.field(repr=False)
    _device_thread: DeviceThread = attrs.field(repr=False)
    _process: Process | None = attrs.field(default=None, repr=False)
    _faults: list[Json] = attrs.field(factory=list, repr=False)

    def __attrs_post_init__(self) -> None:
        self.clock = ProviderClock(self)

    # --- addresses and files --------------------------------------------------------------------------------------

    @property
    def public_url(self) -> str:
        """The URL for other providers, without a link in between."""
        return f"https://{self.config.listen.public}"

    @property
    def client_url(self) -> str:
        """The URL for devices."""
        return f"{'http' if self.config.listen.client_is_plain else 'https'}://{self.config.listen.client}"

    @property
    def operator_url(self) -> str:
        """The URL for the operator."""
        return f"http://{self.config.listen.operator}"

    @property
    def config_file(self) -> Path:
        """The configuration file; `mimids --config FILE ...` works with it too."""
        return self.directory / "mimids.toml"

    @property
    def data_dir(self) -> Path:
        """The data directory."""
        return self.config.data_dir

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.config.database

    @property
    def log_file(self) -> Path:
        """The file with the output of its process."""
        return self.directory / "log"

    @property
    def log(self) -> str:
        """The log so far, including earlier runs."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def pid(self) -> int | None:
        """The process identifier; None before the first start, and after the process is known to have ended."""
        return None if self._process is None else self._process.pid

    # --- commands, users and devices ------------------------------------------------------------------------------

    def command(self, name: str, /, **arguments: object) -> Json:
        """Run an operator command, such as `user list`, and return what it prints with `--json`.

        Works whether the provider runs or not. Raises `cli.refusals.CommandRefused` if the command is refused.
        """
        try:
            command = command_named(name)
        except KeyError:
            near = difflib.get_close_matches(name, [each.name for each in COMMANDS], n=1, cutoff=0)[0]
            fix = f"did you mean `{near}`? docs/operator-socket.md has them all"
            raise CommandRefused(f"there is no command `{name}`", fix) from None
        return running.run(self.config, command, arguments)

    def add_user(self, user: str) -> str:
        """Add a user; return the user id."""
        return str(self.command("user add", name=user)["user_id"])

    def add_device(self, user: str, name: str = "phone") -> DeviceAccount:
        """Add a device, and also its user if there is no user of that name."""
        user_id = self.user_id(user)
        known = {each["user_id"] for each in self.command("user list")["users"]}
        if user_id not in known:
            self.add_user(user)
        token = self.command("device add", user=user, name=name)["token"]
        return DeviceAccount(user_id, name, token, self.client_url, self.ca_file, self._device_thread)

    def user_id(self, user: str) -> str:
        """Return the user id of a local name."""
        return f"mimi://{self.name}/u/{user}"

    def issue_token(self, user: str, scheme: str = "unique", **terms: object) -> str:
        """Issue a bearer token for a user's KeyPackages; return it in base64url."""
        return str(self.command("token issue", user=user, scheme=scheme, **terms)["bearer_token"])

    def contact(self, user: str) -> Contact:
        """Return a contact card of a user, with a new bearer token."""
        return Contact.from_json(self.command("contact", user=user))

    # --- data -----------------------------------------------------------------------------------------------------

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run a read-only query on the database, whether the provider runs or not; return the rows."""
        with read_here(self.config.place) as tx:
            return tx.all(sql, tuple(parameters))

    def stored(self, key: PartitionKey) -> list[bytes]:
        """Return the stored messages of a partition in order, as encoded MLSMessages."""
        rows = self.read(
            "SELECT m.body FROM messages m JOIN partitions p ON p.id = m.partition"
            " WHERE p.masked_key IN (?, ?, ?) ORDER BY m.counter",
            key.masks(),
        )
        return [row[0] for row in rows]

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name and labels, as in the Prometheus text."""
        connection = http.client.HTTPConnection(str(self.config.listen.operator), timeout=STOP_SECONDS)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def files(self) -> dict[Path, bytes]:
        """Return all files that the provider wrote (database, write-ahead log, log) with their contents."""
        paths = [self.log_file, *self.data_dir.rglob("*")]
        return {path: path.read_bytes() for path in paths if path.is_file()}

    # --- process --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process and wait until it serves; raise `ProviderFailed` if it does not."""
        self.begin()
        self.wait_ready()

    def begin(self) -> None:
        """Start the process without waiting; `wait_ready` waits for it."""
        if self.is_running():
            raise ProviderFailed(f"{self.name} runs already")
        self.close()
        start = {"config": str(self.config_file), "clock": self.clock.state, "faults": self._faults}
        self._process = self._session.start({"provider": start}, self.log_file)

    def wait_ready(self) -> None:
        """Wait until it serves; raise `ProviderFailed` if it does not."""
        process = self._running()
        try:
            ready = process.control.wait_message(START_SECONDS)
        except NotAnswering as error:
            raise self._failed(f"ended ({process.wait(1)}) before it served") from error
        if ready is None:
            raise self._failed(f"does not serve within {START_SECONDS} s")

    def kill(self) -> None:
        """End the process by SIGKILL."""
        process = self._running()
        process.signal(signal.SIGKILL)
        self._wait_end(process)

    def terminate(self, *, seconds: float = STOP_SECONDS) -> int:
        """End the process by SIGTERM and return its exit code; raise `ProviderFailed` if it does not end in time."""
        process = self._running()
        process.signal(signal.SIGTERM)
        return self._wait_end(process, seconds)

    def wait_ended(self, *, seconds: float = STOP_SECONDS) -> int:
        """Wait until the process ends and return its exit code: the negative number of the signal that killed it."""
        return self._wait_end(self._running(), seconds)

    def restart(self) -> None:
        """Start again with the same ports and data; terminate the running process first."""
        if self.is_running():
            self.terminate()
        self.start()

    def stop(self) -> None:
        """Freeze the process (SIGSTOP): its connections stay open, but nothing answers."""
        self._running().signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Continue a frozen process (SIGCONT)."""
        self._running().signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self._running().signal(number)

    def is_running(self) -> bool:
        """Tell whether the process runs."""
        return self._process is not None and self._process.wait(0) is None

    # --- faults ---------------------------------------------------------------------------------------------------

    def crash(self, job: str) -> None:
        """Raise an exception in one of the jobs of `mimids.app.JOBS`, by name."""
        self.control({"crash": job})

    def die_at(self, point: Point, path: str, *, skip: int = 0) -> None:
        """Kill the process at a point of a request between providers, for a path such as `/ds/v1/push`.

        A provider that is called dies before `handling` or before `answering` the request. A provider that calls dies
        before `calling`, or once the request is `answered`. The first `skip` requests pass. The next start ends the
        fault.
        """
        self.control({"faults": [*self._faults, {"do": "die", "point": point, "path": path, "skip": skip}]})

    def put_faults(self, caller: str | None, faults: Sequence[Mapping[str, Any]]) -> None:
        """Replace the faults of requests from one caller (None: from any caller); they outlast a restart."""
        others = [fault for fault in self._faults if fault["caller"] != caller]
        self._faults = [*others, *({**fault, "caller": caller} for fault in faults)]
        if self.is_running():
            self.control({"faults": self._faults})

    def answer(self, status: int, *, retry_after: int | None = None) -> None:
        """Answer every request to the public listener with this status, until `restore`."""
        self.put_faults(None, [{"do": "answer", "status": status, "retry_after": retry_after}])

    def garbage(self) -> None:
        """Answer every request to the public listener with 200 and random octets, until `restore`."""
        self.put_faults(None, [{"do": "garbage"}])

    def restore(self) -> None:
        """End the faults of `answer` and `garbage`."""
        self.put_faults(None, [])

    def control(self, request: Json) -> None:
        """Send a control request to the process, if one was started; raise `ProviderFailed` if it does not answer."""
        if self._process is None:
            return
        try:
            self._process.control.ask(request)
        except NotAnswering as error:
            raise self._failed("does not answer the test") from error

    def close(self) -> None:
        """End the process in whatever state it is."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _running(self) -> Process:
        if self._process is None:
            raise ProviderFailed(f"{self.name} does not run; call start() first")
        return self._process

    def _wait_end(self, process: Process, seconds: float = STOP_SECONDS) -> int:
        code = process.wait(seconds)
        if code is None:
            raise self._failed(f"does not end within {seconds} s")
        process.close()
        self._process = None
        return code

    def _failed(self, why: str) -> ProviderFailed:
        tail = "\n".join(self.log.splitlines()[-LOG_TAIL_LINES:])
        return ProviderFailed(f"{self.name} {why}; its log ends with\n{tail}")
