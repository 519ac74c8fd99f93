from __future__ import annotations

import attrs
import pytest
import trio
import trio.testing

from mimids.config import FederationSettings
from mimids.errors import (
    CertificateMismatch,
    CertificateRequired,
    MimiError,
    ProviderNotAllowed,
    RateLimited,
    Unauthenticated,
)
from mimids.http.api.admission import (
    ANSWER_OCTETS,
    PROVIDER_ANSWERS_BURST,
    Authenticator,
    CallerRates,
    PresentedToken,
    device_token,
)
from mimids.values import Anyone, Device, DeviceRow, Follower, Operator
from mimids.wire.ids import ProviderId, local_user_id
from tests.support.doubles import SpyLog, bound_hits, stopped_clock
from tests.support.rig import requests_per_minute

A, B, C = (ProviderId(f"{letter}.example") for letter in "abc")
ALICE = Device(A, local_user_id(A, "alice"), DeviceRow(1), "phone")
LISTED = FederationSettings(mode="allow-list", allow=(A, B), connect_seconds=1, answer_seconds=1)
OPEN = attrs.evolve(LISTED, mode="open", allow=())


async def known(token: PresentedToken) -> Device | None:
    return ALICE if token.reveal() == b"alices-token" else None


AUTHENTICATOR = Authenticator(A, LISTED, known)


def names(*domains: str) -> frozenset[ProviderId]:
    return frozenset(map(ProviderId, domains))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer alices-token"},
        {"authorization": "bearer   alices-token "},
        {"sec-websocket-protocol": "mimids.bearer.alices-token"},
        {"sec-websocket-protocol": "mimids, mimids.bearer.alices-token"},
    ],
)
async def test_a_device_is_authenticated_by_its_token(headers: dict[str, str]) -> None:
    assert await AUTHENTICATOR.admit(Device, headers, None) == ALICE


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer alices-token\xe9"},
        {"authorization": "Basic alices-token"},
        {"authorization": "alices-token"},
        {"sec-websocket-protocol": "mimids.bearer."},
        {"sec-websocket-protocol": "mimids"},
    ],
)
async def test_a_device_with_a_wrong_token_or_none_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        await AUTHENTICATOR.admit(Device, headers, names("a.example"))


@pytest.mark.parametrize(
    ("certificate", "headers"),
    [
        (names("b.example"), {}),
        (names("b.example"), {"from": "mimi@b.example"}),
        (names("b.example", "c.example"), {"from": "mimi@b.example"}),
        (names("b.example"), {"from": "mimi@B.Example"}),
    ],
)
async def test_a_provider_is_authenticated_by_its_certificate(
    certificate: frozenset[ProviderId], headers: dict[str, str]
) -> None:
    assert await AUTHENTICATOR.admit(Follower, headers, certificate) == Follower(B)


@pytest.mark.parametrize(
    ("certificate", "headers", "refusal"),
    [
        (None, {}, CertificateRequired),
        (None, {"from": "mimi@b.example"}, CertificateRequired),
        (names(), {}, CertificateMismatch),
        (names("b.example", "c.example"), {}, CertificateMismatch),
        (names("b.example"), {"from": "mimi@c.example"}, CertificateMismatch),
        (names("b.example"), {"from": "bob@b.example"}, CertificateMismatch),
        (names("b.example"), {"from": "mimi@b.example, mimi@c.example"}, CertificateMismatch),
        (names("c.example"), {}, ProviderNotAllowed),
        (names("a.example"), {}, ProviderNotAllowed),  # that is us, allowed or not
    ],
)
async def test_a_provider_with_another_certificate_or_not_allowed_is_refused(
    certificate: frozenset[ProviderId] | None, headers: dict[str, str], refusal: type[MimiError]
) -> None:
    with pytest.raises(refusal):
        await AUTHENTICATOR.admit(Follower, headers, certificate)


async def test_a_public_endpoint_does_not_authenticate_its_caller() -> None:
    assert await AUTHENTICATOR.admit(Anyone, {"authorization": "Bearer x"}, names("c.example")) == Anyone()


async def test_the_operator_is_not_authenticated() -> None:
    assert await AUTHENTICATOR.admit(Operator, {}, None) == Operator()


@pytest.mark.parametrize(
    ("federation", "provider", "may"),
    [(LISTED, B, True), (LISTED, C, False), (LISTED, A, False), (OPEN, C, True), (OPEN, A, False)],
)
def test_which_providers_are_allowed(federation: FederationSettings, provider: ProviderId, may: bool) -> None:
    assert federation.allows(provider, us=A) is may


def test_a_token_is_not_printed() -> None:
    assert "alices" not in repr(device_token({"authorization": "Bearer alices-token"}))


# --- rates --------------------------------------------------------------------------------------------------------


def test_a_device_has_its_requests_of_a_minute_at_once_and_then_one_after_the_other() -> None:
    log, clock = SpyLog(), stopped_clock()
    rates, other = CallerRates(requests_per_minute(3), clock, log.telemetry), attrs.evolve(ALICE, row=DeviceRow(2))
    for _ in range(3):
        rates.take(ALICE)
    with pytest.raises(RateLimited) as refused:
        rates.take(ALICE)
    assert refused.value.retry_after == 20
    rates.take(other)
    clock.advance(19.999)
    with pytest.raises(RateLimited):
        rates.take(ALICE)
    clock.advance(0.001)
    rates.take(ALICE)


@pytest.mark.parametrize(("octets", "requests"), [(ANSWER_OCTETS - 1, 0), (ANSWER_OCTETS, 1), (3 * ANSWER_OCTETS, 3)])
def test_a_large_answer_to_a_device_counts_as_more_requests(octets: int, requests: int) -> None:
    rates = CallerRates(requests_per_minute(5), stopped_clock(), SpyLog().telemetry)
    rates.owe(ALICE, octets)
    for _ in range(5 - requests):
        rates.take(ALICE)
    with pytest.raises(RateLimited):
        rates.take(ALICE)


def test_another_provider_is_refused_while_it_owes_for_answers() -> None:
    log, clock = SpyLog(), stopped_clock()
    rates = CallerRates(requests_per_minute(1), clock, log.telemetry)
    rates.owe(Follower(B), PROVIDER_ANSWERS_BURST - 1)
    rates.take(Follower(B))
    with pytest.raises(RateLimited):
        rates.take(Follower(B))
    assert bound_hits(log.telemetry, "provider-answers") == 1
    rates.take(Follower(C))
    clock.advance(0.001)
    rates.take(Follower(B))


async def test_the_frames_of_a_device_wait_for_its_rate(autojump_clock: trio.testing.MockClock) -> None:
    log, clock = SpyLog(), stopped_clock()
    rates = CallerRates(requests_per_minute(1), clock, log.telemetry)
    await rates.wait(ALICE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rates.wait, ALICE)
        await trio.testing.wait_all_tasks_blocked()
        assert clock.sleepers == 1
        clock.advance(60)
    assert bound_hits(log.telemetry, "device-frames") == 1
    await rates.wait(Anyone())
