"""The table of commands as `mimids NOUN VERB`: run here, on a real database."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from mimids.cli.main import main
from mimids.config import Config
from mimids.ds.commands import COMMANDS, ArgumentKind, Command, command_named
from mimids.errors import Malformed
from mimids.store.engine import lock
from mimids.store.engine.sqlite import write_here
from mimids.store.ohttp import put_setting
from tests.support.cli_runs import provider


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return provider(tmp_path)


def invoke(config: Config, *arguments: str) -> Result:
    path = config.tls.certificate.parent / "mimids.toml"
    return CliRunner().invoke(main, [*arguments, "--config", str(path)])


def answer(config: Config, *arguments: str) -> dict[str, Any]:
    result = invoke(config, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def shape(value: object) -> object:
    """Return the member names of a JSON value; of a list, those of its first item."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_row_of_the_table_describes_itself(command: Command) -> None:
    assert json.loads(command.answer)
    assert set(command.given(command.sample())) == {a.name for a in command.arguments if a.required}
    assert command.summary[0].isupper()
    assert command.summary.endswith(".")
    assert command.example.startswith(f"mimids {command.name}")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_its_example_is_a_command_line_that_is_understood(command: Command) -> None:
    _, *words = shlex.split(command.example)
    found: click.Command = main
    context = click.Context(main, **main.context_settings)
    while isinstance(found, click.Group):
        found = found.commands[words.pop(0)]
        context = click.Context(found, parent=context)
    found.parse_args(context, words)
    assert command.example in CliRunner().invoke(main, [*command.name.split(), "--help"]).stdout


def test_answers_contain_what_the_table_says(config: Config) -> None:
    said = {command.name: shape(json.loads(command.answer)) for command in COMMANDS}
    assert shape(answer(config, "user", "add", "alice")) == said["user add"]
    assert shape(answer(config, "user", "list")) == said["user list"]
    assert shape(answer(config, "device", "add", "alice", "phone")) == said["device add"]
    assert shape(answer(config, "device", "list", "alice")) == said["device list"]
    assert shape(answer(config, "token", "issue", "alice", "--scheme", "shared")) == said["token issue"]
    assert shape(answer(config, "token", "list", "alice")) == said["token list"]
    assert shape(answer(config, "token", "revoke", "alice", "1")) == said["token revoke"]
    assert shape(answer(config, "contact", "alice")) == said["contact"]
    assert shape(answer(config, "user", "suspend", "alice")) == said["user suspend"]
    assert shape(answer(config, "user", "resume", "alice")) == said["user resume"]
    assert shape(answer(config, "device", "rotate-token", "alice", "phone")) == said["device rotate-token"]
    shown, expected = answer(config, "user", "show", "alice"), json.loads(command_named("user show").answer)
    assert shape(shown) == shape(expected | {"groups": []})
    assert shape(answer(config, "ohttp", "rotate")) == said["ohttp rotate"]
    assert shape(answer(config, "ohttp", "keys")) == said["ohttp keys"]
    assert shape(answer(config, "device", "remove", "alice", "phone")) == said["device remove"]
    assert shape(answer(config, "user", "remove", "alice", "--yes")) == said["user remove"]


def test_many_users_are_added_together_or_none_of_them(config: Config) -> None:
    assert answer(config, "user", "add", "alice", "--and", "bob", "--and", "carol")["user_ids"] == [
        f"mimi://{config.provider}/u/{name}" for name in ("alice", "bob", "carol")
    ]
    for refused in ("bob", "a/b"):
        assert f"{refused}: " in invoke(config, "user", "add", "dave", "--and", refused).stderr
    assert len(answer(config, "user", "list")["users"]) == 3


def test_a_token_is_shown_once_and_stored_as_a_hash(config: Config) -> None:
    answer(config, "user", "add", "alice")
    token = answer(config, "device", "add", "alice", "phone")["token"]
    issued = answer(config, "token", "issue", "alice", "--scheme", "unique", "--expires", "90d", "--uses", "3")
    (listed,) = answer(config, "token", "list", "mimi://a.example/u/alice")["tokens"]
    assert (listed["uses_left"], listed["expires_at"] - listed["created_at"]) == (3, pytest.approx(90 * 864e5, abs=2e3))
    written = config.database.read_bytes()
    assert token.encode() not in written
    assert issued["bearer_token"].encode() not in written


def test_a_token_can_have_a_rate(config: Config) -> None:
    answer(config, "user", "add", "alice")
    command = ["token", "issue", "alice", "--scheme", "shared", "--rate-claims", "5"]
    assert "rate_claims and rate_seconds must be given together" in invoke(config, *command).stderr
    answer(config, *command, "--rate-seconds", "3600")
    (listed,) = answer(config, "token", "list", "alice")["tokens"]
    assert (listed["rate_claims"], listed["rate_seconds"]) == (5, 3600)


def test_a_contact_card_can_contain_a_token_that_was_issued_before(config: Config) -> None:
    answer(config, "user", "add", "alice")
    issued = answer(config, "token", "issue", "alice", "--scheme", "unique")
    card = answer(config, "contact", "alice", "--token", issued["bearer_token"])
    assert card["bearer_token"] == issued["bearer_token"]
    assert len(answer(config, "token", "list", "alice")["tokens"]) == 1
    answer(config, "token", "revoke", "alice", str(issued["id"]))
    refused = invoke(config, "contact", "alice", "--token", issued["bearer_token"])
    assert refused.exit_code == 1
    assert "no such token" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["user", "add", "alice"], "`mimids user list`"),
        (["user", "add", "al ice"], "a name has only letters"),
        (["user", "add", "al\udce9"], "expected UTF-8"),
        (["device", "list", "al\udce9"], "expected UTF-8"),
        (["user", "remove", "bob", "--yes"], "`mimids user list`"),
        (["device", "add", "bob", "phone"], "`mimids user list`"),
        (["device", "add", "alice", "phone"], "`mimids device list USER`"),
        (["device", "remove", "alice", "desk"], "`mimids device list USER`"),
        (["token", "revoke", "alice", "7"], "`mimids token list USER`"),
        (["token", "revoke", "alice", "9" * 20], "the number is too large"),
        (
            ["token", "issue", "alice", "--scheme", "shared", "--expires", "2020-01-01"],
            "expires_at must be in the future",
        ),
        (["group", "show", "nothing"], "`mimids group list`"),
        (["provider", "show", "z.example"], "`mimids provider list`"),
        (["console"], "`mimids serve`"),
    ],
)
def test_a_refused_command_exits_with_1_and_says_what_to_do(config: Config, arguments: list[str], says: str) -> None:
    answer(config, "user", "add", "alice")
    answer(config, "device", "add", "alice", "phone")
    refused = invoke(config, *arguments)
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert says in refused.stderr


def test_the_removal_of_a_user_is_confirmed_by_a_person_or_by_an_option(config: Config) -> None:
    path = str(config.tls.certificate.parent / "mimids.toml")
    remove = ["user", "remove", "alice", "--config", path]
    answer(config, "user", "add", "alice")
    for typed, says in (("", "--yes"), ("n\n", "nothing was done"), ("\n", "nothing was done")):
        refused = CliRunner().invoke(main, remove, input=typed)
        assert refused.exit_code == 1
        assert "Remove alice with all devices" in refused.stderr
        assert says in refused.stderr
    assert len(answer(config, "user", "list")["users"]) == 1
    agreed = CliRunner().invoke(main, [*remove, "--json"], input="y\n")
    assert json.loads(agreed.stdout) == {"user_id": "mimi://a.example/u/alice"}


def test_the_name_of_a_removed_user_is_given_again_only_on_demand(config: Config) -> None:
    answer(config, "user", "add", "alice")
    answer(config, "user", "remove", "alice", "--yes")
    for name in ("alice", "Alice"):
        refused = invoke(config, "user", "add", name)
        assert refused.exit_code == 1
        assert "--reuse" in refused.stderr
    answer(config, "user", "add", "alice", "--reuse")
    answer(config, "forget", "alice")
    assert invoke(config, "user", "add", "alice").exit_code == 1


def test_a_list_of_devices_shows_days_and_unknown_streams(config: Config) -> None:
    answer(config, "user", "add", "alice")
    answer(config, "device", "add", "alice", "phone")
    with closing(sqlite3.connect(config.database)) as connection, connection:
        connection.execute("UPDATE devices SET seen_on = 1764028800000")
    head, line = invoke(config, "device", "list", "alice").stdout.splitlines()
    assert dict(zip(head.split(), line.replace("Z ", "Z_").split(), strict=False))["device_id"] == "phone"
    assert " 2025-11-25 " in line
    assert line.split()[-7:] == ["-", "0", "0", "0", "0", "-", "no"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["user"],
        ["user", "add"],
        ["user", "add", "alice", "bob"],
        ["token", "issue", "alice"],
        ["token", "issue", "alice", "--scheme", "other"],
        ["token", "issue", "alice", "--scheme", "shared", "--expires", "soon"],
        ["token", "revoke", "alice", "first"],
        ["nothing"],
    ],
)
def test_wrong_arguments_exit_with_2(config: Config, arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_a_command_does_not_wait_long_for_the_lock(config: Config) -> None:
    with lock.hold(config.data_dir):
        refused = invoke(config, "user", "add", "alice")
    assert refused.exit_code == 1
    assert re.search(r"process \d+ writes", refused.stderr)
    assert invoke(config, "user", "list").stdout == "no users\n"


def test_a_missing_or_foreign_database_is_not_touched(config: Config) -> None:
    config.database.rename(config.data_dir / "elsewhere")
    assert "`mimids migrate` creates it" in invoke(config, "user", "list").stderr
    with closing(sqlite3.connect(config.database)) as connection:
        connection.execute("CREATE TABLE other (x)")
    refused = invoke(config, "user", "add", "alice")
    assert refused.exit_code == 1
    assert "not a database of mimids" in refused.stderr


def test_a_refused_command_writes_nothing(config: Config) -> None:
    def half(tx: Any, context: object) -> dict[str, object]:
        put_setting(tx, "half", b"done")
        raise Malformed("and no further")

    command = Command(name="half done", summary="Stop.", work=half, answer="{}", example="mimids half done")
    refusal = write_here(config.database, command.refusable(None, {}))  # type: ignore[arg-type]
    assert isinstance(refusal, Malformed)
    with closing(sqlite3.connect(config.database)) as connection:
        assert connection.execute("SELECT count(*) FROM settings").fetchone() == (0,)


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("user add", {}, "name is missing"),
        ("user add", {"users": []}, "name is missing"),
        ("user add", {"users": ["a", 7]}, "users: expected list of strings"),
        ("user add", {"users": "a"}, "users: expected list of strings"),
        ("user add", {"users": ["a", "b\0"]}, "without zero octets"),
        ("user add", {"users": ["a"] * 10_001}, "at most 10000"),
        ("user add", {"name": 7}, "name: expected string"),
        ("user add", {"name": "a\0b"}, "without zero octets"),
        ("user add", {"name": "a\ud800b"}, "expected UTF-8"),
        ("token revoke", {"user": "alice", "id": True}, "whole number"),
        ("token revoke", {"user": "alice", "id": 1 << 70}, "too large"),
        ("token issue", {"user": "alice", "scheme": "free"}, "one of shared, unique"),
    ],
)
def test_json_arguments_are_checked_for_their_kind(name: str, body: dict[str, object], says: str) -> None:
    with pytest.raises(Malformed, match=says):
        command_named(name).given(body)


def test_unknown_members_are_ignored_and_null_is_absent() -> None:
    given = command_named("token issue").given({"user": "a", "scheme": "shared", "uses": None, "colour": "red"})
    assert given == {"user": "a", "scheme": "shared"}


def test_every_kind_of_argument_can_be_given_in_a_shell() -> None:
    used = {argument.kind for command in COMMANDS for argument in command.arguments}
    assert used <= set(ArgumentKind)
