"""Each limit of the configuration allows exactly as much as it says, and names itself in the refusal of more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

import attrs
import pytest

from mimids.config import parse
from mimids.config_limits import Limits
from mimids.ds.key_packages import tokens
from mimids.ds.key_packages.stock import StockRules
from mimids.ds.key_packages.tokens import TokenTerms
from mimids.ds.limits.budgets import Budgets
from mimids.ds.limits.new_providers import NewProviders
from mimids.ds.limits.rates import ProviderRates, UserRates
from mimids.ds.limits.sizes import check_sizes
from mimids.ds.limits.welcomes import WelcomeLimits
from mimids.errors import MimiError, QuotaExceeded, RateLimited, TooLarge, TooMany
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import HpkeCiphertext
from mimids.mls.welcome import EncryptedGroupSecrets, Welcome
from mimids.store.engine.transaction import Tx
from mimids.testing.clock import MovableClock
from mimids.values import Device, DeviceRow, Follower, UserRow
from mimids.wire.ids import MLS10, CipherSuite, KeyPackageRef, ProviderId, local_user_id
from mimids.wire.messages import CommitData, SendRequest, WelcomeData
from tests.support.doubles import stopped_clock
from tests.support.federation import COMMIT, Room, device
from tests.support.mls_makers import DAY
from tests.support.provider import Assembled
from tests.support.rig import PROVIDER, packages, running
from tests.support.stored import provider

B, C = Follower(ProviderId("b.example")), Follower(ProviderId("c.example"))
MEBI = 1 << 20


def limits_with(changed: dict[str, int]) -> Limits:
    """Return the default limits with some changed."""
    return parse({"provider": "a.example", "limits": changed}, Path()).limits


def welcome_data(providers: int) -> WelcomeData:
    """Return a Welcome with one secret for each of so many providers."""
    secrets = tuple(
        EncryptedGroupSecrets(KeyPackageRef(bytes([n]) * 32), HpkeCiphertext(b"k", b"c")) for n in range(providers)
    )
    message = MLSMessage(MLS10, WireFormat.WELCOME, Welcome(CipherSuite(1), secrets, b"info"))
    return WelcomeData(message, tuple(ProviderId(f"p{n}.example") for n in range(providers)))


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["message_bytes", "group_info_bytes", "welcome_bytes"])
def test_an_object_may_be_as_large_as_its_limit(limit: str) -> None:
    room = Room()
    message, welcome = room.message("commit", kind=COMMIT), welcome_data(2)
    data = CommitData(Room.new_key(), room.message("in place of a GroupInfo"), welcome)
    assert data.group_info is not None
    measured = {"message_bytes": message, "group_info_bytes": data.group_info, "welcome_bytes": welcome.welcome}
    octets = len(measured[limit].encoded)
    check_sizes(limits_with({limit: octets}), message, data)
    with pytest.raises(TooLarge) as refused:
        check_sizes(limits_with({limit: octets - 1}), message, data)
    assert refused.value.members == {"limit": limit, "octets": octets}


async def test_a_key_package_may_be_as_large_as_its_limit(tmp_path: Path) -> None:
    bob = local_user_id(PROVIDER, "bob")
    first, second = packages(bob, 2)
    for allowed, accepted in ((len(first), 1), (len(first) - 1, 0)):
        rules = StockRules(max_lifetime_seconds=366 * DAY, package_octets=allowed)
        async with running(tmp_path / f"{accepted}.sqlite", rules=rules) as rig:
            assert (
                await rig.key_packages.upload(await rig.device(), [first if accepted else second])
            ).accepted == accepted


async def test_a_batch_may_have_as_many_messages_as_its_limit(tmp_path: Path) -> None:
    async with provider(tmp_path, limits={"send_batch_messages": 3}) as (hub, _):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        messages = [room.send(f"{n}") for n in range(4)]
        assert len(await hub.services.hub.send_batch(messages[:3], device(hub))) == 3
        with pytest.raises(TooMany) as refused:
            await hub.services.hub.send_batch(messages, device(hub))
        assert refused.value.members == {"limit": "send_batch_messages", "items": 4}


def test_a_welcome_may_go_to_as_many_providers_as_its_limit() -> None:
    clock, limits = stopped_clock(), limits_with({"welcome_providers": 3})
    counts = WelcomeLimits(limits, clock, NewProviders.of(limits, clock, lambda _: True))
    assert counts.count(B, welcome_data(3)) is None
    refusal = counts.count(B, welcome_data(4))
    assert isinstance(refusal, TooMany)
    assert refusal.members == {"limit": "welcome_providers", "items": 4}


# --- quotas -------------------------------------------------------------------------------------------------------

Take = Callable[[Assembled, Room, int], Awaitable[object]]


async def create(hub: Assembled, room: Room, number: int) -> None:
    await hub.services.hub.create_group(Room(f"group {number}").creation(), device(hub))


async def open_apart(hub: Assembled, room: Room, number: int) -> object:
    return await hub.services.hub.send(room.send("apart", Room.new_key()), device(hub))


async def open_apart_as_provider(hub: Assembled, room: Room, number: int) -> object:
    return await hub.services.hub.send(room.send("apart", Room.new_key()), B)


def branching(room: Room, number: int) -> SendRequest:
    return SendRequest(room.message(f"{number}", kind=COMMIT), room.key, CommitData(Room.new_key(), None, None))


async def branch(hub: Assembled, room: Room, number: int) -> object:
    return await hub.services.hub.send(branching(room, number), device(hub))


async def branch_as_provider(hub: Assembled, room: Room, number: int) -> object:
    return await hub.services.hub.send(branching(room, number), B)


async def issue_token(hub: Assembled, room: Room, number: int) -> object:
    quota, now = hub.config.limits.device_contact_tokens, hub.services.clock.now()

    def issue(tx: Tx) -> object:
        try:
            return tokens.issue(tx, UserRow(1), TokenTerms("shared"), now, device=device(hub).row, quota=quota)
        except MimiError as error:
            return error

    issued = await hub.services.store.write(issue)
    if isinstance(issued, MimiError):
        raise issued
    return issued


QUOTAS: dict[str, Take] = {
    "device_groups": create,
    "device_detached_partitions": open_apart,
    "provider_detached_partitions": open_apart_as_provider,
    "device_branches": branch,
    "provider_branches": branch_as_provider,
    "device_contact_tokens": issue_token,
}


@pytest.mark.parametrize("quota", QUOTAS)
async def test_a_quota_is_used_up_by_as_many_as_it_says(quota: str, tmp_path: Path) -> None:
    own = quota == "device_groups"  # the group that the others need counts too
    async with provider(tmp_path, limits={quota: 2}) as (hub, _):
        room = Room()
        if not own:
            await hub.services.hub.create_group(room.creation(), device(hub))
        for number in range(2):
            await QUOTAS[quota](hub, room, number)
        with pytest.raises(QuotaExceeded) as refused:
            await QUOTAS[quota](hub, room, 2)
        assert refused.value.members == {"limit": quota}


@pytest.mark.parametrize("quota", QUOTAS)
async def test_a_quota_of_zero_is_no_quota(quota: str, tmp_path: Path) -> None:
    async with provider(tmp_path, limits={quota: 0}) as (hub, _):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        for number in range(3):
            await QUOTAS[quota](hub, room, number)


# --- rates --------------------------------------------------------------------------------------------------------

A_DOMAIN = ProviderId("a.example")
PHONE = Device(A_DOMAIN, local_user_id(A_DOMAIN, "alice"), DeviceRow(1), "phone")
TABLET = attrs.evolve(PHONE, row=DeviceRow(2), name="tablet")
OTHER = Device(A_DOMAIN, local_user_id(A_DOMAIN, "bob"), DeviceRow(3), "phone")
Count = Callable[[Limits, MovableClock], Callable[[Any], MimiError | None]]


def refusal_of(call: Callable[[Any], object]) -> Callable[[Any], MimiError | None]:
    def ask(sender: Any) -> MimiError | None:
        try:
            call(sender)
        except MimiError as error:
            return error
        return None

    return ask


def user_sends(limits: Limits, clock: MovableClock) -> Callable[[Any], MimiError | None]:
    rates = UserRates(limits, clock)
    return lambda sender: rates.take_sends(sender, 1)[1]


def user_joins(limits: Limits, clock: MovableClock) -> Callable[[Any], MimiError | None]:
    return refusal_of(UserRates(limits, clock).take_join)


def user_fetches(limits: Limits, clock: MovableClock) -> Callable[[Any], MimiError | None]:
    return refusal_of(UserRates(limits, clock).take_fetch)


def provider_sends(limits: Limits, clock: MovableClock) -> Callable[[Any], MimiError | None]:
    rates = ProviderRates(limits, clock)
    return lambda sender: rates.take_sends(sender, 1)[1]


def provider_joins(limits: Limits, clock: MovableClock) -> Callable[[Any], MimiError | None]:
    return refusal_of(ProviderRates(limits, clock).take_join)


def octets(limits: Limits, clock: MovableClock) -> Callable[[Any], MimiError | None]:
    budgets = Budgets(limits, clock)
    return lambda sender: budgets.take(sender, [16 * MEBI])[1]


def new_providers(limits: Limits, clock: MovableClock) -> Callable[[Any], MimiError | None]:
    counts, names = NewProviders.of(limits, clock, lambda _: True), count()
    return refusal_of(lambda sender: counts.take(sender, [ProviderId(f"new{next(names)}.example")]))


HOUR = 3600
# The limits to set, three at once; how to ask; who asks, who has an allowance of his own; the seconds until one more.
RATES: list[tuple[dict[str, int], Count, Any, Any, float]] = [
    ({"device_sends_per_second": 2, "device_sends_burst": 3}, user_sends, PHONE, TABLET, 0.5),
    ({"user_sends_per_second": 2, "user_sends_burst": 3}, user_sends, PHONE, OTHER, 0.5),
    ({"device_joins_per_hour": 4, "device_joins_burst": 3}, user_joins, PHONE, TABLET, HOUR / 4),
    ({"user_joins_per_hour": 4, "user_joins_burst": 3}, user_joins, PHONE, OTHER, HOUR / 4),
    ({"user_fetches_per_minute": 6, "user_fetches_burst": 3}, user_fetches, PHONE, OTHER, 10),
    ({"provider_sends_per_second": 2, "provider_sends_burst": 3}, provider_sends, B, C, 0.5),
    ({"provider_joins_per_hour": 4, "provider_joins_burst": 3}, provider_joins, B, C, HOUR / 4),
    ({"device_bytes_per_day": 64 * MEBI, "device_bytes_burst": 48 * MEBI}, octets, PHONE, TABLET, DAY / 4),
    ({"provider_bytes_per_day": 64 * MEBI, "provider_bytes_burst": 48 * MEBI}, octets, B, C, DAY / 4),
    ({"device_new_providers_per_day": 3}, new_providers, PHONE, TABLET, DAY / 3),
    ({"provider_new_providers_per_day": 3}, new_providers, B, C, DAY / 3),
]


@pytest.mark.parametrize(
    ("limits", "ask_by", "sender", "other", "seconds"), RATES, ids=[next(iter(r[0])) for r in RATES]
)
def test_a_rate_allows_its_burst_and_then_one_after_the_other(
    limits: dict[str, int], ask_by: Count, sender: Any, other: Any, seconds: float
) -> None:
    clock = stopped_clock()
    ask = ask_by(limits_with(limits), clock)
    assert [ask(sender) for _ in range(3)] == [None] * 3
    refusal = ask(sender)
    assert isinstance(refusal, RateLimited)
    assert refusal.members == {"limit": next(iter(limits)), "retry_after": ceil(seconds)}
    assert ask(other) is None
    clock.advance(seconds - 0.001)
    assert isinstance(ask(sender), RateLimited)
    clock.advance(0.001)
    assert ask(sender) is None
    assert isinstance(ask(sender), RateLimited)


@pytest.mark.parametrize(
    ("limits", "ask_by", "sender", "other", "seconds"), RATES, ids=[next(iter(r[0])) for r in RATES]
)
def test_a_rate_of_zero_is_no_limit(
    limits: dict[str, int], ask_by: Count, sender: Any, other: Any, seconds: float
) -> None:
    ask = ask_by(limits_with({**limits, next(iter(limits)): 0}), stopped_clock())
    assert [ask(sender) for _ in range(5)] == [None] * 5


# --- all ----------------------------------------------------------------------------------------------------------

# The tests of limits that have none here: the test file that reaches the limit, below tests/.
ELSEWHERE = {
    "max_body_bytes": "http/api/test_bad_input.py",  # this and the other bodies: by the row of each endpoint
    "ohttp_bytes": "http/api/test_bad_input.py",
    "push_bytes": "http/api/test_bad_input.py",
    "report_bytes": "http/api/test_bad_input.py",
    "body_seconds": "http/api/test_request_bodies.py",
    "receive_bytes": "ds/following/test_recovery.py",
    "frame_bytes": "http/server/test_protocols.py",
    "receive_wait_seconds": "http/api/test_parameters.py",
    "device_requests_per_minute": "http/api/test_admission.py",
    "device_fetches_per_minute": "ds/key_packages/test_relay.py",
    "device_fetches_burst": "ds/key_packages/test_relay.py",
    "gateway_address_requests_per_second": "abuse/test_gateway.py",
    "gateway_address_requests_burst": "abuse/test_gateway.py",
    "gateway_requests_per_second": "ds/key_packages/test_gateway.py",
    "gateway_requests_burst": "ds/key_packages/test_gateway.py",
    "device_streams": "abuse/test_streams.py",
    "device_branch_bytes": "ds/limits/test_budgets.py",
    "provider_branch_bytes": "ds/limits/test_budgets.py",
    "device_reports_per_day": "ds/terms/test_reports.py",
    "provider_reports_per_day": "ds/terms/test_reports.py",
    "provider_unmatched_bytes": "ds/limits/test_budgets.py",
}


def test_every_limit_is_reached_by_some_test() -> None:
    sizes = {"message_bytes", "group_info_bytes", "welcome_bytes", "key_package_bytes"}
    here = sizes | {"send_batch_messages", "welcome_providers", *QUOTAS}
    here |= {name for limits, *_ in RATES for name in limits}
    assert not here & set(ELSEWHERE)
    assert here | set(ELSEWHERE) == {field.name for field in attrs.fields(Limits)}
    assert [each for each in ELSEWHERE.values() if not (Path(__file__).parents[2] / each).exists()] == []
