from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.key_packages.claims import Abuse
from mimids.ds.key_packages.tokens import AbuseRule, TokenTerms, ban, issue, list_tokens, revoke
from mimids.errors import KeyPackageRefused, Malformed, MimiError, NotFound, QuotaExceeded, RateLimited
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.suites import SUITES
from mimids.store import key_packages, tokens
from mimids.store.accounts import find_user
from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds, TokenId, UserRow
from mimids.wire.declare import decode, encode
from mimids.wire.ids import BearerToken, local_user_id
from tests.support.mls_makers import DAY, NOW
from tests.support.rig import PROVIDER, Rig, ask, packages, problem_type, running, traced

BOB = local_user_id(PROVIDER, "bob")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def row_of(tx: Tx, user: str = "bob") -> UserRow:
    row = find_user(tx, local_user_id(PROVIDER, user))
    assert row is not None
    return row


def revoke_of(user: str, token: TokenId, now: Milliseconds, tx: Tx) -> None:
    revoke(tx, row_of(tx, user), token, now)


async def outcome(rig: Rig, token: BearerToken, user: str = "bob") -> MimiError | None:
    (got,) = await rig.key_packages.claim([ask(token, user)])
    return got.refusal


async def test_a_token_is_for_its_own_user_only(path: Path) -> None:
    async with running(path) as rig:
        bob = await rig.stocked(1)
        await rig.stocked(1, user="alice")
        assert isinstance(await outcome(rig, bob, "alice"), KeyPackageRefused)
        assert await outcome(rig, bob) is None


async def test_the_files_hold_no_bearer_token(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(1)
        assert await outcome(rig, token) is None
        for file in path.parent.iterdir():
            assert token.reveal() not in file.read_bytes()


async def test_an_expired_token_is_refused(path: Path) -> None:
    async with running(path) as rig:
        await rig.stocked(2)
        token = await rig.token(expires_at=rig.clock.now() + 1000)
        rig.clock.advance(0.999)
        assert await outcome(rig, token) is None
        rig.clock.advance(0.001)
        assert isinstance(await outcome(rig, token), KeyPackageRefused)


async def test_a_token_is_used_up_by_what_it_got_and_not_by_what_it_did_not(path: Path) -> None:
    async with running(path) as rig:
        await rig.stocked(0)
        token = await rig.token(uses=2)
        await outcome(rig, token)  # exhausted: nothing was taken
        device = await rig.device("laptop")
        await rig.key_packages.upload(device, packages(BOB, 5))
        got = [await outcome(rig, token) for _ in range(3)]
        assert got[:2] == [None, None]
        assert isinstance(got[2], KeyPackageRefused)


async def test_a_rate_lets_so_many_through_in_each_window(path: Path) -> None:
    async with running(path) as rig:
        await rig.stocked(10)
        token = await rig.token(rate_claims=3, rate_seconds=60)
        assert [await outcome(rig, token) for _ in range(3)] == [None] * 3
        rig.clock.advance(30)
        refused = await outcome(rig, token)
        assert isinstance(refused, RateLimited)
        assert refused.members["retry_after"] == 30
        rig.clock.advance(30)
        assert await outcome(rig, token) is None


async def test_windows_that_began_while_the_clock_was_ahead_do_not_last(path: Path) -> None:
    async with running(path, abuse=AbuseRule(claims=4, action="revoke")) as rig:
        await rig.stocked(20)
        token = await rig.token(scheme="unique", rate_claims=3, rate_seconds=60)
        rig.clock.jump(2 * DAY)
        assert [await outcome(rig, token) for _ in range(3)] == [None] * 3
        assert isinstance(await outcome(rig, token), RateLimited)
        rig.clock.jump(-2 * DAY)
        assert [await outcome(rig, token) for _ in range(3)] == [None] * 3
        assert isinstance(await outcome(rig, token), RateLimited)
        rig.clock.advance(60)
        assert await outcome(rig, token) is None  # the fourth claim of this window of the abuse rule
        assert isinstance(await outcome(rig, token), KeyPackageRefused)


async def test_revocation_holds_at_once_and_for_one_token_only(path: Path) -> None:
    async with running(path) as rig:
        other = await rig.stocked(5)
        row, token = await rig.issue()
        assert await outcome(rig, token) is None
        await rig.store.write(lambda tx: revoke(tx, row_of(tx), row, rig.clock.now()))
        assert isinstance(await outcome(rig, token), KeyPackageRefused)
        assert await outcome(rig, other) is None


async def test_only_its_own_user_revokes_a_token(path: Path) -> None:
    async with running(path) as rig:
        await rig.stocked(1)
        row, token = await rig.issue()
        await rig.stocked(0, user="mallory")
        for wrong in (row, TokenId(row + 1000)):
            with pytest.raises(NotFound):
                await rig.store.write(partial(revoke_of, "mallory", wrong, rig.clock.now()))
        assert await outcome(rig, token) is None


@pytest.mark.sqlite_file("it asks SQLite which statements it runs")
async def test_every_refusal_is_the_same_bytes_after_the_same_statements(path: Path) -> None:
    """Unknown user, wrong, foreign, revoked, banned, expired and used-up tokens cannot be told apart."""
    async with running(path) as rig:
        good = await rig.stocked(9)
        foreign = await rig.stocked(1, user="alice")
        revoked, banned = await rig.issue(), await rig.issue(scheme="unique")
        expired, used = await rig.token(expires_at=rig.clock.now() + 1), await rig.token(uses=1)
        now = rig.clock.now()
        await rig.store.write(lambda tx: revoke(tx, row_of(tx), revoked[0], now))
        await rig.store.write(lambda tx: ban(tx, row_of(tx), banned[0], now))
        assert await outcome(rig, used) is None
        rig.clock.advance(1)
        wrong = BearerToken(bytes(32))
        requests = [
            ask(wrong),
            ask(wrong, "nobody"),
            ask(good, "nobody"),
            ask(foreign),
            ask(revoked[1]),
            ask(banned[1]),
            ask(expired),
            ask(used),
        ]
        answers = [await rig.fetch(request) for request in requests]
        assert all(answer == answers[0] for answer in answers)
        assert problem_type(answers[0]) == (403, "key-package-refused")

        async def statements(content: bytes) -> list[str]:
            """Run the gateway's own transaction beside the store, and return its statements without their values."""
            with traced(path) as (tx, run):
                await rig.decide(content, tx)
                return [re.sub(r"x'[0-9a-f]*'|\b[0-9]+\b", "?", each, flags=re.IGNORECASE) for each in run]

        traces = [await statements(encode(request)) for request in requests]
        assert all(trace == traces[0] for trace in traces)
        assert len(traces[0]) == 6
        assert len(await statements(encode(ask(good)))) > 6


@pytest.mark.parametrize(
    "terms",
    [
        {"scheme": "rfc9578"},
        {"uses": 0},
        {"uses": -1},
        {"uses": 1 << 31},
        {"expires_at": NOW * 1000},
        {"expires_at": 1 << 53},
        {"rate_claims": 1},
        {"rate_seconds": 1},
        {"rate_claims": 0, "rate_seconds": 1},
        {"label": "x" * 201},
    ],
)
async def test_terms_that_make_no_sense_are_refused(path: Path, terms: dict[str, Any]) -> None:
    async with running(path) as rig:
        await rig.device()
        with pytest.raises(Malformed):
            await rig.issue(**terms)


@pytest.mark.parametrize(
    "terms",
    [
        {"expires_at": NOW * 1000 + 1},
        {"expires_at": (1 << 53) - 1},
        {"uses": 1, "rate_claims": 1, "rate_seconds": 1},
        {"uses": (1 << 31) - 1, "rate_claims": (1 << 31) - 1, "rate_seconds": (1 << 31) - 1},
        {"label": "x" * 200},
    ],
)
async def test_terms_at_their_bounds_are_taken(path: Path, terms: dict[str, Any]) -> None:
    async with running(path) as rig:
        await rig.stocked(1)
        assert await outcome(rig, await rig.token(**terms)) is None


async def test_a_device_issues_so_many(path: Path) -> None:
    async with running(path) as rig:
        device = await rig.device()

        def one(tx: Tx, of: DeviceRow | None = device.row) -> TokenId:
            return issue(tx, row_of(tx), TokenTerms("unique"), rig.clock.now(), device=of, quota=2).id

        first = await rig.store.write(one)
        await rig.store.write(one)
        await rig.store.write(lambda tx: revoke(tx, row_of(tx), first, rig.clock.now()))
        with pytest.raises(QuotaExceeded):
            await rig.store.write(one)
        await rig.store.write(lambda tx: one(tx, None))


async def test_a_list_tells_all_but_the_token(path: Path) -> None:
    async with running(path) as rig:
        await rig.stocked(1)
        row, token = await rig.issue(scheme="unique", label="Alice", uses=3)
        await outcome(rig, token)
        listed = await rig.store.read(lambda tx: list_tokens(tx, row_of(tx)))
        assert [(each.scheme, each.label, each.state, each.uses_left) for each in listed] == [
            ("shared", "", "live", None),
            ("unique", "Alice", "live", 2),
        ]
        assert listed[1].id == row


async def test_ended_tokens_are_forgotten_after_a_while(path: Path) -> None:
    async with running(path) as rig:
        await rig.stocked(1)
        row, _ = await rig.issue()
        await rig.issue(expires_at=rig.clock.now() + 1)
        await rig.store.write(lambda tx: revoke(tx, row_of(tx), row, rig.clock.now()))
        rig.clock.advance(DAY)
        assert await rig.store.write(lambda tx: tokens.sweep(tx, rig.clock.now())) == 2
        assert len(await rig.store.read(lambda tx: list_tokens(tx, row_of(tx)))) == 1


# --- the abuse rule ---------------------------------------------------------------------------------------------

RULE = AbuseRule("revoke", claims=3, window_seconds=DAY)


async def claims(rig: Rig, token: BearerToken, count: int, *, welcomed: bool = False) -> list[MimiError | None]:
    got: list[MimiError | None] = []
    for _ in range(count):
        (one,) = await rig.key_packages.claim([ask(token)])
        got.append(one.refusal)
        if welcomed and one.key_package is not None:
            ref = decode(KeyPackageIn, one.key_package).ref(SUITES[1])
            await rig.store.write(partial(key_packages.note_welcome, ref=ref))
    return got


async def test_claims_that_end_in_no_welcome_end_a_unique_token(path: Path) -> None:
    async with running(path, abuse=RULE) as rig:
        await rig.stocked(10)
        row, token = await rig.issue(scheme="unique")
        got = await claims(rig, token, 4)
        assert got[:3] == [None] * 3
        assert isinstance(got[3], KeyPackageRefused)
        assert rig.abuses == [Abuse(row, 3, True)]
        listed = await rig.store.read(lambda tx: list_tokens(tx, row_of(tx)))
        assert listed[-1].state == "banned"


async def test_a_shared_token_is_never_ended_by_itself(path: Path) -> None:
    async with running(path, abuse=RULE) as rig:
        token = await rig.stocked(10)
        assert await claims(rig, token, 6) == [None] * 6
        assert [(each.open_claims, each.banned) for each in rig.abuses] == [(3, False)]


async def test_a_warning_ends_nothing(path: Path) -> None:
    async with running(path, abuse=AbuseRule("warn", 3, DAY)) as rig:
        await rig.stocked(10)
        _, token = await rig.issue(scheme="unique")
        assert await claims(rig, token, 5) == [None] * 5
        assert [each.banned for each in rig.abuses] == [False]
        listed = await rig.store.read(lambda tx: list_tokens(tx, row_of(tx)))
        assert listed[-1].warned_at == rig.clock.now()


async def test_off_is_off(path: Path) -> None:
    async with running(path, abuse=AbuseRule("off", 1, DAY)) as rig:
        await rig.stocked(3)
        _, token = await rig.issue(scheme="unique")
        assert await claims(rig, token, 3) == [None] * 3
        assert rig.abuses == []


async def test_claims_that_end_in_a_welcome_do_not_count(path: Path) -> None:
    async with running(path, abuse=RULE) as rig:
        await rig.stocked(10)
        _, token = await rig.issue(scheme="unique")
        assert await claims(rig, token, 8, welcomed=True) == [None] * 8
        assert rig.abuses == []


async def test_a_welcome_counts_once_however_often_it_comes(path: Path) -> None:
    async with running(path, abuse=RULE) as rig:
        await rig.stocked(10)
        _, token = await rig.issue(scheme="unique")
        (one,) = await rig.key_packages.claim([ask(token)])
        assert one.key_package is not None
        ref = decode(KeyPackageIn, one.key_package).ref(SUITES[1])
        for _ in range(5):
            await rig.store.write(lambda tx: key_packages.note_welcome(tx, ref))
        assert (await claims(rig, token, 4))[:3] == [None] * 3
        assert len(rig.abuses) == 1


async def test_claims_of_an_earlier_window_do_not_count(path: Path) -> None:
    async with running(path, abuse=RULE) as rig:
        await rig.stocked(10)
        _, token = await rig.issue(scheme="unique")
        await claims(rig, token, 2)
        rig.clock.advance(DAY)
        assert await claims(rig, token, 2) == [None] * 2
        assert rig.abuses == []
