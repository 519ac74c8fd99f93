"""KeyPackages of the user's other devices: one of each, in one transaction, and never one of the device that asks."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio

from mimids.ds.devices.accounts import remove_device
from mimids.ds.key_packages.claims import LowStock
from mimids.ds.key_packages.stock import SIBLINGS_AT_ONCE, StockRules
from mimids.errors import Busy, KeyPackagesExhausted, Unauthenticated
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.suites import SUITES
from mimids.store import accounts
from mimids.store.engine.transaction import Tx
from mimids.values import Device
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, CipherSuite, ProtocolVersion
from mimids.wire.messages import EncodedKeyPackage, KeyPackageResult, KeyPackageStatus
from tests.support.mls_makers import DAY
from tests.support.rig import PROVIDER, SUITE, Rig, ask, packages, running

OK, EXHAUSTED = KeyPackageStatus.OK, KeyPackageStatus.EXHAUSTED


async def stocked(rig: Rig, name: str, count: int, *, user: str = "bob", last_resort: bool = False) -> Device:
    """Add a device with so many KeyPackages."""
    device = await rig.device(name, user)
    made = packages(device.user_id, count) + packages(device.user_id, int(last_resort), last_resort=True)
    assert (await rig.key_packages.upload(device, made)).accepted == len(made)
    return device


async def siblings(rig: Rig, device: Device, suite: int = SUITE, version: int = MLS10) -> tuple[KeyPackageResult, ...]:
    return await rig.key_packages.claim_siblings(device, ProtocolVersion(version), CipherSuite(suite))


async def owners(rig: Rig, results: tuple[KeyPackageResult, ...]) -> list[str]:
    """Return the names of the devices whose KeyPackages these are."""
    refs = [_ref(each.key_package) for each in results if each.key_package is not None]
    rows = await rig.store.read(
        lambda tx: [
            tx.one("SELECT name FROM key_package_refs r JOIN devices d ON d.id = r.device WHERE ref = ?", (ref,))
            for ref in refs
        ]
    )
    return sorted(row[0] for row in rows if row is not None)


def _ref(package: EncodedKeyPackage) -> bytes:
    return decode(KeyPackageIn, package).ref(SUITES[SUITE])


async def test_each_other_device_gives_one_and_the_asking_one_none(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        phone, laptop, tablet = [await stocked(rig, name, 2) for name in ("phone", "laptop", "tablet")]
        await stocked(rig, "phone", 2, user="carol")
        first = await siblings(rig, phone)
        assert await owners(rig, first) == ["laptop", "tablet"]
        second = await siblings(rig, phone)
        assert await owners(rig, second) == ["laptop", "tablet"]
        assert not {each.key_package for each in first} & {each.key_package for each in second}
        for device, left in ((phone, 2), (laptop, 0), (tablet, 0)):
            assert [row.left for row in await rig.key_packages.stock(device)] == [left]
        with pytest.raises(KeyPackagesExhausted):
            await siblings(rig, phone)
        assert await owners(rig, await siblings(rig, laptop)) == ["phone"]


async def test_a_device_without_a_key_package_is_named_exhausted_beside_the_others(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        counts = (("phone", 1), ("laptop", 0), ("tablet", 1), ("watch", 0))
        phone, *_ = [await stocked(rig, name, count) for name, count in counts]
        assert [each.status for each in await siblings(rig, phone)] == [OK, EXHAUSTED, EXHAUSTED]


@pytest.mark.parametrize(("suite", "version"), [(2, MLS10), (SUITE, 2), (0xFFFF, MLS10)])
async def test_other_suites_and_versions_have_none(suite: int, version: int, tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        phone, laptop = await stocked(rig, "phone", 1), await stocked(rig, "laptop", 1)
        with pytest.raises(KeyPackagesExhausted):
            await siblings(rig, phone, suite, version)
        assert (await rig.key_packages.stock(laptop))[0].left == 1


async def test_an_only_device_gets_none_of_its_own(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        phone = await stocked(rig, "phone", 3, last_resort=True)
        with pytest.raises(KeyPackagesExhausted):
            await siblings(rig, phone)
        assert (await rig.key_packages.stock(phone))[0].left == 3


async def test_a_last_resort_comes_after_the_ordinary_ones_and_is_not_used_up(tmp_path: Path) -> None:
    rules = StockRules(max_lifetime_seconds=366 * DAY, low_stock=1)
    async with running(tmp_path / "store.sqlite", rules=rules) as rig:
        phone, laptop = await stocked(rig, "phone", 0), await stocked(rig, "laptop", 1, last_resort=True)
        given = [(await siblings(rig, phone))[0].key_package for _ in range(3)]
        assert given[0] != given[1] == given[2]
        assert rig.low == [LowStock(laptop.row, MLS10, SUITE, 0)] * 3
        stock = (await rig.key_packages.stock(laptop))[0]
        assert (stock.has_last_resort, stock.last_resort_used) == (True, True)


async def test_a_sibling_is_told_when_it_runs_low_and_not_before(tmp_path: Path) -> None:
    rules = StockRules(max_lifetime_seconds=366 * DAY, low_stock=2)
    async with running(tmp_path / "store.sqlite", rules=rules) as rig:
        phone, laptop = await stocked(rig, "phone", 0), await stocked(rig, "laptop", 3)
        for low in ([], [LowStock(laptop.row, MLS10, SUITE, 1)]):
            await siblings(rig, phone)
            assert rig.low == low


async def test_an_expired_one_is_not_handed_out(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        phone, _ = await stocked(rig, "phone", 0), await stocked(rig, "laptop", 2)
        rig.clock.advance(101 * DAY)
        with pytest.raises(KeyPackagesExhausted):
            await siblings(rig, phone)


async def test_removed_devices_give_none_and_get_none(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        phone, laptop, _ = [await stocked(rig, name, 2) for name in ("phone", "laptop", "tablet")]
        await rig.store.write(lambda tx: remove_device(tx, PROVIDER, "bob", "laptop"))
        assert await owners(rig, await siblings(rig, phone)) == ["tablet"]
        with pytest.raises(Unauthenticated):
            await siblings(rig, laptop)
        assert (await rig.key_packages.stock(phone))[0].left == 2


@pytest.mark.parametrize("how", ["suspended", "another token"])
async def test_a_device_that_may_no_longer_act_gets_none(how: str, tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        phone, laptop = await stocked(rig, "phone", 1), await stocked(rig, "laptop", 1)
        phone = attrs.evolve(phone, token_digest=b"of an earlier token")
        if how == "suspended":
            user = await rig.store.read(lambda tx: accounts.find_user(tx, phone.user_id))
            assert user is not None
            await rig.store.write(lambda tx: accounts.set_suspended(tx, user, rig.clock.now()))
        with pytest.raises(Unauthenticated):
            await siblings(rig, phone)
        assert (await rig.key_packages.stock(laptop))[0].left == 1


async def test_siblings_and_strangers_never_get_the_same_one(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        phone, laptop, _ = [await stocked(rig, name, 20) for name in ("phone", "laptop", "tablet")]
        token, given = await rig.token(), list[EncodedKeyPackage | None]()

        async def as_sibling(device: Device) -> None:
            given.extend(each.key_package for each in await siblings(rig, device))

        async def as_stranger() -> None:
            given.extend(each.key_package for each in await rig.key_packages.claim([ask(token)] * 3))

        async with trio.open_nursery() as together:
            for _ in range(5):
                together.start_soon(as_sibling, phone)
                together.start_soon(as_sibling, laptop)
                together.start_soon(as_stranger)
        assert len(given) == len(set(given)) == 5 * (2 + 2 + 3)
        assert None not in given


async def test_a_sibling_that_gave_one_comes_last_for_the_next_stranger(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        phone, _ = await stocked(rig, "phone", 2), await stocked(rig, "laptop", 2)
        await siblings(rig, phone)
        (outcome,) = await rig.key_packages.claim([ask(await rig.token())])
        assert await owners(rig, (outcome.result(),)) == ["phone"]


async def test_no_token_is_stored_with_the_claim_of_a_sibling(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        phone, _ = await stocked(rig, "phone", 0), await stocked(rig, "laptop", 1)
        await siblings(rig, phone)
        rows = await rig.store.read(lambda tx: tx.all("SELECT claimed_at, token FROM key_package_refs"))
        assert rows == [(0, None)]


async def test_without_room_for_the_answer_nothing_is_handed_out(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        phone, laptop, _ = [await stocked(rig, name, 1) for name in ("phone", "laptop", "tablet")]
        wanted = list[int]()

        async def refuse(octets: int) -> None:
            wanted.append(octets)
            raise Busy("no room")

        with pytest.raises(Busy):
            await rig.key_packages.claim_siblings(phone, MLS10, SUITE, reserve=refuse)
        assert wanted == [2 * StockRules(max_lifetime_seconds=0).package_octets]
        assert (await rig.key_packages.stock(laptop))[0].left == 1


async def test_of_very_many_devices_those_with_a_key_package_answer(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        phone = await stocked(rig, "phone", 0)

        def add_many(tx: Tx) -> None:
            for number in range(SIBLINGS_AT_ONCE):
                tx.execute(
                    "INSERT INTO devices (owner, name, token_digest, created_at)"
                    " SELECT owner, ?, ?, 0 FROM devices WHERE id = ?",
                    (f"device {number}", b"%032d" % number, phone.row),
                )

        await rig.store.write(add_many)
        await stocked(rig, "laptop", 2)
        await siblings(rig, phone)
        results = await siblings(rig, phone)
        assert len(results) == SIBLINGS_AT_ONCE
        assert await owners(rig, results) == ["laptop"]
