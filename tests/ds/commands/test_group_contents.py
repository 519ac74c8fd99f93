"""`group members`, `group storage` and `group delete`, at the hub and at a follower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.commands import command_named
from mimids.ds.commands.performing import perform
from mimids.errors import GroupExists, MimiError, NotFound, UnknownGroup, UnknownPartition
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import Add
from mimids.store import listing
from mimids.store.engine.access import read_here, write_here
from mimids.wire.ids import MLS10
from mimids.wire.messages import CommitData, CreateGroupRequest, SendRequest
from tests.support.cli_runs import invoke
from tests.support.cli_runs import provider as a_provider
from tests.support.curious import tables_of
from tests.support.federation import Room, commit_at, device, federated, read
from tests.support.provider import Assembled
from tests.support.restoring import all_groups_free
from tests.support.signing import Client, by_value
from tests.support.signing import Room as SignedRoom
from tests.support.stored import count, until


async def operate(of: Assembled, name: str, **arguments: Any) -> Any:
    command = command_named(name)
    answer = await perform(of.services, command, command.given(arguments), "shell 7")
    assert set(answer) == set(json.loads(command.answer))
    return answer


async def lists(of: Assembled) -> list[str]:
    return [each["name"] for each in (await operate(of, "group list"))["groups"]]


# --- members ----------------------------------------------------------------------------------------------------------


async def test_members_are_those_of_the_public_state(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        alice, room, key = device(a), SignedRoom.create(Client.of(1, "alice")), Room.new_key()

        def info(of: SignedRoom) -> MLSMessage:
            return MLSMessage(MLS10, WireFormat.GROUP_INFO, of.info())

        creation = CreateGroupRequest(room.group_id, MLS10, room.suite.code, key, info(room), None, None)
        await a.services.hub.create_group(creation, alice)
        commit, after = room.commit(0, by_value(Add(Client.of(2, "bob").key_package())))
        following = Room.new_key()
        await a.services.hub.send(SendRequest(commit, key, CommitData(following, info(after), None)), alice)
        (branch,) = (await operate(a, "group members", group=room.group_id.decode()))["branches"]
        assert (branch["partition"], branch["epoch"]) == (following.mask(32).hex(), 1)
        assert branch["state"] == "derived"
        assert [(each["leaf"], each["user_id"]) for each in branch["members"]] == [
            (0, "mimi://a.example/u/alice"),
            (1, "mimi://a.example/u/bob"),
        ]


async def test_the_members_of_a_group_with_an_unknown_state_are_unknown(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        room = Room()
        await a.services.hub.create_group(room.creation(), device(a))
        (branch,) = (await operate(a, "group members", group=room.group_id.decode()))["branches"]
        assert (branch["state"], branch["members"]) == ("unknown", [])


# --- storage ----------------------------------------------------------------------------------------------------------


async def test_storage_counts_what_is_kept(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        alice, room, following = device(a), Room(), Room.new_key()
        await a.services.hub.create_group(room.creation(), alice)
        sent = [room.send("one"), room.send("two"), commit_at(room, 0, room.key, following)]
        for each in sent:
            await a.services.hub.send(each, alice)
        await a.services.hub.send(room.send("three", following, epoch=1), alice)
        answer = await operate(a, "group storage", group=room.group_id.decode())
        octets = count(a, "SELECT sum(length(body)) FROM messages")
        assert (answer["messages"], answer["message_octets"]) == (4, octets)
        assert [each["messages"] for each in answer["largest"]] == [3, 1]
        assert answer["oldest_message_at"] <= answer["newest_message_at"]
        await a.services.store.write(lambda tx: tx.execute("UPDATE messages SET body = NULL WHERE counter = 0"))
        answer = await operate(a, "group storage", group=room.group_id.decode())
        assert answer["messages"] == 2
        assert answer["tree_octets"] == answer["welcome_octets"] == 0


# --- deletion ---------------------------------------------------------------------------------------------------------


async def refusal(of: Assembled, request: SendRequest) -> type[MimiError]:
    with pytest.raises(MimiError) as refused:
        await of.services.hub_router.hub(Room().hub).send(device(of), request)
    return type(refused.value)


async def test_a_deleted_group_is_unknown_at_once_and_followers_keep_their_copies(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room, other = device(a), device(b, "bob"), Room(), Room("other")
        for each in (room, other):
            await a.services.hub.create_group(each.creation(), alice)
            await b.services.hub_router.hub(each.hub).send(bob, each.send("hello"))
            assert await read(b, bob, each.hub, each.key) == ["hello"]
        answer = await operate(a, "group delete", group=room.group_id.decode())
        assert (answer["messages"], answer["followers"], answer["hub"]) == (1, ["b.example"], "a.example")
        assert await lists(a) == [other.group_id.decode()]
        with pytest.raises(NotFound):
            await operate(a, "group show", group=room.group_id.decode())
        assert await refusal(a, room.send("more")) is UnknownGroup
        assert await refusal(b, room.send("more")) is UnknownGroup
        with pytest.raises(UnknownPartition):
            await read(a, alice, room.hub, room.key)
        for again in (room, Room()):  # the same request, and another group with this id
            with pytest.raises(GroupExists):
                await a.services.hub.create_group(again.creation(), alice)
        assert count(b, "SELECT count(*) FROM messages") == 2
        assert len(await lists(b)) == 2
        assert await read(a, alice, other.hub, other.key) == ["hello"]
        await a.services.hub.send(other.send("more"), alice)

        async def pushed() -> bool:
            return await read(b, bob, other.hub, other.key) == ["hello", "more"]

        await until(pushed)


async def test_the_sweep_deletes_what_is_left_of_a_deleted_group(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        alice, room, other, following = device(a), Room(), Room("other"), Room.new_key()
        await a.services.hub.create_group(room.creation(), alice)
        for number in range(1200):
            await a.services.hub.send(room.send(f"text {number}"), alice)
        await a.services.hub.send(commit_at(room, 0, room.key, following), alice)
        await operate(a, "group delete", group=room.group_id.decode())
        await a.services.sweeper.sweep()
        assert count(a, "SELECT count(*) FROM messages") == 1, "the newest number is not given out again"
        await a.services.hub.create_group(other.creation(), alice)
        await a.services.hub.send(other.send("newer"), alice)
        await a.services.sweeper.sweep()
        left = {name: len(table.rows) for name, table in tables_of(a.config.database).items()}
        assert {name: left[name] for name in ("groups", "partitions", "messages", "proposals", "follows")} == {
            "groups": 1,
            "partitions": 1,
            "messages": 1,
            "proposals": 0,
            "follows": 0,
        }
        for table in tables_of(a.config.database).values():
            assert not [row for row in table.rows if room.group_id in row]


async def test_a_deleted_group_takes_no_place_in_a_page_of_groups(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        rooms = [Room(f"group {number}") for number in range(5)]
        for room in rooms:
            await a.services.hub.create_group(room.creation(), device(a))
        await operate(a, "group delete", group=rooms[4].group_id.decode())
        page = await a.services.store.read(lambda tx: listing.groups_before(tx, None, limit=3))
        assert [each.group_id for each in page] == [room.group_id for room in (rooms[3], rooms[2], rooms[1])]


async def test_a_follower_that_deletes_its_copy_gets_no_more(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("hello"))
        assert await read(b, bob, room.hub, room.key) == ["hello"]
        await operate(b, "group delete", group=room.group_id.decode())
        assert await lists(b) == []
        await a.services.hub.send(room.send("for nobody"), alice)

        async def gone() -> bool:
            return count(a, "SELECT count(*) FROM follows") == 0

        await until(gone)
        assert await read(a, alice, room.hub, room.key) == ["hello", "for nobody"]
        assert await read(b, bob, room.hub, room.key) == ["hello", "for nobody"], "a device that uses it gets it again"


@pytest.mark.sqlite_file("backups and restores are of files")
def test_a_waiting_welcome_goes_with_the_group(tmp_path: Path) -> None:
    config = a_provider(tmp_path)
    made = (
        "INSERT INTO providers (id, domain) VALUES (1, 'a.example'), (2, 'b.example')",
        "INSERT INTO groups (id, hub, group_id, version, cipher_suite, created_at)"
        " VALUES (1, 1, CAST('g' AS BLOB), 1, 1, 0)",
        "INSERT INTO partitions (id, group_ref, hub, masked_key, opened_at) VALUES (1, 1, 1, zeroblob(32), 0)",
        "INSERT INTO welcomes (id, digest, body, stored_at) VALUES (1, x'00', x'00', 0)",
        "INSERT INTO outgoing_welcomes (id, welcome, partition, provider, refs, state, created_at)"
        " VALUES (1, 1, 1, 2, x'00', 'due', 0)",
        "INSERT INTO unsendable_welcomes (partition, refs, created_at) VALUES (1, x'00', 0)",
        "INSERT INTO recoveries (group_ref, provider, must_answer) VALUES (1, 2, 1)",
    )
    write_here(config.database, lambda tx: [tx.execute(sql) for sql in made])
    assert invoke(config, "backup", tmp_path / "copy").exit_code == 0
    assert "--yes" in invoke(config, "group", "delete", "g").stderr
    said = invoke(config, "group", "delete", "g", "--yes").stdout
    assert "1 partitions" in said
    assert "not delivered: 1" in said

    def left() -> list[tuple[int, ...]]:
        with read_here(config.database) as tx:
            return tx.all(
                "SELECT (SELECT count(*) FROM welcomes), (SELECT count(*) FROM outgoing_welcomes),"
                " (SELECT count(*) FROM unsendable_welcomes), (SELECT count(*) FROM recoveries WHERE group_ref = 1)"
            )

    assert left() == [(0, 0, 0, 0)]
    restored = invoke(config, "restore", "--replace", tmp_path / "copy")
    assert restored.exit_code == 0, restored.stderr
    assert left() == [(0, 0, 0, 0)]
    assert json.loads(invoke(config, "group", "list", "--json").stdout)["groups"] == []


async def test_other_providers_do_not_bring_a_deleted_group_back(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, room = device(a), device(b, "bob"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("hello"))
        assert await read(b, bob, room.hub, room.key) == ["hello"]
        await operate(a, "group delete", group=room.group_id.decode())
        found = (room.group_id,)
        recovery = a.services.recovery_as_hub
        noted = await a.services.store.write(lambda tx: recovery._note_groups(b.config.provider, 2, found, tx))
        assert noted
        await all_groups_free(a)
        assert await lists(a) == []
