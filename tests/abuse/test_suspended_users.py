"""A suspended user, and a device with a new token: what goes on ends at once, and can begin again when allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from mimids.errors import Unauthenticated
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
from tests.support.stored import count, until

CUT_OFF = ["user/suspend", "device/rotate-token"]


async def operate(provider: Assembled, command: str, user: str) -> Any:
    arguments = {"user": user} | ({"name": "phone"} if command.startswith("device") else {})
    socket = InMemory(provider.app(OPERATOR_SOCKET))
    headers = {"content-type": "application/json"}
    answer = await socket.ask("POST", f"/v1/{command}", json.dumps(arguments).encode(), headers)
    assert answer.status == 200, answer.body
    return answer.json()


async def known_device(provider: Assembled, user: str) -> tuple[Device, str]:
    token = await provider.add_device(user)
    found = await provider.services.devices.authenticate(Secret(token.encode()))
    assert found is not None
    return found, token


async def me(provider: Assembled, token: str) -> Answered:
    return await InMemory(provider.app(DEVICES)).ask(
        "GET", "/client/v1/me", headers={"authorization": f"Bearer {token}"}
    )


async def again(provider: Assembled, command: str, user: str, token: str, answer: Any) -> str:
    """Allow what `command` has ended; return the token that is valid now."""
    if command == "user/suspend":
        await operate(provider, "user/resume", user)
        return token
    return str(answer["token"])


@pytest.mark.parametrize("command", CUT_OFF)
async def test_a_token_is_refused_at_once_and_the_right_one_works_afterwards(command: str, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        (_, token), (_, other) = await known_device(a, "bob"), await known_device(a, "ben")
        assert (await me(a, token)).status == 200
        answer = await operate(a, command, "bob")
        refused = await me(a, token)
        assert (refused.status, refused.problem) == (401, "unauthenticated")
        assert ("suspended" in refused.json()["detail"]) is (command == "user/suspend")
        assert (await me(a, other)).status == 200
        assert (await me(a, await again(a, command, "bob", token, answer))).status == 200


@pytest.mark.parametrize("command", CUT_OFF)
async def test_a_stream_and_the_participations_end_and_can_begin_again(command: str, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example") as (a, b):
        alice, room = device(a), Room()
        bob, token = await known_device(b, "bob")
        await a.services.hub.create_group(room.creation(), alice)
        wire, ended = Wire(), trio.Event()

        async def serve(device: Device, wire: Wire) -> None:
            with pytest.raises(Unauthenticated):
                async with b.services.sessions.open(device):
                    await b.services.streams.serve(device, wire)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, bob, wire)
            await wire.say(FrameType.PRESENT, present(room.hub, (room.key, 0)))
            await a.services.hub.send(room.send("one"), alice)
            assert await heard(wire) == (0, ["one"])
            answer = await operate(b, command, "bob")
            with patience():
                await ended.wait()
        assert count(b, "SELECT count(*) FROM participations WHERE left_at IS NULL") == 0
        await a.services.hub.send(room.send("two"), alice)

        async def gone() -> bool:
            return count(a, "SELECT count(*) FROM follows") == 0

        await until(gone)
        token = await again(b, command, "bob", token, answer)
        device_again = await b.services.devices.authenticate(Secret(token.encode()))
        assert device_again == bob
        more = Wire()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, device_again, more)
            await more.say(FrameType.PRESENT, present(room.hub, (room.key, 1)))
            assert await heard(more) == (1, ["two"])
            assert count(b, "SELECT count(*) FROM participations WHERE left_at IS NULL") == 1
            await b.services.sessions.end([bob.row])


@pytest.mark.parametrize("command", CUT_OFF)
async def test_a_request_that_waits_ends(command: str, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        (_, token), room = await known_device(a, "bob"), Room()
        await a.services.hub.create_group(room.creation(), device(a, row=9))
        answers = []

        async def wait() -> None:
            headers = {
                "content-type": "application/mimi-ds",
                "authorization": f"Bearer {token}",
                "prefer": "wait=60",
            }
            body = encode(ReceiveRequest(room.key, Counter(0)))
            answers.append(
                await InMemory(a.app(DEVICES)).ask("POST", f"/client/v1/hubs/{room.hub}/receive", body, headers)
            )

        async def waits() -> bool:
            return a.services.sessions.statistics().open > 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until(waits)
            await operate(a, command, "bob")
            nursery.cancel_scope.deadline = trio.current_time() + 1
        (answer,) = answers
        assert (answer.status, answer.problem) == (401, "unauthenticated")


@pytest.mark.parametrize("command", CUT_OFF)
async def test_a_device_that_was_admitted_before_opens_nothing_afterwards(command: str, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        bob, _ = await known_device(a, "bob")
        await operate(a, command, "bob")
        with pytest.raises(Unauthenticated):
            async with a.services.sessions.open(bob):
                await trio.sleep_forever()


async def test_an_old_token_that_was_admitted_late_does_not_end_what_the_new_one_opened(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        old, _ = await known_device(a, "bob")
        answer = await operate(a, "device/rotate-token", "bob")
        new = await a.services.devices.authenticate(Secret(answer["token"].encode()))
        assert new is not None
        async with a.services.sessions.open(new):
            with pytest.raises(Unauthenticated):
                async with a.services.sessions.open(old):
                    await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
            assert a.services.sessions.statistics().open == 1


async def test_a_rotation_does_not_end_what_the_new_token_opens(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example") as (a,):
        await known_device(a, "bob")
        answer = await operate(a, "device/rotate-token", "bob")
        bob = await a.services.devices.authenticate(Secret(answer["token"].encode()))
        assert bob is not None
        async with a.services.sessions.open(bob):
            await known_device(a, "zoe")
            await operate(a, "device/rotate-token", "zoe")
            assert a.services.sessions.statistics().open == 1
            assert await a.services.streams.is_known(bob)
