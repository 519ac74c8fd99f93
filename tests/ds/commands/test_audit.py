"""The audit table: every command that writes is in it, without secrets and without the names of removed users."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from mimids.cli import running as commands
from mimids.config import Config
from mimids.ds.commands import COMMANDS, ArgumentKind, Context, command_named
from mimids.errors import MimiError
from mimids.http.api.operator_socket import OPERATOR_SOCKET
from mimids.store import audit
from mimids.store.audit import AuditEntry
from mimids.store.engine.access import read_here, write_here
from mimids.testing.clock import MovableClock
from mimids.values import Milliseconds
from tests.support.cli_runs import invoke, provider
from tests.support.curious import octets_of
from tests.support.doubles import stopped_clock
from tests.support.inmemory import InMemory
from tests.support.provider import Authority, assembled, running

NOTES = {"label", "reason", "why", "outcome", "bearer_token"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return provider(tmp_path)


def run(config: Config, name: str, /, actor: str = "shell 7", now: int = 1000, **arguments: Any) -> Any:
    command = command_named(name)
    context = Context.of(config, Milliseconds(now), actor)
    answer = write_here(config.place, command.refusable(context, command.given(arguments)))
    if isinstance(answer, MimiError):
        raise answer
    return answer


def entries(config: Config) -> list[AuditEntry]:
    with read_here(config.place) as tx:
        return audit.newest(tx, 100)


def listed(config: Config, **arguments: Any) -> list[dict[str, Any]]:
    with read_here(config.place) as tx:
        command = command_named("audit")
        context = Context.of(config, Milliseconds(0), "shell 7")
        found: list[dict[str, Any]] = command.run(tx, context, command.given(arguments))["entries"]
        return found


def test_a_command_that_writes_is_recorded_with_its_actor_and_time(config: Config) -> None:
    run(config, "user add", actor="console 5f", now=1234, name="alice")
    (entry,) = listed(config)
    assert entry == {
        "id": entry["id"],
        "at": 1234,
        "actor": "console 5f",
        "command": "user add",
        "arguments": {"name": "mimi://a.example/u/alice"},
    }


def test_a_refused_command_and_one_that_reads_are_not_recorded(config: Config) -> None:
    run(config, "user add", name="alice")
    with pytest.raises(MimiError):
        run(config, "user add", name="alice")
    run(config, "user list")
    assert [each.command for each in entries(config)] == ["user add"]


def test_every_argument_that_is_a_note_or_a_token_is_secret() -> None:
    secret = {argument.name for command in COMMANDS for argument in command.arguments if argument.secret}
    free_text = {
        argument.name
        for command in COMMANDS
        for argument in command.arguments
        if argument.kind is ArgumentKind.TEXT
        and not (argument.choices or argument.secret or argument.named is not None)
    }
    assert secret >= NOTES
    public = {"group", "hub", "provider", "partition", "successor_group", "successor_hub"}
    assert free_text <= public, "declare it `secret` or `named`, or add it here"


def test_no_note_and_no_token_is_recorded(config: Config) -> None:
    run(config, "user add", name="alice")
    issued = run(config, "token issue", user="alice", scheme="unique", label="for bob", uses=3)
    run(config, "contact", user="alice", bearer_token=issued["bearer_token"])
    run(config, "ban add", subject="mimi://b.example/u/bob", reason="he is rude")
    found = [(each["command"], each["arguments"]) for each in listed(config)]
    alice = "mimi://a.example/u/alice"
    assert found[:3] == [
        ("ban add", {"subject": "mimi://b.example/u/bob"}),
        ("contact", {"user": alice}),
        ("token issue", {"user": alice, "scheme": "unique", "uses": 3}),
    ]


def test_nothing_recorded_names_a_removed_user(config: Config) -> None:
    run(config, "user add", users=["mallory", "bob"])
    run(config, "device add", user="mallory", name="mallorys-telephone")
    run(config, "device rotate-token", user="MALLORY", name="Mallorys-Telephone")
    run(config, "ban add", subject="mimi://a.example/u/mallory")
    run(config, "limit mute", user="mallory")
    run(config, "ban remove", subject="mallory")
    run(config, "limit unmute", user="mimi://a.example/u/mallory")
    before = [each["arguments"] for each in listed(config)]
    assert before[-1] == {"users": ["mimi://a.example/u/mallory", "mimi://a.example/u/bob"]}
    assert before[-2] == before[-3] == {"user": "mimi://a.example/u/mallory", "name": "mallorys-telephone"}
    run(config, "forget", user="mallory")
    assert b"mallory" not in octets_of(config.database)
    after = [each["arguments"] for each in listed(config)]
    assert after[-1] == {"users": ["removed user 1", "mimi://a.example/u/bob"]}
    assert after[-2] == {"user": "removed user 1", "name": "removed device 1"}
    assert after[0] == {"user": "removed user 1"}


def test_a_name_with_a_point_is_a_user_where_no_provider_can_be_meant(config: Config) -> None:
    run(config, "user add", name="mal.lory")
    run(config, "ban add", subject="mimi://a.example/u/nobody")
    run(config, "ban remove", subject="mimi://a.example/u/nobody")
    run(config, "limit mute", user="mal.lory")
    run(config, "limit unmute", user="mal.lory")
    run(config, "ban add", subject="c.example")
    run(config, "forget", user="mal.lory")
    assert b"mal.lory" not in octets_of(config.database)
    assert b"nobody" not in octets_of(config.database)
    found = [each["arguments"] for each in listed(config)]
    assert found[1] == {"subject": "c.example"}
    assert found[-2] == {"subject": "unknown user"}


def test_of_many_names_a_hundred_are_recorded(config: Config) -> None:
    run(config, "user add", users=[f"user{number}" for number in range(250)])
    (entry,) = listed(config)
    assert len(entry["arguments"]["users"]) == 101
    assert entry["arguments"]["users"][-1] == "and 150 more"


def test_entries_are_listed_in_pages_newest_first(config: Config) -> None:
    for name in "abcde":
        run(config, "user add", name=name)
    first = listed(config, limit=2)
    second = listed(config, limit=2, before=first[-1]["id"])
    assert [each["arguments"]["name"][-1] for each in first + second] == ["e", "d", "c", "b"]
    for limit in (0, 1001):
        with pytest.raises(MimiError, match="limit"):
            listed(config, limit=limit)


@pytest.mark.parametrize("sql", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"])
def test_the_database_refuses_to_change_or_delete_an_entry(config: Config, sql: str) -> None:
    run(config, "user add", name="alice")
    with pytest.raises(Exception, match="audit table"):
        write_here(config.place, lambda tx: tx.execute(sql))


async def test_the_sweep_deletes_old_entries_only(tmp_path: Path) -> None:
    clock: MovableClock = stopped_clock()
    config = Authority(tmp_path).config(retention={"audit_days": 30})
    async with assembled(config, clock=clock) as running:
        for name, days in (("alice", 20), ("bob", 11), ("carol", 0)):
            await ask(running.app(OPERATOR_SOCKET), "user/add", name=name)
            for _ in range(days):
                clock.advance(86_400)
                await running.services.sweeper.sweep()
        found = await ask(running.app(OPERATOR_SOCKET), "audit")
        assert [each["arguments"]["name"][-5:] for each in found["entries"]] == ["carol", "u/bob"]


async def ask(app: Any, command: str, agent: str = "", **arguments: Any) -> Any:
    headers = {"content-type": "application/json"} | ({"user-agent": agent} if agent else {})
    answer = await InMemory(app).ask("POST", f"/v1/{command}", json.dumps(arguments).encode(), headers)
    assert answer.status == 200, answer.body
    return answer.json()


async def test_over_the_operator_socket_the_actor_is_the_user_of_the_other_process(tmp_path: Path) -> None:
    config = Authority(tmp_path).config()

    add = command_named("user add")
    request = b"POST /v1/user/add HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 17\r\n\r\n"
    async with running(config):
        async with await trio.open_unix_socket(str(config.operator_socket)) as stream:
            await stream.send_all(request + b'{"name": "alice"}')
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        await trio.to_thread.run_sync(commands.run, config, add, {"name": "bob"})
    assert [each.actor for each in entries(config)] == [f"shell {os.geteuid()}", f"socket {os.geteuid()}"]


def test_in_a_shell_without_a_server_the_actor_is_the_user_of_the_process(config: Config) -> None:
    commands.run(config, command_named("user add"), {"name": "bob"})
    assert [each.actor for each in entries(config)] == [f"shell {os.geteuid()}"]


@pytest.mark.sqlite_file("backups and restores are of files")
def test_a_restore_keeps_the_entries_since_the_backup_and_adds_its_own(config: Config, tmp_path: Path) -> None:
    invoke(config, "user", "add", "alice")
    assert invoke(config, "backup", tmp_path / "copy").exit_code == 0
    invoke(config, "user", "add", "bob")
    restored = invoke(config, "restore", "--replace", tmp_path / "copy")
    assert restored.exit_code == 0, restored.stderr
    found = entries(config)
    assert [each.command for each in found] == ["restore", "user add", "user add"]
    assert found[0].id > found[1].id > found[2].id


def test_in_a_shell_entries_are_a_table(config: Config) -> None:
    invoke(config, "user", "add", "alice", "--and", "bob")
    head, line = invoke(config, "audit").stdout.splitlines()
    assert head.split() == ["id", "at", "actor", "command", "arguments"]
    assert line.endswith("user add  name=mimi://a.example/u/alice users=mimi://a.example/u/bob")
