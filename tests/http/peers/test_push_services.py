"""Calls to push services over real sockets and TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from mimids.config import Config
from mimids.ds.clock import SystemClock
from mimids.ds.ports import PushAnswer
from mimids.errors import PeerUnavailable
from mimids.http.peers import push_services
from mimids.http.peers.push_services import ANSWER_OCTETS, HttpPushServices
from mimids.testing import PushService, Session, push_service
from mimids.testing.clock import MovableClock
from mimids.web_push.subscription import parse_endpoint
from tests.support.provider import Authority

HEADERS = [("ttl", "60"), ("urgency", "high")]


@pytest.fixture
def service(mimids_session: Session) -> Iterator[PushService]:
    with push_service(mimids_session) as running:
        yield running


def config_of(directory: Path, session: Session, *listed: str) -> Config:
    config = Authority(directory).config(push={"endpoints": list(listed)})
    return attrs.evolve(config, tls=attrs.evolve(config.tls, trust=session.ca_file))


async def push(config: Config, url: str, *, times: int = 1) -> PushAnswer:
    services = HttpPushServices(config, SystemClock())
    try:
        for _ in range(times - 1):
            await services.push(parse_endpoint(url), HEADERS, b"sealed")
        return await services.push(parse_endpoint(url), HEADERS, b"sealed")
    finally:
        services.close()


async def test_a_push_names_nobody_but_the_endpoint(
    tmp_path: Path, mimids_session: Session, service: PushService
) -> None:
    url = f"{service.origin}/path?query"
    assert await push(config_of(tmp_path, mimids_session, service.origin), url, times=2) == PushAnswer(201)
    first, second = service.pushes
    assert first == second
    assert (first.path, first.body) == ("/path?query", b"sealed")
    assert first.headers == {
        "host": service.origin.removeprefix("https://"),
        "user-agent": "mimids",
        "ttl": "60",
        "urgency": "high",
        "content-type": "application/octet-stream",
        "content-length": "6",
    }


@pytest.mark.parametrize(("status", "headers", "seconds"), [
    (201, {}, 0),
    (404, {}, 0),
    (410, {}, 0),
    (429, {"retry_after": "120"}, 120),
    (503, {"retry_after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
    (503, {"retry_after": "soon"}, 5),
])  # fmt: skip
async def test_an_answer_is_its_status_and_when_to_try_again(
    tmp_path: Path, mimids_session: Session, service: PushService, status: int, headers: dict[str, str], seconds: int
) -> None:
    service.answer(status, **headers)
    config = config_of(tmp_path, mimids_session, service.origin)
    assert await push(config, f"{service.origin}/x") == PushAnswer(status, seconds)


async def test_no_redirect_is_followed(tmp_path: Path, mimids_session: Session, service: PushService) -> None:
    service.answer(307, location=f"{service.origin}/elsewhere")
    config = config_of(tmp_path, mimids_session, service.origin)
    assert await push(config, f"{service.origin}/x") == PushAnswer(307)
    assert [each.path for each in service.pushes] == ["/x"]


async def test_a_service_that_does_not_answer_is_given_up(
    tmp_path: Path, mimids_session: Session, service: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_services, "CALL_SECONDS", 0.5)
    service.answer(None)
    with pytest.raises(PeerUnavailable):
        await push(config_of(tmp_path, mimids_session, service.origin), f"{service.origin}/x")
    assert len(service.pushes) == 1


@pytest.mark.parametrize("status", [201, 410])
async def test_of_a_large_answer_only_the_head_counts(
    tmp_path: Path, mimids_session: Session, service: PushService, status: int
) -> None:
    service.answer(status, body="x" * (ANSWER_OCTETS + 1))
    answer = await push(config_of(tmp_path, mimids_session, service.origin), f"{service.origin}/x")
    assert answer == PushAnswer(status)


async def test_an_origin_that_is_not_listed_must_have_public_addresses(
    tmp_path: Path, mimids_session: Session, service: PushService
) -> None:
    """Nothing is sent to our own machine: not even a connection is made."""
    other = "https://push.example"
    for listed in ((), (other,), (service.origin.replace("localhost", "127.0.0.1"),)):
        with pytest.raises(PeerUnavailable):
            await push(config_of(tmp_path, mimids_session, *listed), f"{service.origin}/x")
    assert service.pushes == []


async def test_the_trust_of_other_providers_counts_for_listed_origins_only(
    tmp_path: Path, mimids_session: Session, service: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_services, "public_only", lambda addresses: addresses)
    with pytest.raises(PeerUnavailable):
        await push(config_of(tmp_path, mimids_session), f"{service.origin}/x")
    assert service.pushes == []
    await push(config_of(tmp_path, mimids_session, service.origin), f"{service.origin}/x")
    assert len(service.pushes) == 1


async def test_a_trust_file_that_is_gone_stops_listed_services_and_works_again_after_a_reload(
    tmp_path: Path, mimids_session: Session, service: PushService
) -> None:
    config = config_of(tmp_path, mimids_session, service.origin)
    trust = tmp_path / "trust.pem"
    services = HttpPushServices(attrs.evolve(config, tls=attrs.evolve(config.tls, trust=trust)), SystemClock())
    endpoint = parse_endpoint(f"{service.origin}/x")
    with pytest.raises(PeerUnavailable):
        await services.push(endpoint, HEADERS, b"")
    trust.write_bytes(mimids_session.ca_file.read_bytes())
    services.reload()
    assert (await services.push(endpoint, HEADERS, b"")).status == 201
    services.close()


async def test_another_trust_file_counts_from_the_reload_on(
    tmp_path: Path, mimids_session: Session, service: PushService
) -> None:
    config, trust = config_of(tmp_path, mimids_session, service.origin), tmp_path / "trust.pem"
    trust.write_bytes(config.tls.certificate.read_bytes())
    services = HttpPushServices(attrs.evolve(config, tls=attrs.evolve(config.tls, trust=trust)), SystemClock())
    endpoint = parse_endpoint(f"{service.origin}/x")
    with pytest.raises(PeerUnavailable):
        await services.reach(endpoint)
    trust.write_bytes(mimids_session.ca_file.read_bytes())
    with pytest.raises(PeerUnavailable):
        await services.reach(endpoint)
    services.reload()
    await services.reach(endpoint)
    assert service.pushes == [], "nothing was sent"
    services.close()


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_refusal_while_a_clock_is_wrong_is_none_that_lasts(
    tmp_path: Path, mimids_session: Session, service: PushService, status: int
) -> None:
    """The token that names us has expired, or is not valid yet; the device must be woken once the clock is right."""
    service.answer(status)
    config, endpoint = config_of(tmp_path, mimids_session, service.origin), parse_endpoint(f"{service.origin}/x")
    for hours, lasting in ((0, True), (1, True), (13, False), (-13, False)):
        services = HttpPushServices(config, MovableClock(hours * 3_600_000))
        try:
            if lasting:
                assert (await services.push(endpoint, HEADERS, b"sealed")).status == status
            else:
                with pytest.raises(PeerUnavailable):
                    await services.push(endpoint, HEADERS, b"sealed")
        finally:
            services.close()
