from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs
import pytest
import trio
import trio.testing

from mimids.ds.devices.accounts import (
    DeviceTokens,
    add_device,
    add_user,
    find_user,
    list_users,
    remove_device,
    remove_user,
    resume_user,
    rotate_token,
    suspend_user,
)
from mimids.ds.key_packages.claims import ClaimOutcome
from mimids.errors import KeyPackageRefused, Malformed, NameTaken, NotFound, Unauthenticated
from mimids.store.accounts import devices_of
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
        devices = await rig.store.read(lambda tx: devices_of(tx, find_user(tx, PROVIDER, "bob")[0]))
        assert [device.name for device in devices] == ["phone", "laptop"]


async def test_a_name_is_given_once(path: Path) -> None:
    async with running(path) as rig:
        now = rig.clock.now()
        await rig.device()
        with pytest.raises(NameTaken):
            await rig.store.write(lambda tx: add_user(tx, PROVIDER, "bob", now))
        with pytest.raises(NameTaken):
            await rig.store.write(lambda tx: add_device(tx, PROVIDER, "bob", "phone", now))


@pytest.mark.parametrize(
    "name", ["", "a/b", "a b", "é", "a\0", "a?b", "a" * 256, "a#b", "%zz", "%61", "%c3%bc", "%00", "..", "."]
)
async def test_a_name_that_cannot_stand_in_a_user_id_is_refused(path: Path, name: str) -> None:
    async with running(path) as rig:
        await rig.device()
        with pytest.raises(Malformed):
            await rig.store.write(lambda tx: add_user(tx, PROVIDER, name, rig.clock.now()))
        with pytest.raises(Malformed):
            await rig.store.write(lambda tx: add_device(tx, PROVIDER, "bob", name, rig.clock.now()))


async def test_a_user_id_in_another_spelling_is_refused_with_what_is_wrong(path: Path) -> None:
    async with running(path) as rig:
        await rig.device()
        with pytest.raises(Malformed, match="%62 must be written as b"):
            await rig.store.write(lambda tx: find_user(tx, PROVIDER, "mimi://b.example/u/%62ob"))


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


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("alice", "ALICE"),
        ("Alice", "aLICE"),
        ("%C3%84nne", "%C3%A4nne"),  # Ä and ä
        ("%C3%A4", "a%CC%88"),  # ä in one code point, and in two
        ("stra%C3%9Fe", "STRASSE"),
        ("a%20b", "A%20B"),
    ],
)
async def test_names_that_differ_only_in_case_are_not_given_twice(path: Path, name: str, other: str) -> None:
    async with running(path) as rig:
        now = rig.clock.now()
        await rig.store.write(lambda tx: add_user(tx, PROVIDER, name, now))
        with pytest.raises(NameTaken):
            await rig.store.write(lambda tx: add_user(tx, PROVIDER, other, now))
        await rig.store.write(lambda tx: add_device(tx, PROVIDER, other, name, now))
        with pytest.raises(NameTaken):
            await rig.store.write(lambda tx: add_device(tx, PROVIDER, name, other, now))
        await rig.store.write(lambda tx: remove_device(tx, PROVIDER, other, other))
        assert (await rig.store.read(lambda tx: find_user(tx, PROVIDER, other)))[1].endswith(name.encode())
        await rig.store.write(lambda tx: remove_user(tx, PROVIDER, other))
        for each in (name, other):
            with pytest.raises(NameTaken, match="removed"):
                await rig.store.write(lambda tx, each=each: add_user(tx, PROVIDER, each, now))  # type: ignore[misc]
        await rig.store.write(lambda tx: add_user(tx, PROVIDER, other, now, reuse=True))


async def test_octets_that_are_no_text_are_compared_as_they_are(path: Path) -> None:
    async with running(path) as rig:
        now = rig.clock.now()
        for name in ("%FF", "%FE", "%FFa"):
            await rig.store.write(lambda tx, name=name: add_user(tx, PROVIDER, name, now))  # type: ignore[misc]
        with pytest.raises(NameTaken):
            await rig.store.write(lambda tx: add_user(tx, PROVIDER, "%FFA", now))


async def test_users_of_an_older_version_are_compared_without_case_too(path: Path) -> None:
    """Older versions had no such rule, so two users may differ in case only; each is found by the exact name."""
    async with running(path) as rig:
        now = rig.clock.now()
        ids = [b"mimi://b.example/u/%C3%84", b"mimi://b.example/u/ALICE", b"mimi://b.example/u/alice"]

        def older(tx: Tx) -> None:
            for user_id in ids:
                tx.execute("INSERT INTO users (user_id, created_at) VALUES (?, 0)", (user_id,))

        await rig.store.write(older)
        for name in ("%C3%A4", "Alice"):
            with pytest.raises(NameTaken):
                await rig.store.write(lambda tx, name=name: add_user(tx, PROVIDER, name, now))  # type: ignore[misc]
        await rig.store.write(lambda tx: add_user(tx, PROVIDER, "bob", now))
        for user_id in ids:
            name = user_id.decode()
            found = await rig.store.read(lambda tx, name=name: find_user(tx, PROVIDER, name))  # type: ignore[misc]
            assert found[1] == user_id


async def test_nobody_claims_the_key_packages_of_a_suspended_user(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(3)
        await rig.store.write(lambda tx: suspend_user(tx, PROVIDER, "bob", rig.clock.now()))
        (refused,) = await rig.key_packages.claim([ask(token)])
        assert isinstance(refused.refusal, KeyPackageRefused)
        with pytest.raises(Malformed, match="already"):
            await rig.store.write(lambda tx: suspend_user(tx, PROVIDER, "bob", rig.clock.now()))
        await rig.store.write(lambda tx: resume_user(tx, PROVIDER, "bob"))
        (claimed,) = await rig.key_packages.claim([ask(token)])
        assert claimed.key_package is not None
        with pytest.raises(Malformed, match="not suspended"):
            await rig.store.write(lambda tx: resume_user(tx, PROVIDER, "bob"))


@pytest.mark.parametrize("change", [suspend_user, partial(rotate_token, name="phone")])
async def test_an_upload_that_is_under_way_when_the_device_is_refused_is_not_stored(
    change: Callable[..., object], path: Path
) -> None:
    async with running(path) as rig:
        device = await rig.device()
        digest = await rig.store.read(lambda tx: tx.one("SELECT token_digest FROM devices WHERE id = ?", (device.row,)))
        assert digest is not None
        known = attrs.evolve(device, token_digest=digest[0])
        await rig.key_packages.upload(known, packages(device.user_id, 1))
        await rig.store.write(lambda tx: change(tx, PROVIDER, "bob", now=rig.clock.now()))
        with pytest.raises(Unauthenticated):
            await rig.key_packages.upload(known, packages(device.user_id, 1), replace=True)
        assert await rig.left() == 1
