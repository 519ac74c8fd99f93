"""Run one command of the table: in the running server, or in this process if no server runs.

A command that writes holds the lock of the data directory; in PostgreSQL it needs none. A command that only reads needs
no lock: it works beside a running server, and is sent to the server only if the server knows more than the database.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, Final, cast

from mimids.cli.owners import require_owner
from mimids.cli.places import require_database, socket_fits
from mimids.cli.refusals import CommandRefused, or_refused
from mimids.config import Config
from mimids.ds.commands import Command, Context, JsonObject
from mimids.errors import MimiError, every_error
from mimids.http.header_names import SHELL_AGENT
from mimids.store.engine import lock
from mimids.store.engine.access import read_here, write_here
from mimids.values import Milliseconds

SERVER_SECONDS: Final = 30  # how long a running server may take to answer


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=SERVER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SERVER_SECONDS)
        self.sock.connect(str(self._path))


def run(config: Config, command: Command, given: Mapping[str, object]) -> JsonObject:
    """Run the command and return its answer, once its writes are durable; raise `CommandRefused` if it is refused."""
    require_database(config)
    if command.writes or command.reads_running or command.in_server is not None:
        answer = _ask_server(config.operator_socket, command, given)
        if answer is not None:
            return answer
    try:
        return cast("JsonObject", or_refused(lambda: _run_here(config, command, given)))
    except CommandRefused as refused:
        if isinstance(refused.__cause__, MimiError):
            raise _refusal(command, type(refused.__cause__), refused.message) from refused.__cause__
        raise


def _run_here(config: Config, command: Command, given: Mapping[str, object]) -> JsonObject:
    context = Context.of(config, Milliseconds(time.time_ns() // 1_000_000))
    given = command.given(given)
    if not command.writes:
        with read_here(config.place) as tx:
            return command.run(tx, context, given)
    if isinstance(config.place, Path):
        require_owner(config)
    with lock.hold(config.data_dir) if isinstance(config.place, Path) else nullcontext():
        answer = write_here(config.place, command.refusable(context, given))
    if isinstance(answer, MimiError):
        raise answer
    return answer


def _ask_server(path: Path, command: Command, given: Mapping[str, object]) -> JsonObject | None:
    """Return the answer of the server that listens at `path`, or None if no server does.

    Raises `CommandRefused` if the server cannot be reached, or refuses the command.
    """
    if not socket_fits(path):
        return None
    with closing(_UnixConnection(path)) as connection:
        try:
            connection.connect()
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            fix = "run the command as the user that the server runs as"
            raise CommandRefused(f"cannot connect to {path}: {error.strerror or error}", fix) from error
        try:
            headers = {"Content-Type": "application/json", "User-Agent": SHELL_AGENT}
            connection.request("POST", command.path, json.dumps(given), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CommandRefused(
                f"the server at {path} does not answer: {error}", "look into the server's log"
            ) from error
    if response.status == 200:
        return cast("JsonObject", answer)
    raise _problem(command, answer)


def _problem(command: Command, problem: Mapping[str, Any]) -> CommandRefused:
    kinds = {kind.problem_type(): kind for kind in every_error()}
    kind = kinds.get(problem.get("type", ""), MimiError)
    return _refusal(command, kind, problem.get("detail") or problem.get("title") or "refused")


def _refusal(command: Command, kind: type[MimiError], why: str) -> CommandRefused:
    return CommandRefused(why, command.hints.get(kind))
