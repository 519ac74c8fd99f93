"""`mimids serve` as a process: its output, its operator socket, its end."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from mimids.config import load
from tests.support.cli_runs import provider, run, serving, stop

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
