"""`mimids serve` as a process: its output, its operator socket, its end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sqlite3
import ssl
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mimids.cli.certificates import new_authority, read_authority
from mimids.config import load
from tests.support.cli_runs import Ran, provider, run, serving, stop
from tests.support.other_user import NOBODY, needs_root, open_directory, run_as

pytestmark = pytest.mark.slow


class OverSocket(http.client.HTTPConnection):
    """HTTP over a Unix socket, as an account system uses it."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def ask(path: Path, command: str, body: object, *, media_type: str = "application/json") -> tuple[int, Any]:
    connection = OverSocket(path)
    try:
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", f"/v1/{command}", encoded, {"Content-Type": media_type})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    finally:
        connection.close()


def get(url: str, trust: Path | None, path: str, token: str = "") -> int:
    host, _, port = url.rpartition("/")[2].rpartition(":")
    if trust is None:
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
    else:
        context = ssl.create_default_context(cafile=trust)
        connection = http.client.HTTPSConnection(host, int(port), timeout=20, context=context)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def address(said: list[str], listener: str) -> str:
    return next(line.split()[-1] for line in said if line.strip().startswith(listener))


def test_a_development_provider_needs_nothing_and_answers_within_three_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    with serving("--dev", cwd=tmp_path) as (process, said):
        public = next(line.split()[1] for line in said if line.strip().startswith("public"))
        trust = tmp_path / "mimids-dev/ca.pem"
        assert get(public, trust, "/.well-known/mimi-ds") == 200
        took = time.monotonic() - began
        assert get("http://" + address(said, "operator").rpartition("/")[2], None, "/healthz") == 200
        # The commands that it suggests find this provider.
        token = run("user", "add", "alice", cwd=tmp_path).code or run(
            "device", "add", "alice", "1", "--json", cwd=tmp_path
        )
        assert not isinstance(token, int)
        assert get(address(said, "client"), trust, "/client/v1/me", token.json["token"]) == 200
        assert run("contact", "alice", "--json", cwd=tmp_path).json["provider"] == "localhost"
        again = run("serve", "--dev", cwd=tmp_path)
        assert again.code == 1
        assert "running" in again.err
        assert stop(process) == 0
    assert took < 10, "three seconds are the bar; a busy machine gets ten"


def test_ports_in_use_are_replaced_by_free_ones(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8443))
            taken.listen()
        except OSError:
            pass  # another process has the port, which is what the test needs
        with serving("--dev", cwd=tmp_path) as _:
            config = load(tmp_path / "mimids-dev/mimids.toml")
            assert config.listen.public.port != 8443
            assert get(config.listen.public_url, tmp_path / "mimids-dev/ca.pem", "/.well-known/mimi-ds") == 200


def test_commands_reach_the_server_by_its_socket_and_take_effect_at_once(tmp_path: Path) -> None:
    config = provider(tmp_path)
    with serving("--config", "mimids.toml", cwd=tmp_path) as (process, said):
        client, trust, path = address(said, "client"), tmp_path / "ca.pem", config.operator_socket
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ask(path, "user/add", {"name": "alice"}) == (200, {"user_id": "mimi://a.example/u/alice"})
        token = run("device", "add", "alice", "phone", "--json", cwd=tmp_path).json["token"]
        assert get(client, trust, "/client/v1/me", token) == 200
        assert (
            run("user", "add", "alice", cwd=tmp_path).err.splitlines()[1].strip().startswith("run `mimids user list`")
        )
        assert ask(path, "device/remove", {"user": "alice", "name": "phone"})[0] == 200
        assert get(client, trust, "/client/v1/me", token) == 401
        before = run("ohttp", "keys", "--json", cwd=tmp_path).json["keys"]
        assert run("ohttp", "rotate", "--json", cwd=tmp_path).json["key_id"] == before[-1]["key_id"] + 1
        log = (tmp_path / "serve.log").read_text()
        assert stop(process) == 0
    assert not path.exists()
    assert "alice" not in log
    assert token not in log
    assert run("user", "list", "--json", cwd=tmp_path).json["users"][0]["user_id"] == "mimi://a.example/u/alice"


def test_the_socket_answers_bad_input_with_a_problem(tmp_path: Path) -> None:
    config = provider(tmp_path)
    with serving("--config", "mimids.toml", cwd=tmp_path):
        path = config.operator_socket
        for command, body, media_type, status, problem in [
            ("user/add", b"{", "application/json", 400, "malformed"),
            ("user/add", [], "application/json", 400, "malformed"),
            ("user/add", {}, "application/json", 400, "malformed"),
            ("user/add", {"name": "a/b"}, "application/json", 400, "malformed"),
            ("user/add", {"name": "alice"}, "text/plain", 415, "unsupported-media-type"),
            ("user/remove", {"user": "bob"}, "application/json", 404, "not-found"),
            ("user/frobnicate", {}, "application/json", 404, "not-found"),
        ]:
            answered, members = ask(path, command, body, media_type=media_type)
            assert (answered, members["type"]) == (status, f"urn:mimids:problem:{problem}")
        assert ask(path, "user/list", {}) == (200, {"users": []})


def test_a_missing_database_is_created_and_an_address_in_use_is_refused(tmp_path: Path) -> None:
    config = provider(tmp_path)
    config.database.unlink()
    with serving("--config", "mimids.toml", cwd=tmp_path):
        second = run("serve", "--config", "mimids.toml", cwd=tmp_path)
        assert second.code == 1
        assert "process" in second.err
    assert config.database.exists()
    assert run("serve", "--dev", "--config", "mimids.toml", cwd=tmp_path).code == 2


def assert_refused(ran: Ran, what: str, fix: str) -> None:
    """Check that a server did not start, with a line that says what happened, and one that says what to do."""
    assert ran.code == 1, ran
    first, second = ran.err.splitlines()[:2]
    assert first.startswith("mimids: "), ran.err
    assert what in first
    assert second.startswith("  "), ran.err
    assert fix in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("listener", ["public", "client", "operator"])
def test_a_port_that_is_taken_is_refused_in_the_words_of_check(tmp_path: Path, listener: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        provider(tmp_path, **{listener: address})
        refused = run("serve", "--config", "mimids.toml", cwd=tmp_path)
        what, fix = f"cannot listen on {address} ({listener}): Address already in use", "stop the process"
        assert_refused(refused, what, fix)
        checked = run("check", "--config", "mimids.toml", cwd=tmp_path)
        assert refused.err.splitlines()[0].removeprefix("mimids: ") in checked.out
        assert refused.err.splitlines()[1].strip() in checked.out


@needs_root
def test_port_443_needs_a_privilege_and_the_server_says_which() -> None:
    with open_directory() as directory:
        provider(directory / "a", public="127.0.0.1:443")
        for each in (directory / "a", *(directory / "a").rglob("*")):
            os.chown(each, NOBODY, NOBODY)
        refused = run_as(NOBODY, "serve", "--config", "a/mimids.toml", cwd=directory)
        assert_refused(refused, "cannot listen on 127.0.0.1:443 (public)", "CAP_NET_BIND_SERVICE")


def test_a_certificate_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    config = provider(tmp_path)
    whole = config.tls.certificate.read_text()
    new_authority("other").write(tmp_path / "other.pem", tmp_path / "other.key")
    for text in ("nothing", "", whole[:200], (tmp_path / "other.pem").read_text()):
        config.tls.certificate.write_text(text)
        refused = run("serve", "--config", "mimids.toml", cwd=tmp_path)
        assert_refused(refused, str(config.tls.certificate), "set the files in [tls]")
    config.tls.certificate.write_text(whole)
    for file in (config.tls.private_key, config.tls.certificate):
        file.write_text("nothing")
        refused = run("serve", "--config", "mimids.toml", cwd=tmp_path)
        assert_refused(refused, f"mimids: {file}", "set the files in [tls]")
        file.unlink()
        refused = run("serve", "--config", "mimids.toml", cwd=tmp_path)
        assert_refused(refused, f"mimids: {file}: No such file", "set the files in [tls]")
        config.tls.private_key.write_text("nothing")


def test_a_database_of_another_version_is_refused_in_two_lines(tmp_path: Path) -> None:
    config = provider(tmp_path)
    for change, what, fix in [
        ("INSERT INTO schema_version VALUES (99, 'x', zeroblob(32), 0)", "has schema version 99", "newer mimids"),
        ("DELETE FROM schema_version WHERE version > 12", "", "run `mimids migrate`"),
        ("UPDATE schema_version SET digest = zeroblob(32) WHERE version = 1", "differs from", "restore a backup"),
        ("DROP TABLE schema_version", "not a database of mimids", "move the file away"),
    ]:
        with closing(sqlite3.connect(config.database)) as connection, connection:
            connection.execute(change)
        for command in ("serve", "migrate") if what else ("serve",):
            assert_refused(run(command, "--config", "mimids.toml", cwd=tmp_path), what, fix)
        for command in ("user", "status"):
            arguments = (command, "list") if command == "user" else (command,)
            assert_refused(run(*arguments, "--config", "mimids.toml", cwd=tmp_path), what, fix)


def wait_logged(log: Path, *parts: str) -> str:
    """Wait for a line of a log that has all of these parts; return it."""
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at:
        for line in log.read_text().splitlines():
            if all(part in line for part in parts):
                return line
        time.sleep(0.05)
    raise AssertionError(f"no line with {parts} in:\n{log.read_text()}")


def test_a_server_warns_at_its_start_of_what_check_would_find(tmp_path: Path) -> None:
    config = provider(tmp_path, allow=("b.example", "c.example"))
    authority = read_authority(tmp_path / "ca.pem", tmp_path / "ca.key")
    config.tls.certificate.unlink()
    config.tls.private_key.unlink()
    authority.issue(["other.example"], days=3).write(config.tls.certificate, config.tls.private_key)
    config.tls.private_key.chmod(0o644)
    future = int((time.time() + 3600) * 1000)
    with closing(sqlite3.connect(config.database)) as connection, connection:
        connection.execute("INSERT INTO users (user_id, created_at) VALUES (?, ?)", (b"mimi://a.example/u/x", future))
    with serving("--config", "mimids.toml", cwd=tmp_path):
        log = tmp_path / "serve.log"
        found = "warning  the check found a fault"
        wait_logged(log, found, "check=certificate", "is for other.example, not for a.example", "fix=")
        wait_logged(log, found, "check=certificate", "expires on")
        wait_logged(log, found, "check=certificate", "other users of this machine can read")
        wait_logged(log, found, "check=trust", "b.example, c.example")
        wait_logged(log, found, "check=clock", "in the future")


def test_a_healthy_server_warns_of_nothing(tmp_path: Path) -> None:
    provider(tmp_path)
    with serving("--config", "mimids.toml", cwd=tmp_path) as (process, _):
        process.send_signal(signal.SIGHUP)  # what it finds then, too, is logged before the next reload
        wait_logged(tmp_path / "serve.log", "configuration reloaded")
        process.send_signal(signal.SIGHUP)
        wait_logged(tmp_path / "serve.log", "configuration reloaded")
        assert stop(process) == 0
    assert " warning " not in (tmp_path / "serve.log").read_text()
