"""The log names nobody and no target, at any level, and no line dates a request through the relay or to the gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.ds.ports import RelayedAnswer
from mimids.errors import PeerUnavailable
from mimids.http.api.devices import DEVICES
from mimids.http.api.public import PUBLIC
from tests.support.doubles import Called
from tests.support.federation import federated
from tests.support.inmemory import InMemory
from tests.support.provider import Assembled

TARGET = "target.example"
ADDRESS = "198.51.100.7"
SECRET = "a-secret-of-the-caller"


async def relay(a: Assembled, token: str) -> int:
    headers = {"content-type": "message/ohttp-req", "authorization": f"Bearer {token}"}
    answer = await InMemory(a.app(DEVICES)).ask("POST", f"/client/v1/providers/{TARGET}/ohttp", b"sealed", headers)
    return answer.status


@pytest.mark.parametrize("is_bug", [False, True])
async def test_a_failed_fetch_through_the_relay_leaves_no_name_and_no_time(is_bug: bool, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=(), federation={"allow": [TARGET]}) as (a,):
        token = await a.add_device()

        async def fail(_: Called) -> RelayedAnswer:
            cause = OSError(f"cannot connect to {TARGET} at {ADDRESS}")
            if is_bug:
                raise cause
            raise PeerUnavailable from cause

        a.peers.add_gateway(TARGET, fail)
        assert await relay(a, token) >= 500
        assert a.log.text == ""  # nothing is written when it happens
        a.services.telemetry.log_counts()
        assert {line["event"] for line in a.log.lines} == ({"requests", "a handler failed"} if is_bug else {"requests"})
        for word in (TARGET, ADDRESS, token, "alice"):
            assert word not in a.log.text
        if is_bug:
            (failed,) = (line for line in a.log.lines if line["event"] == "a handler failed")
            assert failed["route"] == "relay"
            assert "OSError" in failed["exception"]
            assert "relay.py" in failed["exception"]


async def test_failures_of_unlinkable_requests_are_kept_in_a_bounded_number(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,):
        for number in range(100):
            a.services.telemetry.failure_unlinkable(f"route {number}", ValueError(SECRET))
        a.services.telemetry.log_counts()
        assert len(a.log.lines) == 20
        assert SECRET not in a.log.text


async def test_a_refused_body_is_not_in_the_log_at_level_debug(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,):
        token = await a.add_device()
        headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
        body = f'{{"scheme": "{SECRET}"'.encode()
        answer = await InMemory(a.app(DEVICES)).ask("POST", "/client/v1/contact-tokens", body, headers)
        assert answer.status == 400
        (refused,) = (line for line in a.log.lines if line["event"] == "refused")
        assert refused["cause"] == "JSONDecodeError"
        assert SECRET not in a.log.text


async def test_requests_to_the_gateway_have_no_line_of_their_own(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=()) as (a,):
        headers = {"content-type": "message/ohttp-req"}
        answer = await InMemory(a.app(PUBLIC)).ask("POST", "/.well-known/ohttp-gateway", SECRET.encode(), headers)
        assert answer.status >= 400
        assert a.log.text == ""
        a.services.telemetry.log_counts()
        (line,) = a.log.lines
        assert (line["route"], line["count"]) == ("ohttp-gateway", 1)
