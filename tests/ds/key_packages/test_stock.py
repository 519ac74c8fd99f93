"""The stock of KeyPackages: uploads, claims and sweeps, also compared with a model.

The file is long because it has all tests of one module, which share the helpers at its top.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from mimids.ds.devices.accounts import suspend_user
from mimids.ds.key_packages import stock
from mimids.ds.key_packages.claims import ClaimOutcome, LowStock
from mimids.ds.key_packages.stock import StockRules, sweep
from mimids.errors import KeyPackageRefused, KeyPackagesExhausted, RateLimited, TooMany, Unauthenticated
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.leaf_node import HpkePublicKey, Lifetime
from mimids.mls.suites import SUITES
from mimids.store import key_packages as rows
from mimids.store import provider_keys
from mimids.store.accounts import delete_device, find_user
from mimids.store.engine.transaction import Tx
from mimids.store.key_packages import Candidate
from mimids.store.tokens import TokenRow
from mimids.values import Device, DeviceRow, Milliseconds
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, BearerToken, KeyPackageRef, UserId, local_user_id
from mimids.wire.messages import EncodedKeyPackage, KeyPackageRequest, KeyPackageStatus
from tests.support.doubles import stopped_clock
from tests.support.mls_makers import DAY, NOW, Signer, key_package
from tests.support.rig import PROVIDER, SUITE, Rig, a_leaf, ask, packages, running

BOB = local_user_id(PROVIDER, "bob")


def ref_of(package: EncodedKeyPackage) -> KeyPackageRef:
    return decode(KeyPackageIn, package).ref(SUITES[1])


def handed_out(outcomes: Sequence[ClaimOutcome]) -> list[EncodedKeyPackage]:
    return [outcome.key_package for outcome in outcomes if outcome.key_package is not None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


async def claim(rig: Rig, *requests: KeyPackageRequest) -> list[EncodedKeyPackage | type[object]]:
    """Return what was handed out, or the kind of the refusal."""
    outcomes = await rig.key_packages.claim(requests)
    return [each.key_package or type(each.refusal) for each in outcomes]


# --- upload -----------------------------------------------------------------------------------------------------


async def test_an_upload_says_what_was_taken_and_which_rule_refused_the_rest(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        signer = Signer.of(1)
        leaf = a_leaf(BOB)
        (good,) = packages(BOB, 1)
        (stranger,) = packages(local_user_id(PROVIDER, "mallory"), 1)
        (late,) = packages(BOB, 1, expires=NOW - 1)
        long = key_package(signer, a_leaf(BOB, origin=Lifetime(NOW, NOW + 366 * DAY + 1)))
        early = key_package(signer, a_leaf(BOB, origin=Lifetime(NOW + 61, NOW + DAY)))
        same_keys = key_package(signer, leaf, init_key=HpkePublicKey(leaf.encryption_key))
        unsigned = good[:-1] + bytes([good[-1] ^ 1])
        suite = key_package(signer, leaf, cipher_suite=0x0A0A)
        arrived = [good, stranger, late, long.encoded, early.encoded, same_keys.encoded, unsigned, suite.encoded, good]
        done = await rig.key_packages.upload(device, [EncodedKeyPackage(each) for each in arrived])
        assert done.accepted == 1
        assert [each.index for each in done.refused] == [1, 2, 3, 4, 5, 6, 7, 8]
        for refused, word in zip(
            done.refused,
            ["credential", "lifetime", "lifetime", "lifetime", "init key", "signature", "suite", "uploaded before"],
            strict=True,
        ):
            assert word in refused.reason
            assert "(RFC 9420" in refused.reason or refused.reason == "uploaded before"
        assert [(row.left, row.has_last_resort) for row in done.stock] == [(1, False)]


async def test_a_credential_that_spells_the_user_id_otherwise_is_refused_with_what_is_wrong(path: Path) -> None:
    async with running(path) as rig:
        phone = await rig.device()
        for written, fault in (
            (b"mimi://b.example/u/%62ob", "%62 must be written as b"),
            (b"MIMI://b.example/u/bob/d/phone", "lower case"),
            (b"mimi://b.example/u/bob/d/%70hone", "%70 must be written as p"),
        ):
            done = await rig.key_packages.upload(phone, packages(UserId(written), 1))
            assert fault in done.refused[0].reason


async def test_another_key_package_with_an_init_key_that_was_seen_is_refused(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        signer, init_key = Signer.of(1), HpkePublicKey(bytes(range(32)))
        first = key_package(signer, a_leaf(BOB), init_key=init_key)
        second = key_package(signer, a_leaf(BOB, origin=Lifetime(NOW - DAY, NOW + 7 * DAY)), init_key=init_key)
        assert first.encoded != second.encoded
        await rig.key_packages.upload(device, [EncodedKeyPackage(first.encoded)])
        done = await rig.key_packages.upload(device, [EncodedKeyPackage(second.encoded)])
        assert done.refused[0].reason.startswith("its init key was uploaded before")
        assert await rig.left() == 1
        await rig.key_packages.upload(device, [EncodedKeyPackage(second.encoded)], replace=True)
        assert await rig.left() == 0, "it is not the one that is in stock"


async def test_what_was_handed_out_is_refused_when_it_is_uploaded_again(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        own = packages(BOB, 1)
        await rig.key_packages.upload(device, own)
        token = await rig.token()
        assert await claim(rig, ask(token)) == own
        again = await rig.key_packages.upload(device, own)
        assert again.accepted == 0
        assert await claim(rig, ask(token)) == [KeyPackagesExhausted]


async def test_replacing_drops_the_rest_of_the_stock_in_the_same_write(path: Path) -> None:
    async with running(path) as rig:
        device, other = await rig.device("phone"), await rig.device("laptop")
        first, second = packages(BOB, 3), packages(BOB, 2)
        await rig.key_packages.upload(device, first + packages(BOB, 1, last_resort=True))
        await rig.key_packages.upload(other, packages(BOB, 1))
        done = await rig.key_packages.upload(device, second, replace=True)
        assert (done.accepted, done.refused) == (2, ())
        assert await rig.left() == 3
        token = await rig.token()
        assert set(handed_out(await rig.key_packages.claim([ask(token)] * 2))) >= {second[0]}


async def test_repeating_a_replacement_changes_nothing(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        own = packages(BOB, 3)
        await rig.key_packages.upload(device, own, replace=True)
        again = await rig.key_packages.upload(device, own, replace=True)
        assert (again.accepted, len(again.refused)) == (0, 3)
        assert [row.left for row in again.stock] == [3]


async def test_dropping_leaves_nothing_and_forgets_nothing(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        own = packages(BOB, 2) + packages(BOB, 1, last_resort=True)
        await rig.key_packages.upload(device, own)
        assert await rig.key_packages.drop(device) == 3
        assert await rig.key_packages.stock(device) == ()
        assert (await rig.key_packages.upload(device, own)).accepted == 0


async def test_a_device_keeps_no_more_than_it_may_for_each_suite(path: Path) -> None:
    async with running(path, rules=StockRules(max_lifetime_seconds=366 * DAY, device_packages=3)) as rig:
        device = await rig.device()
        done = await rig.key_packages.upload(device, packages(BOB, 2))
        assert done.accepted == 2
        done = await rig.key_packages.upload(device, packages(BOB, 2) + packages(BOB, 1, last_resort=True))
        assert [(each.index, each.reason) for each in done.refused] == [(1, "more than device_packages allows")]
        assert [(row.left, row.has_last_resort) for row in done.stock] == [(3, True)]


async def test_one_upload_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "UPLOAD_PACKAGES", 2)
    async with running(path) as rig:
        device, own = await rig.device(), packages(BOB, 3)
        with pytest.raises(TooMany):
            await rig.key_packages.upload(device, own)
        assert (await rig.key_packages.upload(device, own[:2])).accepted == 2


async def test_the_limits_of_an_upload_can_be_changed_and_hold_exactly(path: Path) -> None:
    async with running(path) as rig:
        device, (one,) = await rig.device(), packages(BOB, 1)
        rules = StockRules(max_lifetime_seconds=366 * DAY, low_stock=2, package_octets=len(one))
        rig.key_packages.change_rules(attrs.evolve(rules, package_octets=len(one) - 1))
        done = await rig.key_packages.upload(device, [one])
        assert [each.reason for each in done.refused] == ["larger than key_package_bytes allows"]
        rig.key_packages.change_rules(rules)
        assert (await rig.key_packages.upload(device, [one])).accepted == 1
        low = [rig.key_packages.is_low(*(await rig.key_packages.upload(device, packages(BOB, 1))).stock)]
        low += [rig.key_packages.is_low(*(await rig.key_packages.upload(device, packages(BOB, 1), replace=True)).stock)]
        assert low == [False, True], "with two, and with one"


async def test_the_signature_keys_of_a_devices_key_packages_are_remembered(path: Path) -> None:
    """A removed device can be found by them in groups with encrypted handshakes."""
    async with running(path) as rig:
        device = await rig.device()
        await rig.key_packages.upload(device, packages(BOB, 2))
        found = await rig.store.read(lambda tx: tx.all("SELECT device, digest FROM device_signature_keys"))
        assert found == [(device.row, provider_keys.key_digest(Signer.of(1).public))]


async def test_a_device_that_was_removed_meanwhile_uploads_nothing(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()

        def remove(tx: Tx) -> None:
            user = find_user(tx, BOB)
            assert user is not None
            delete_device(tx, user, device.name)

        await rig.store.write(remove)
        with pytest.raises(Unauthenticated):
            await rig.key_packages.upload(device, packages(BOB, 1))


# --- claim ------------------------------------------------------------------------------------------------------


async def test_each_is_handed_out_once_oldest_first_then_the_last_resort_for_ever(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        own, last = packages(BOB, 3), packages(BOB, 1, last_resort=True)
        await rig.key_packages.upload(device, last + own)
        token = await rig.token()
        assert [(await claim(rig, ask(token)))[0] for _ in range(5)] == own + last + last


async def test_without_a_last_resort_the_answer_is_exhausted(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(1)
        await claim(rig, ask(token))
        assert await claim(rig, ask(token)) == [KeyPackagesExhausted]


async def test_another_suite_or_version_is_exhausted_at_once(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(1)
        assert await claim(rig, ask(token, suite=2), ask(token, version=7)) == [KeyPackagesExhausted] * 2


async def test_64_claimers_of_1000_get_1000_different_ones_then_the_last_resort(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(1000, last_resort=True)
        got: list[EncodedKeyPackage] = []

        async def claimer() -> None:
            for _ in range(16):
                got.extend(handed_out(await rig.key_packages.claim([ask(token)])))

        async with trio.open_nursery() as claimers:
            for _ in range(64):
                claimers.start_soon(claimer)
        counts = Counter(got)
        assert len(got) == 1024
        assert len(counts) == 1001
        assert sorted(counts.values())[-2:] == [1, 24]
        await rig.key_packages.drop(Device(PROVIDER, BOB, rig.low[0].device, "phone"))
        assert await claim(rig, ask(token)) == [KeyPackagesExhausted]


async def test_the_device_asked_least_recently_answers(path: Path) -> None:
    async with running(path) as rig:
        stock = {}
        for name in ("a", "b", "c"):
            device = await rig.device(name)
            stock[name] = packages(BOB, 4)
            await rig.key_packages.upload(device, stock[name])
        token = await rig.token()
        whose = {package: name for name, own in stock.items() for package in own}
        got = [handed_out(await rig.key_packages.claim([ask(token)]))[0] for _ in range(6)]
        assert [whose[each] for each in got] == ["a", "b", "c", "a", "b", "c"]


async def test_a_device_that_ran_out_is_not_behind_one_that_was_asked_since(path: Path) -> None:
    async with running(path) as rig:
        a, b = await rig.device("a"), await rig.device("b")
        await rig.key_packages.upload(a, packages(BOB, 1))
        token = await rig.token()
        await claim(rig, ask(token))  # a is empty
        await rig.key_packages.upload(b, packages(BOB, 2))
        await claim(rig, ask(token))  # b, later
        refill = packages(BOB, 1)
        await rig.key_packages.upload(a, refill)
        assert await claim(rig, ask(token)) == refill


async def test_any_devices_ordinary_one_comes_before_any_last_resort(path: Path) -> None:
    async with running(path) as rig:
        idle, busy = await rig.device("idle"), await rig.device("busy")
        last = packages(BOB, 1, last_resort=True)
        await rig.key_packages.upload(idle, last)
        own = packages(BOB, 2)
        await rig.key_packages.upload(busy, own)
        token = await rig.token()
        assert [(await claim(rig, ask(token)))[0] for _ in range(3)] == own + last


async def test_a_bundle_reaches_every_device_once_each_by_its_last_resort_if_need_be(path: Path) -> None:
    async with running(path) as rig:
        a, b, c = [await rig.device(name) for name in ("a", "b", "c")]
        many, last, one = packages(BOB, 5), packages(BOB, 1, last_resort=True), packages(BOB, 1)
        await rig.key_packages.upload(a, many)
        await rig.key_packages.upload(b, last)
        await rig.key_packages.upload(c, one)
        token = await rig.token()
        outcomes = await rig.key_packages.claim([ask(token)] * 5)
        assert set(handed_out(outcomes)) == {many[0], last[0], one[0]}
        statuses = [outcome.result().status for outcome in outcomes]
        assert statuses == [KeyPackageStatus.OK] * 3 + [KeyPackageStatus.EXHAUSTED] * 2


async def test_a_bundle_answers_in_order_whatever_becomes_of_each(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(1)
        alice = await rig.stocked(1, user="alice")
        wrong = BearerToken(bytes(32))
        got = await claim(rig, ask(wrong), ask(alice, "alice"), ask(alice), ask(token, suite=3), ask(token))
        assert got[0] is got[2] is KeyPackageRefused
        assert isinstance(got[1], bytes)
        assert got[3] is KeyPackagesExhausted
        assert isinstance(got[4], bytes)


async def test_a_claim_that_is_one_too_many_is_refused_and_those_after_it_are_not(path: Path) -> None:
    async with running(path) as rig:
        tokens = [await rig.stocked(2, user=name) for name in ("alice", "bob")]
        requests = [ask(tokens[0], "alice"), ask(tokens[1])]
        refusal, counted = RateLimited("share", 1), list[int]()

        def count(token: TokenRow, chosen: Candidate, now: Milliseconds) -> RateLimited | None:
            counted.append(token.user)
            return refusal if len(counted) == 1 else None

        claimed = await rig.store.write(
            lambda tx: rig.key_packages.claim_within(tx, requests, rig.clock.now(), count=count)
        )
        assert [each.refusal for each in claimed.outcomes] == [refusal, None]
        assert len(set(counted)) == 2
        assert await rig.left() == 3


async def test_expired_ones_are_never_handed_out(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        (dying,) = packages(BOB, 1, expires=NOW + 60)
        dying_last = packages(BOB, 1, expires=NOW + 60, last_resort=True)
        (living,) = packages(BOB, 1)
        await rig.key_packages.upload(device, [dying, living, *dying_last])
        token = await rig.token()
        rig.clock.advance(61)
        assert await claim(rig, ask(token)) == [living]
        assert await claim(rig, ask(token)) == [KeyPackagesExhausted]


async def test_the_last_second_of_a_lifetime_still_counts(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        own = packages(BOB, 1, expires=NOW + 60)
        await rig.key_packages.upload(device, own)
        rig.clock.advance(60.999)
        assert await claim(rig, ask(await rig.token())) == own


async def test_a_new_last_resort_takes_the_place_of_the_used_one(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        old, new = packages(BOB, 1, last_resort=True), packages(BOB, 1, last_resort=True)
        await rig.key_packages.upload(device, old)
        token = await rig.token()
        assert await claim(rig, ask(token)) == old
        (row,) = await rig.key_packages.stock(device)
        assert (row.left, row.has_last_resort, row.last_resort_used) == (0, True, True)
        (row,) = (await rig.key_packages.upload(device, new)).stock
        assert (row.has_last_resort, row.last_resort_used) == (True, False)
        assert await claim(rig, ask(token)) == new


async def test_a_device_is_told_when_it_runs_low(path: Path) -> None:
    async with running(path, rules=StockRules(max_lifetime_seconds=366 * DAY, low_stock=2)) as rig:
        token = await rig.stocked(3)
        for _ in range(3):
            await claim(rig, ask(token))
        phone = rig.low[0].device
        assert rig.low == [LowStock(phone, MLS10, SUITE, 1), LowStock(phone, MLS10, SUITE, 0)]


async def test_nothing_is_told_or_written_for_a_refusal(path: Path) -> None:
    async with running(path) as rig:
        await rig.stocked(1)
        assert await claim(rig, ask(BearerToken(bytes(32)))) == [KeyPackageRefused]
        assert rig.low == []
        assert await rig.left() == 1


# --- Welcomes, time ---------------------------------------------------------------------------------------------


async def test_a_claimed_reference_leads_to_its_device_and_no_other_does(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        first, second = packages(BOB, 2)
        await rig.key_packages.upload(device, [first, second])
        await claim(rig, ask(await rig.token()))

        async def find(package: EncodedKeyPackage) -> DeviceRow | None:
            return await rig.store.read(partial(rows.device_of_ref, ref=ref_of(package)))

        assert await find(first) == device.row
        assert await find(second) is None
        rig.clock.advance(180 * DAY)
        await rig.store.write(lambda tx: sweep(tx, rig.clock.now(), abuse_window_seconds=DAY))
        assert await find(first) == device.row  # long after its lifetime
        rig.clock.advance(20 * DAY)
        await rig.store.write(lambda tx: sweep(tx, rig.clock.now(), abuse_window_seconds=DAY))
        assert await find(first) is None


async def test_a_sweep_deletes_in_pages(path: Path) -> None:
    async with running(path) as rig:
        await rig.key_packages.upload(await rig.device(), packages(BOB, 5, expires=NOW + 60))
        rig.clock.advance(61)
        left = []
        while True:
            swept = partial(sweep, now=rig.clock.now(), abuse_window_seconds=DAY, limit=2)
            if await rig.store.write(swept) < 2:
                break
            left += await rig.store.read(lambda tx: tx.all("SELECT count(*) FROM key_packages"))
        assert left == [(3,), (1,)]


async def test_sweeping_drops_what_expired_and_keeps_the_rest(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        await rig.key_packages.upload(device, packages(BOB, 2, expires=NOW + 60) + packages(BOB, 1))
        rig.clock.advance(61)
        assert await rig.store.write(lambda tx: sweep(tx, rig.clock.now(), abuse_window_seconds=DAY)) == 2
        assert await rig.left() == 1


async def test_after_a_restore_nothing_that_was_in_stock_goes_out_and_its_welcomes_come_in(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(3)
        refs = [row[0] for row in await rig.store.read(lambda tx: tx.all("SELECT ref FROM key_package_refs"))]
        assert await rig.store.write(rows.retire_unclaimed) == 3
        assert await claim(rig, ask(token)) == [KeyPackagesExhausted]
        found = [await rig.store.read(partial(rows.device_of_ref, ref=ref)) for ref in refs]
        assert found == [DeviceRow(1)] * 3, "it may have been handed out since the backup"


# --- against a model --------------------------------------------------------------------------------------------


class Claims(RuleBasedStateMachine):
    """Uploads, claims, drops and time, on one file, against lists."""

    devices = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "store.sqlite"
        self.clock = stopped_clock(NOW)
        self.stock: dict[str, list[EncodedKeyPackage]] = {name: [] for name in self.devices}
        self.last: dict[str, EncodedKeyPackage | None] = dict.fromkeys(self.devices)
        self.turns: dict[str, int] = dict.fromkeys(self.devices, 0)
        self.gone: set[EncodedKeyPackage] = set()
        self.run(self.begin)

    def run(self, step: Any) -> None:
        async def main() -> None:
            async with running(self.path, self.clock) as rig:
                await step(rig)

        trio.run(main)

    async def begin(self, rig: Rig) -> None:
        self.rows = {name: await rig.device(name) for name in self.devices}
        self.token = await rig.token()

    @rule(name=st.sampled_from(devices), count=st.integers(1, 3), last=st.booleans())
    def upload(self, name: str, count: int, last: bool) -> None:
        async def step(rig: Rig) -> None:
            own, resort = packages(BOB, count), packages(BOB, int(last), last_resort=True)
            again = list(self.gone)[:1]
            done = await rig.key_packages.upload(self.rows[name], [*own, *resort, *again])
            assert done.accepted == count + last
            self.stock[name] += own
            self.last[name] = resort[0] if resort else self.last[name]

        self.run(step)

    @rule(name=st.sampled_from(devices))
    def drop(self, name: str) -> None:
        self.run(lambda rig: rig.key_packages.drop(self.rows[name]))
        self.gone.update(self.stock[name])
        self.stock[name] = []
        self.last[name] = None

    @rule(count=st.integers(1, 4))
    def claim(self, count: int) -> None:
        async def step(rig: Rig) -> None:
            got = await claim(rig, *[ask(self.token)] * count)
            answered: set[str] = set()
            for each in got:
                free = [n for n in self.devices if n not in answered and (self.stock[n] or self.last[n])]
                if not free:
                    assert each is KeyPackagesExhausted
                    continue
                name = min(free, key=lambda n: (not self.stock[n], self.turns[n], n))
                answered.add(name)
                self.turns[name] = 1 + max(self.turns.values())
                assert each == (self.stock[name].pop(0) if self.stock[name] else self.last[name])
                if each != self.last[name]:
                    assert each not in self.gone
                    self.gone.add(each)

        self.run(step)

    def teardown(self) -> None:
        self.directory.cleanup()


Claims.TestCase.settings = settings(max_examples=8, stateful_step_count=12, deadline=None)
TestClaims = Claims.TestCase


async def test_a_device_whose_user_was_suspended_meanwhile_uploads_nothing(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()
        await rig.store.write(lambda tx: suspend_user(tx, PROVIDER, "bob", rig.clock.now()))
        with pytest.raises(Unauthenticated):
            await rig.key_packages.upload(device, packages(BOB, 1))
