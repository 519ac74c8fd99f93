"""`mimids move`, as an operator runs it: from a file to PostgreSQL and back, also if it is killed on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mimids.client import open_device
from mimids.config import Config
from mimids.store import move as moving
from mimids.store.damage import why_not_served
from mimids.store.engine import access
from mimids.store.engine.lock import hold
from mimids.testing import PretendGroup, content_of
from tests.support import postgresql
from tests.support.cli_runs import ENVIRONMENT, invoke, provider, serving

pytestmark = [
    pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing())),
    pytest.mark.sqlite_file("a move has a file at one end"),
]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The configuration of a provider in a file."""
    return provider(tmp_path)


def home_of(config: Config) -> Path:
    return config.tls.certificate.parent


def name_database(config: Config, url: str | None) -> None:
    """Let the configuration file name a database in PostgreSQL, or the file in data_dir."""
    file = home_of(config) / "mimids.toml"
    kept = file.read_text().partition("\n[store]")[0]
    file.write_text(kept if url is None else f'{kept}\n[store]\nurl = "{url}"\n')


async def send_and_read(config: Config, token: str, group: PretendGroup, text: bytes) -> list[bytes]:
    """Send a message through a server, and return all messages that a device gets then."""
    with serving(cwd=home_of(config)) as (_, said):
        (client,) = [line.split()[1] for line in said if line.startswith("  client ")]
        async with open_device(client, token, trust=home_of(config) / "ca.pem") as device:
            if text == b"first":
                await device.create_group(group.creation())
            await device.send(group.hub, group.message(text))
            return [content_of(message) async for message in device.receive_all(group.hub, group.key)]


@pytest.mark.slow  # three servers are started, and one command is killed
async def test_devices_go_on_after_a_move_that_was_killed_and_after_the_way_back(config: Config) -> None:
    invoke(config, "user", "add", "alice")
    token = json.loads(invoke(config, "device", "add", "alice", "phone", "--json").stdout)["token"]
    group, url = PretendGroup.at(config.provider), postgresql.new_database()
    assert await send_and_read(config, token, group, b"first") == [b"first"]

    kill_in_the_middle(config, url)
    assert "is being moved to" in invoke(config, "user", "add", "bob").stderr
    moved = invoke(config, "move", "--to", url)
    assert moved.exit_code == 0, moved.stderr
    assert f'[store] url = "{url}"' in moved.stdout
    assert "was moved to" in invoke(config, "user", "add", "bob").stderr
    refusal = why_not_served(config.place)
    assert refusal is not None
    assert "was moved to" in refusal.what

    name_database(config, url)
    assert await send_and_read(config, token, group, b"second") == [b"first", b"second"]
    assert "not empty" in invoke(config, "move", "--to", "sqlite").stderr
    for file in config.data_dir.glob("mimids.sqlite3*"):
        file.rename(home_of(config) / file.name)
    assert json.loads(invoke(config, "move", "--to", "sqlite", "--json").stdout)["to"] == str(config.database)

    name_database(config, None)
    assert await send_and_read(config, token, group, b"third") == [b"first", b"second", b"third"]


def kill_in_the_middle(config: Config, url: str) -> None:
    """Begin a move and kill it while it writes the messages."""
    access.migrate(url)
    for beside in postgresql.connections(url):
        with beside.transaction():
            beside.execute("LOCK TABLE messages IN EXCLUSIVE MODE")
            command = [sys.executable, "-m", "mimids", "move", "--to", url]
            process = subprocess.Popen(command, cwd=home_of(config), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
            waiting = "SELECT 1 FROM pg_locks WHERE relation = 'messages'::regclass AND NOT granted"
            while beside.execute(waiting).fetchone() is None:
                assert process.poll() is None
                time.sleep(0.02)
            process.kill()
            process.wait()
    name_database(config, url)
    assert "has not ended" in invoke(config, "user", "add", "bob").stderr
    name_database(config, None)


def test_a_move_that_was_begun_can_be_given_up(config: Config) -> None:
    invoke(config, "user", "add", "alice")
    url = postgresql.new_database()
    assert "no move" in invoke(config, "move", "--cancel").stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving, "_compare", interrupt)
        assert isinstance(invoke(config, "move", "--to", url).exception, KeyboardInterrupt | SystemExit)
    findings = json.loads(invoke(config, "check", "--no-peers", "--json").stdout)["findings"]
    (found,) = [each for each in findings if each["check"] == "database" and each["state"] == "wrong"]
    assert "--cancel" in found["fix"]
    assert json.loads(invoke(config, "move", "--cancel", "--json").stdout)["cancelled"]
    assert invoke(config, "user", "add", "bob").exit_code == 0


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "either --to or --cancel"),
        (("--to", "sqlite"), "of the same kind"),
        (("--to", "postgresql://u:secret@h/d"), "without a password"),
        (("--to", "other/mimids.sqlite3"), "is not a database"),
    ],
)
def test_what_cannot_be_a_target_is_refused(config: Config, arguments: tuple[str, ...], said: str) -> None:
    refused = invoke(config, "move", *arguments)
    assert refused.exit_code != 0
    assert said in refused.stderr


def test_a_running_server_is_not_moved(config: Config) -> None:
    with hold(config.data_dir):
        refused = invoke(config, "move", "--to", postgresql.new_database())
    assert "running server" in refused.stderr
    assert invoke(config, "user", "add", "alice").exit_code == 0
