"""A removed device gets and sends nothing more: its streams and waiting requests end, and so do its participations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.errors import Unauthenticated
from mimids.http.api.asgi import Message
from mimids.http.api.devices import DEVICES
from mimids.http.api.operator_socket import OPERATOR_SOCKET
from mimids.values import Device
from mimids.wire.declare import encode
from mimids.wire.ids import Counter, Secret
from mimids.wire.messages import FrameType, ReceiveRequest
from tests.support.device_streams import Wire, heard
from tests.support.federation import Room, device, federated, present
from tests.support.inmemory import Answered, InMemory
from tests.support.patience import patience
from tests.support.provider import Assembled
from tests.support.stored import count, rows, until


async def remove(provider: Assembled, command: str, **arguments: str) -> None:
    socket = InMemory(provider.app(OPERATOR_SOCKET))
    headers = {"content-type": "application/json"}
    answer = await socket.ask("POST", f"/v1/{command}/remove", json.dumps(arguments).encode(), headers)
    assert answer.status == 200, answer.body


def names(command: str, user: str) -> dict[str, str]:
    return {"user": user, "name": "phone"} if command == "device" else {"user": user}


async def _waits(provider: Assembled) -> bool:
    return provider.services.sessions.statistics().open > 0


async def known_device(provider: Assembled, user: str = "alice", name: str = "phone") -> tuple[Device, str]:
    token = await provider.add_device(user, name)
    found = await provider.services.devices.authenticate(Secret(token.encode()))
    assert found is not None
    return found, token


async def wait_for_messages(provider: Assembled, room: Room, token: str) -> Answered:
    headers = {
        "content-type": "application/mimi-ds",
        "authorization": f"Bearer {token}",
        "prefer": "wait=60",
    }
    body = encode(ReceiveRequest(room.key, Counter(0)))
    return await InMemory(provider.app(DEVICES)).ask("POST", f"/client/v1/hubs/{room.hub}/receive", body, headers)


@pytest.mark.parametrize("command", ["device", "user"])
async def test_the_removal_of_a_device_ends_its_stream(command: str, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        (alice, _), (other, _), room = await known_device(a), await known_device(a, "olga"), Room()
        await a.services.hub.create_group(room.creation(), alice)
        wire, kept, ended = Wire(), Wire(), trio.Event()

        async def serve() -> None:
            with pytest.raises(Unauthenticated):
                async with a.services.sessions.open(alice):
                    await a.services.streams.serve(alice, wire)
            ended.set()

        async def serve_other() -> None:
            async with a.services.sessions.open(other):
                await a.services.streams.serve(other, kept)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            nursery.start_soon(serve_other)
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            await kept.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            await remove(a, command, **names(command, "alice"))
            with patience():
                await ended.wait()
            assert a.services.streams.statistics().open == 1
            await a.services.hub.send(room.send("for the others"), other)
            assert await heard(kept) == (0, ["for the others"])
            kept.hang_up()


@pytest.mark.parametrize("hub", ["a.example", "b.example"])
async def test_the_removal_of_a_device_ends_a_request_that_waits(hub: str, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as providers:
        hosting = next(each for each in providers if each.config.provider == hub)
        b = providers[1]
        (_, token), room = await known_device(b, "bob"), Room(hub=hub)
        await hosting.services.hub.create_group(room.creation(), device(hosting, row=9))
        answers = []

        async def wait() -> None:
            answers.append(await wait_for_messages(b, room, token))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until(lambda: _waits(b))
            await trio.sleep(0.05)
            await remove(b, "device", user="bob", name="phone")
            nursery.cancel_scope.deadline = trio.current_time() + 1
        (answer,) = answers
        assert (answer.status, answer.problem) == (401, "unauthenticated")
        assert b.services.sessions.statistics().open == 0


async def test_a_device_that_was_admitted_before_its_removal_opens_nothing_after_it(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        alice, _ = await known_device(a)
        await remove(a, "device", user="alice", name="phone")
        with pytest.raises(Unauthenticated):
            async with a.services.sessions.open(alice):
                await trio.sleep_forever()


async def test_a_body_that_comes_slowly_does_not_outlive_the_removal_of_its_device(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        (alice, token), room = await known_device(a), Room()
        await a.services.hub.create_group(room.creation(), alice)
        app = a.app(DEVICES)
        answer = []
        body = encode(room.send("too late"))

        async def receive() -> Message:
            await remove(a, "device", user="alice", name="phone")
            await trio.sleep(0.6)
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            answer.append(message)

        headers = {"content-type": "application/mimi-ds", "authorization": f"Bearer {token}", "host": "localhost"}
        headers["content-length"] = str(len(body))
        scope = InMemory(app)._scope("http", f"/client/v1/hubs/{room.hub}/send", headers) | {"method": "POST"}
        await app(scope, receive, send)
        assert answer[0]["status"] == 401
        assert count(a, "SELECT count(*) FROM messages") == 0


@pytest.mark.parametrize("command", ["device", "user"])
async def test_nobody_is_pushed_to_once_the_last_device_was_removed(command: str, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, room = device(a), Room()
        bob, _ = await known_device(b, "bob")
        await a.services.hub.create_group(room.creation(), alice)
        wire = Wire()

        async def serve() -> None:
            with pytest.raises(Unauthenticated):
                async with b.services.sessions.open(bob):
                    await b.services.streams.serve(bob, wire)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            await a.services.hub.send(room.send("one"), alice)
            assert await heard(wire) == (0, ["one"])
            await remove(b, command, **names(command, "bob"))
        assert count(b, "SELECT count(*) FROM participations WHERE left_at IS NULL") == 0
        await a.services.hub.send(room.send("for nobody"), alice)

        async def gone() -> bool:
            return count(a, "SELECT count(*) FROM follows") == 0

        await until(gone)
        assert count(b, "SELECT count(*) FROM messages") == 1


async def test_all_that_goes_on_for_a_device_can_be_ended_without_its_removal(tmp_path: Path) -> None:
    """As the suspension of a device, or a new token for it, must do; it can then begin again."""
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, room = device(a), Room()
        (bob, _), (ben, _) = await known_device(b, "bob"), await known_device(b, "ben")
        await a.services.hub.create_group(room.creation(), alice)
        wire = Wire()

        async def serve(wire: Wire) -> None:
            with pytest.raises(Unauthenticated):
                async with b.services.sessions.open(bob):
                    await b.services.streams.serve(bob, wire)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, wire)
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            await a.services.hub.send(room.send("one"), alice)
            assert await heard(wire) == (0, ["one"])
            await b.services.following.note_sent(ben, room.hub, room.group_id, [])
            await b.services.sessions.end([bob.row])
        assert b.services.sessions.statistics().open == 0
        present_rows = await rows(b, "SELECT device FROM participations WHERE left_at IS NULL")
        assert present_rows == [(ben.row,)]
        again = Wire()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, again)
            await again.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            assert await heard(again) == (0, ["one"])
            await b.services.sessions.end([bob.row])


@pytest.mark.sqlite_file("it asks SQLite for its plans")
async def test_the_participations_of_a_device_are_found_without_reading_those_of_others(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,):
        plan = await a.services.store.read(
            lambda tx: tx.all(
                "EXPLAIN QUERY PLAN UPDATE participations SET left_at = 1 WHERE device = 1 AND left_at IS NULL"
            )
        )
        assert any("SEARCH participations USING INDEX participations_of_device (device=?)" in str(row) for row in plan)


async def test_a_device_that_never_was_in_a_group_cannot_end_what_others_follow(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, bob, mallory, room = device(a), device(b, "bob"), device(b, "mallory", 2), Room()
        await a.services.hub.create_group(room.creation(), alice)
        await b.services.hub_router.hub(room.hub).send(bob, room.send("hello"))
        with pytest.raises(Exception, match="group"):
            await b.services.following.leave(mallory, room.hub, room.group_id)
        assert count(b, "SELECT count(*) FROM participations") == 1
        assert count(b, "SELECT count(*) FROM participations WHERE left_at IS NOT NULL") == 0
