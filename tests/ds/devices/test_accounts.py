from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from mimids.ds.devices.accounts import (
    DeviceTokens,
    add_device,
    add_user,
    find_user,
    list_devices,
    list_users,
    remove_device,
    remove_user,
)
from mimids.ds.key_packages.claims import ClaimOutcome
from mimids.errors import KeyPackageRefused, Malformed, NameTaken, NotFound
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Device
from mimids.wire.ids import Secret, UserId
from tests.support.rig import PROVIDER, ask, packages, running

T = TypeVar("T")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


async def test_users_and_devices_are_listed_as_they_were_added(path: Path) -> None:
    async with running(path) as rig:
        now = rig.clock.now()

        def work(tx: Tx) -> None:
            assert add_user(tx, PROVIDER, "bob", now) == b"mimi://b.example/u/bob"
            add_user(tx, PROVIDER, "alice", now)
            add_device(tx, PROVIDER, "bob", "phone", now)
            add_device(tx, PROVIDER, "mimi://b.example/u/bob", "laptop", now)

        await rig.store.write(work)
        users = await rig.store.read(list_users)
        assert [(user.user_id, user.devices) for user in users] == [
            (b"mimi://b.example/u/bob", 2),
            (b"mimi://b.example/u/alice", 0),
        ]
        devices = await rig.store.read(lambda tx: list_devices(tx, PROVIDER, "bob"))
        assert [device.name for device in devices] == ["phone", "laptop"]


async def test_a_name_is_given_once(path: Path) -> None:
    async with running(path) as rig:
        now = rig.clock.now()
        await rig.device()
        with pytest.raises(NameTaken):
            await rig.store.write(lambda tx: add_user(tx, PROVIDER, "bob", now))
        with pytest.raises(NameTaken):
            await rig.store.write(lambda tx: add_device(tx, PROVIDER, "bob", "phone", now))


@pytest.mark.parametrize("name", ["", "a/b", "a b", "é", "a\0", "a?b", "a" * 256, "a#b", "%zz"])
async def test_a_name_that_cannot_stand_in_a_user_id_is_refused(path: Path, name: str) -> None:
    async with running(path) as rig:
        await rig.device()
        with pytest.raises(Malformed):
            await rig.store.write(lambda tx: add_user(tx, PROVIDER, name, rig.clock.now()))
        with pytest.raises(Malformed):
            await rig.store.write(lambda tx: add_device(tx, PROVIDER, "bob", name, rig.clock.now()))


async def test_what_is_not_there_is_not_found(path: Path) -> None:
    async with running(path) as rig:
        await rig.device()
        for work in (
            lambda tx: find_user(tx, PROVIDER, "nobody"),
            lambda tx: find_user(tx, PROVIDER, "mimi://a.example/u/bob"),
            lambda tx: remove_user(tx, PROVIDER, "nobody"),
            lambda tx: remove_device(tx, PROVIDER, "bob", "laptop"),
            lambda tx: add_device(tx, PROVIDER, "nobody", "phone", rig.clock.now()),
        ):
            with pytest.raises(NotFound):
                await rig.store.write(work)


async def test_a_token_opens_its_device_and_lies_nowhere(path: Path) -> None:
    async with running(path) as rig:
        devices = DeviceTokens(rig.store, PROVIDER)
        await rig.device()
        new = await rig.store.write(lambda tx: add_device(tx, PROVIDER, "bob", "laptop", rig.clock.now()))
        assert new.token not in repr(new)
        for _ in range(2):  # from the store, from memory
            found = await devices.authenticate(Secret(new.token.encode()))
            assert found == Device(PROVIDER, UserId(b"mimi://b.example/u/bob"), new.row, "laptop")
        assert await devices.authenticate(Secret(new.token.encode() + b"x")) is None
        for file in path.parent.iterdir():
            assert new.token.encode() not in file.read_bytes()


async def test_a_removed_device_is_a_stranger_at_once(path: Path) -> None:
    async with running(path) as rig:
        devices = DeviceTokens(rig.store, PROVIDER)
        await rig.device()
        new = await rig.store.write(lambda tx: add_device(tx, PROVIDER, "bob", "laptop", rig.clock.now()))
        token = Secret(new.token.encode())
        assert await devices.authenticate(token) is not None
        await rig.store.write(lambda tx: remove_device(tx, PROVIDER, "bob", "laptop"))
        devices.forget()
        assert await devices.authenticate(token) is None


async def test_a_look_that_began_before_a_removal_is_not_remembered(path: Path) -> None:
    async with running(path) as rig:
        devices = DeviceTokens(rig.store, PROVIDER)
        await rig.device()
        new = await rig.store.write(lambda tx: add_device(tx, PROVIDER, "bob", "laptop", rig.clock.now()))
        token = Secret(new.token.encode())
        entered, leave = trio.Event(), trio.Event()

        class Slow(Store):
            def __init__(self) -> None:
                pass

            async def read(self, work: Callable[[Tx], T]) -> T:
                found = await rig.store.read(work)
                entered.set()
                await leave.wait()
                return found

        devices._store = Slow()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(devices.authenticate, token)
            await entered.wait()
            await rig.store.write(lambda tx: remove_device(tx, PROVIDER, "bob", "laptop"))
            devices.forget()
            leave.set()
        devices._store = rig.store
        assert await devices.authenticate(token) is None


async def test_with_a_user_go_its_devices_tokens_and_stock_and_what_was_uploaded_stays_known(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        own = packages(device.user_id, 2)
        await rig.key_packages.upload(device, own)
        token = await rig.token()
        await rig.store.write(lambda tx: remove_user(tx, PROVIDER, "bob"))
        assert await rig.left() == 0
        (refused,) = await rig.key_packages.claim([ask(token)])
        assert isinstance(refused, ClaimOutcome)
        assert isinstance(refused.refusal, KeyPackageRefused)
        again = await rig.device()
        assert again.row != device.row
        assert (await rig.key_packages.upload(again, own)).accepted == 0
