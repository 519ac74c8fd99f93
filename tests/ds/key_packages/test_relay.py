from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.ds.key_packages import relay as relay_module
from mimids.ds.key_packages.gateway_keys import KeysAnswer
from mimids.ds.key_packages.relay import OwnGateway, Relay, RelayBounds
from mimids.ds.limits.new_providers import NewProviders
from mimids.ds.limits.rates import Rate
from mimids.ds.ports import RelayedAnswer
from mimids.errors import (
    Busy,
    PeerFailed,
    PeerUnavailable,
    ProviderNotAllowed,
    RateLimited,
    TooLarge,
)
from mimids.http.api.devices import DEVICES
from mimids.wire.ids import ProviderId
from tests.support.doubles import Called, stopped_clock
from tests.support.inmemory import InMemory
from tests.support.mls_makers import NOW
from tests.support.provider import Authority, assembled
from tests.support.relaying import (
    KEYS,
    LAPTOP,
    PHONE,
    SEALED,
    A,
    B,
    C,
    FakePeers,
    answered,
    our_gateway,
    problem,
    relay,
)
from tests.support.rig import UNLIMITED


@pytest.mark.parametrize("provider", [A, B])
async def test_a_request_whose_answer_would_find_no_room_is_not_sent(provider: ProviderId) -> None:
    async def no_room(octets: int) -> None:
        raise Busy

    peers = FakePeers()
    with pytest.raises(Busy):
        await relay(peers).forward(PHONE, provider, b"sealed", reserve=no_room)
    assert peers.asked == []


async def test_the_octets_of_cached_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "KEYS_CACHED_OCTETS", 4000)
    relayed = Relay(
        peers := FakePeers(answered(bytes(1000), KEYS)),
        clock := stopped_clock(NOW),
        OwnGateway(provider=A, answer=our_gateway, keys=lambda: KeysAnswer(b"", "", 0)),
        lambda provider: True,
        RelayBounds(fetches=UNLIMITED),
        NewProviders(UNLIMITED, UNLIMITED, clock),
    )
    names = [ProviderId(f"p{n}.example") for n in range(10)]
    for name in names:
        await relayed.ohttp_keys(PHONE, name)
    assert relayed.statistics().cached_keys == 2
    asked = len(peers.asked)
    await relayed.ohttp_keys(PHONE, names[-1])
    assert len(peers.asked) == asked, "the newest are kept"
    await relayed.ohttp_keys(PHONE, names[0])
    assert len(peers.asked) == asked + 1


async def test_a_request_goes_to_the_gateway_and_its_answer_back_as_they_are() -> None:
    peers = FakePeers()
    assert await relay(peers).forward(PHONE, B, b"request") == answered(b"sealed", SEALED)
    assert peers.asked == [(B, "POST", "/.well-known/ohttp-gateway", b"request", "message/ohttp-req")]


async def test_what_the_gateway_is_sent_does_not_depend_on_the_device() -> None:
    peers = FakePeers()
    shared = relay(peers)
    await shared.forward(PHONE, B, b"request")
    await shared.forward(LAPTOP, B, b"request")
    assert peers.asked[0] == peers.asked[1]


async def test_our_own_gateway_is_reached_without_a_network() -> None:
    peers = FakePeers()
    own = relay(peers)
    assert await own.forward(PHONE, A, b"x") == answered(b"ours:x", SEALED)
    assert (await own.ohttp_keys(PHONE, A)).signature == "our signature"
    assert peers.asked == []


async def test_only_known_providers_are_contacted() -> None:
    peers = FakePeers()
    with pytest.raises(ProviderNotAllowed):
        await relay(peers).forward(PHONE, ProviderId("d.example"), b"x")
    with pytest.raises(ProviderNotAllowed):
        await relay(peers).ohttp_keys(PHONE, ProviderId("d.example"))
    assert peers.asked == []


async def test_requests_and_answers_are_bounded_in_size() -> None:
    peers = FakePeers(answered(bytes(11), SEALED))
    small = relay(peers, octets=10)
    with pytest.raises(TooLarge):
        await small.forward(PHONE, B, bytes(11))
    assert peers.asked == []
    with pytest.raises(PeerFailed):
        await small.forward(PHONE, B, bytes(10))


async def test_a_gateway_that_does_not_answer_is_not_waited_for_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peers = FakePeers()
    peers.hold = trio.Event()
    with pytest.raises(PeerUnavailable):
        await relay(peers, seconds=30).forward(PHONE, B, b"x")
    assert trio.current_time() == pytest.approx(30, abs=1)


async def test_only_so_many_are_relayed_at_once() -> None:
    peers = FakePeers()
    peers.hold = trio.Event()
    narrow = relay(peers, at_once=2)
    async with trio.open_nursery() as devices:
        for _ in range(2):
            devices.start_soon(narrow.forward, PHONE, B, b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert narrow.statistics().at_once == 2
        with pytest.raises(Busy):
            await narrow.forward(LAPTOP, C, b"x")
        peers.hold.set()
    assert narrow.statistics().at_once == 0


async def test_each_device_has_a_rate_of_its_own() -> None:
    clock = stopped_clock(NOW)
    limited = relay(FakePeers(), clock, fetches=Rate("device_fetches_per_minute", 1, 2))
    await limited.forward(PHONE, B, b"x")
    await limited.forward(PHONE, C, b"x")
    with pytest.raises(RateLimited):
        await limited.forward(PHONE, B, b"x")
    await limited.forward(LAPTOP, B, b"x")
    clock.advance(1)
    await limited.forward(PHONE, B, b"x")


async def test_a_device_makes_us_contact_few_that_nobody_contacted_before() -> None:
    limited = relay(FakePeers(), new_providers=Rate("device_new_providers_per_day", 1 / 86_400, 1))
    for _ in range(3):
        await limited.forward(PHONE, B, b"x")
    with pytest.raises(RateLimited):
        await limited.forward(PHONE, C, b"x")
    await limited.forward(LAPTOP, C, b"x")
    await limited.forward(PHONE, C, b"x")  # it is known now


@pytest.mark.parametrize("status", [400, 422, 429, 503])
async def test_a_gateways_problem_is_passed_on(status: int) -> None:
    got = await relay(FakePeers(problem(status))).forward(PHONE, B, b"x")
    assert got == problem(status)


@pytest.mark.parametrize("status", [420, 429, 499, 503, 599])
async def test_a_device_gets_a_gateways_problem_with_the_status_that_it_has(status: int, tmp_path: Path) -> None:
    async def gateway(_: Called) -> RelayedAnswer:
        headers = {"content-type": "application/problem+json", "retry-after": "17", "set-cookie": "a=b"}
        return answered(b"{}", headers, status)

    async with assembled(Authority(tmp_path).config(federation={"allow": [B]})) as provider:
        provider.peers.add_gateway(B, gateway)
        token = await provider.add_device()
        got = await InMemory(provider.app(DEVICES)).ask(
            "POST",
            f"/client/v1/providers/{B}/ohttp",
            b"x",
            {"authorization": f"Bearer {token}", "content-type": "message/ohttp-req"},
        )
        assert (got.status, got.headers["retry-after"], got.body) == (status, "17", b"{}")
        assert "set-cookie" not in got.headers


@pytest.mark.parametrize(
    ("status", "content_type", "error"),
    [
        (200, "text/html", PeerFailed),
        (200, "", PeerFailed),
        (302, "message/ohttp-res", PeerFailed),
        (200, "application/problem+json", PeerFailed),
        (404, "text/html", PeerFailed),
        (499, "text/html", PeerFailed),
        (500, "text/html", PeerUnavailable),
        (502, "text/html", PeerUnavailable),
        (600, "application/problem+json", PeerUnavailable),
    ],
)
async def test_what_is_no_answer_of_a_gateway_is_not_passed_on(
    status: int, content_type: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await relay(FakePeers(answered(b"x", {"content-type": content_type}, status))).forward(PHONE, B, b"x")


async def test_keys_are_passed_on_with_their_signature_and_kept_as_long_as_they_say() -> None:
    peers, clock = FakePeers(answered(b"keys", KEYS)), stopped_clock(NOW)
    own = relay(peers, clock)
    assert await own.ohttp_keys(PHONE, B) == KeysAnswer(b"keys", "s", 600)
    clock.advance(599)
    assert await own.ohttp_keys(LAPTOP, B) == KeysAnswer(b"keys", "s", 1)
    assert peers.asked == [(B, "GET", "/.well-known/ohttp-gateway", b"", "application/ohttp-keys")]
    clock.advance(1)
    assert (await own.ohttp_keys(PHONE, B)).max_age == 600
    assert len(peers.asked) == 2


@pytest.mark.parametrize(
    ("control", "max_age"),
    [
        (None, 0),
        ("no-store", 0),
        ("max-age=60, no-cache", 0),
        ("max-age=x", 0),
        ("s-max-age=60", 0),
        ("public,max-age=60", 60),
        ("MAX-AGE=99999999", 86_400),
    ],
)
async def test_cache_control_is_read(control: str | None, max_age: int) -> None:
    headers = {name: value for name, value in {**KEYS, "cache-control": control}.items() if value is not None}
    peers = FakePeers(answered(b"keys", headers))
    own = relay(peers)
    assert [(await own.ohttp_keys(PHONE, B)).max_age for _ in range(2)] == [max_age] * 2
    assert len(peers.asked) == (1 if max_age else 2)


async def test_a_refused_key_has_the_configuration_fetched_anew() -> None:
    peers = FakePeers(answered(b"keys", KEYS))
    own = relay(peers)
    await own.ohttp_keys(PHONE, B)
    peers.answer = problem(422)
    await own.forward(PHONE, B, b"x")
    peers.answer = answered(b"newer", KEYS)
    assert (await own.ohttp_keys(PHONE, B)).body == b"newer"


@pytest.mark.parametrize(
    "answer",
    [
        problem(404),
        answered(b"keys", {**KEYS, "content-type": "text/html"}),
        answered(bytes(70_000), KEYS),
    ],
)
async def test_what_is_no_key_configuration_is_not_passed_on(answer: RelayedAnswer) -> None:
    with pytest.raises(PeerFailed):
        await relay(FakePeers(answer)).ohttp_keys(PHONE, B)


async def test_nothing_that_it_keeps_joins_a_device_with_a_target() -> None:
    """Whatever it holds afterwards is keyed by one or the other, and the values know neither."""
    own = relay(
        FakePeers(answered(b"keys", KEYS)),
        fetches=Rate("device_fetches_per_minute", 1, 100),
        new_providers=Rate("device_new_providers_per_day", 1, 100),
    )
    await own.ohttp_keys(PHONE, B)
    for table in (own._fetches._buckets, own._new_providers._devices._buckets):
        assert list(table) == [str(PHONE)]
        assert B not in repr(table)
    assert list(own._new_providers._known) == list(own._keys) == [B]
    assert not own._at_once, "only devices with a request under way are counted"
    assert set(vars(own)) == {
        "_peers",
        "_clock",
        "_own",
        "_allowed",
        "_bounds",
        "_fetches",
        "_new_providers",
        "_keys",
        "_keys_octets",
        "_at_once",
    }
