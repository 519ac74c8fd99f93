"""What follows from a claim, by either way: through the gateway, and at the stock itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mimids.ds.key_packages.claims import Abuse, ClaimOutcome, LowStock
from mimids.ds.key_packages.gateway import PADDING, GatewayBounds
from mimids.ds.key_packages.stock import StockRules
from mimids.ds.key_packages.tokens import AbuseRule
from mimids.errors import KeyPackageRefused, KeyPackagesExhausted, RateLimited
from mimids.values import DeviceRow
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, BearerToken
from mimids.wire.messages import EncodedKeyPackage, KeyPackageStatus
from tests.support.mls_makers import DAY
from tests.support.rig import SUITE, UNLIMITED, Rig, ask, bundle, running

LOW = StockRules(max_lifetime_seconds=366 * DAY, low_stock=2)
ABUSE = AbuseRule("revoke", claims=2, window_seconds=DAY)


async def through_the_gateway(rig: Rig, token: BearerToken) -> bool:
    return (await rig.fetch(ask(token))).status == 200


async def at_the_stock(rig: Rig, token: BearerToken) -> bool:
    (outcome,) = await rig.key_packages.claim([ask(token)])
    return outcome.key_package is not None


@pytest.mark.parametrize("claim", [through_the_gateway, at_the_stock])
async def test_each_claim_announces_low_stock_and_abuse(
    claim: Callable[[Rig, BearerToken], Awaitable[bool]], tmp_path: Path
) -> None:
    async with running(tmp_path / "store.sqlite", rules=LOW, abuse=ABUSE) as rig:
        await rig.stocked(3)
        row, token = await rig.issue(scheme="unique")
        assert await claim(rig, token)
        assert (rig.low, rig.abuses) == ([], []), "two are left, and one claim is no abuse"
        assert await claim(rig, token)
        assert rig.low == [LowStock(DeviceRow(1), MLS10, SUITE, 1)]
        assert rig.abuses == [Abuse(row, 2, True)]
        assert not await claim(rig, token), "the token is banned"
        assert (len(rig.low), len(rig.abuses)) == (1, 1)


async def test_room_is_reserved_for_the_largest_answer_before_anything_is_claimed(tmp_path: Path) -> None:
    bounds = GatewayBounds(package_octets=1000, rate=UNLIMITED)
    async with running(tmp_path / "store.sqlite", bounds=bounds) as rig:
        token, reserved = await rig.stocked(6), list[int]()

        async def reserve(octets: int) -> None:
            assert await rig.left() == 6 - len(reserved)
            reserved.append(octets)

        await rig.gateway.answer(rig.encapsulate(encode(ask(token)))[0], reserve=reserve)
        three = bundle(*[ask(token)] * 3)
        await rig.gateway.answer(rig.encapsulate(three, path="/key-packages?bundle")[0], reserve=reserve)
        assert reserved == [PADDING * 1000, PADDING * 3000]
        assert rig.gateway.statistics().answered == 2


def test_an_outcome_has_one_status_in_a_bundle() -> None:
    package = EncodedKeyPackage(b"package")
    for outcome, status in (
        (ClaimOutcome(package), KeyPackageStatus.OK),
        (ClaimOutcome(None, KeyPackagesExhausted()), KeyPackageStatus.EXHAUSTED),
        (ClaimOutcome(None, KeyPackageRefused()), KeyPackageStatus.REFUSED),
        (ClaimOutcome(None, RateLimited("token_rate", 5)), KeyPackageStatus.REFUSED),
        (ClaimOutcome(None, status=KeyPackageStatus.EXHAUSTED), KeyPackageStatus.EXHAUSTED),
    ):
        result = outcome.result()
        assert (result.status, result.key_package) == (status, outcome.key_package)
