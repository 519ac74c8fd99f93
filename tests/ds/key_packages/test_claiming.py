"""Claims of several requests in one transaction hand out what they would hand out in transactions of their own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.key_packages.claims import ClaimedPackages
from mimids.ds.key_packages.stock import StockRules
from mimids.ds.key_packages.tokens import AbuseRule
from mimids.store.engine.transaction import Tx
from mimids.wire.ids import BearerToken
from mimids.wire.messages import KeyPackageRequest
from tests.support.mls_makers import DAY, NOW
from tests.support.rig import Rig, ask, packages, running

TABLES = (
    "SELECT * FROM key_packages ORDER BY id",
    "SELECT id, claimed_at, token, turn FROM key_package_refs ORDER BY id",
    "SELECT id, state, warned_at, uses_left, rate_started_at, rate_used, abuse_started_at, unanswered_claims"
    " FROM tokens ORDER BY id",
)


class Undo(Exception):
    """Ends a transaction without its changes; has what the claims returned, and the rows after them."""

    def __init__(self, claimed: list[ClaimedPackages], rows: list[Any]) -> None:
        self.found = claimed, rows


async def outcome(rig: Rig, requests: Sequence[Sequence[KeyPackageRequest]], *, together: bool) -> Any:
    """Return what the claims of these requests return, and the rows after them; undo all of it."""
    now = rig.clock.now()

    def work(tx: Tx) -> None:
        if together:
            claims = rig.key_packages.begin_claims(tx, now, requests=len(requests))
            claimed = [claims.claim(each) for each in requests]
            claims.write()
        else:
            claimed = [rig.key_packages.claim_within(tx, each, now) for each in requests]
        raise Undo(claimed, [tx.all(table) for table in TABLES])

    with pytest.raises(Undo) as undone:
        await rig.store.write(work)
    return undone.value.found


def simplified(claimed: Sequence[ClaimedPackages]) -> list[Any]:
    """Return claims without the identity of refusals."""
    return [
        (
            [(each.key_package, type(each.refusal), each.row, each.last_resort) for each in one.outcomes],
            one.low,
            one.abuses,
        )
        for one in claimed
    ]


@pytest.mark.parametrize("seed", range(12))
async def test_together_they_get_what_they_get_one_after_the_other(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    abuse = AbuseRule(action=chance.choice(("warn", "revoke", "off")), claims=chance.randint(1, 8))
    rules = StockRules(max_lifetime_seconds=366 * DAY, low_stock=chance.randint(0, 6))
    async with running(tmp_path / "store.sqlite", abuse=abuse, rules=rules) as rig:
        tokens = [BearerToken(bytes(32))]
        for user in ("bob", "alice"):
            for number in range(chance.randint(1, 4)):
                device = await rig.device(f"phone{number}", user)
                own = packages(device.user_id, chance.randint(0, 9))
                own += packages(device.user_id, chance.randint(0, 1), last_resort=True)
                own += packages(device.user_id, chance.randint(0, 2), expires=NOW + 60)
                chance.shuffle(own)
                await rig.key_packages.upload(device, own)
            tokens += [
                await rig.token(user),
                await rig.token(user, "unique", uses=chance.randint(1, 4)),
                await rig.token(user, "unique", rate_claims=chance.randint(1, 4), rate_seconds=60),
            ]
        rig.clock.advance(chance.choice((0, 61)))
        requests = [
            [
                ask(chance.choice(tokens), chance.choice(("bob", "bob", "alice")))
                for _ in range(chance.choice((1, 1, 5)))
            ]
            for _ in range(24)
        ]
        alone, rows_alone = await outcome(rig, requests, together=False)
        together, rows_together = await outcome(rig, requests, together=True)
        assert simplified(together) == simplified(alone)
        assert rows_together == rows_alone
        assert any(each.consumed for each in together)
