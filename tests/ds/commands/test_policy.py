"""What the operator says about policy, as the table of commands does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mimids.ds.commands import command_named
from mimids.errors import Malformed, MimiError, NotFound
from mimids.values import Follower
from mimids.wire.ids import ProviderId
from tests.support.commands import command
from tests.support.doubles import stopped_clock
from tests.support.federation import Room, federated
from tests.support.provider import Assembled
from tests.support.reports import report

A, B = ProviderId("a.example"), ProviderId("b.example")
BOB = "mimi://b.example/u/bob"


def shape(value: object) -> object:
    """Return the names in an answer, lists by their first item."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


async def run(of: Assembled, name: str, /, **arguments: Any) -> Any:
    """Run a command, and hold its answer to what the table says of it."""
    answer = await command(of, name, **arguments)
    assert shape(answer) == shape(json.loads(command_named(name).answer)), name
    return answer


async def test_answers_hold_what_the_table_says_they_hold(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, follower):
        for subject in (BOB, "b.example", "mimi://a.example/u/alice"):
            await run(hub, "ban add", subject=subject, reason="spam", expires_at=clock.now() + 1000)
        listed = (await run(hub, "ban list"))["bans"]
        assert [each["subject"] for each in listed] == [BOB, "b.example", "mimi://a.example/u/alice"]
        assert listed[0] == {
            "subject": BOB,
            "reason": "spam",
            "created_at": clock.now(),
            "expires_at": clock.now() + 1000,
        }
        await run(hub, "ban remove", subject="b.example")
        await run(hub, "limit mute", user=BOB, reason="loud")
        await run(hub, "limit mute", user=BOB, group="mimi://a.example/g/1")
        limits = await run(hub, "limit list")
        assert [each["group_id"] for each in limits["mutes"]] == [None, "bWltaTovL2EuZXhhbXBsZS9nLzE"]
        assert {"limit": "device_joins_per_hour", "value": 60} in limits["rates"]
        await run(hub, "limit unmute", user=BOB, group="bWltaTovL2EuZXhhbXBsZS9nLzE")
        await follower.services.accepted_terms.renew(A)
        shown = await run(follower, "provider show", provider=A)
        assert (shown["their_terms"], shown["their_terms_accepted"], shown["their_terms_told"]) == (1, 1, True)
        assert (await command(hub, "provider show", provider=B))["our_terms_accepted"] == 1
        await run(follower, "provider accept", provider=A)
        clock.advance(2)
        assert (await command(hub, "ban list"))["bans"] == []
        assert not (await command(hub, "provider show", provider=B))["banned"]


async def test_answers_on_reports_hold_what_the_table_says(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=("reports",)) as (hub, _):
        number = await hub.services.reports.receive(report(Room().message("x").encoded), Follower(B))
        await run(hub, "report list")
        while not (await command(hub, "report read", report=number))["replayed_at"]:
            clock.advance(60)
        await run(hub, "report read", report=number)
        await run(hub, "report pass-on", report=number, provider=B)
        await run(hub, "report close", report=number)


@pytest.mark.parametrize(
    ("name", "arguments", "refusal"),
    [
        ("ban add", {"subject": "a.example"}, Malformed),
        ("ban add", {"subject": "B.example"}, Malformed),
        ("ban add", {"subject": "mimi://b.example/bob"}, Malformed),
        ("ban add", {"subject": "mimi://b.example/u/%62ob"}, Malformed),
        ("ban add", {"subject": "MIMI://b.example/u/bob"}, Malformed),
        ("ban add", {"subject": "mimi://b.example/u/.."}, Malformed),
        ("limit mute", {"user": "mimi://b.example/u/bob%00"}, Malformed),
        ("ban add", {"subject": "nobody"}, NotFound),
        ("ban add", {"subject": BOB, "expires_at": 1}, Malformed),
        ("ban add", {"subject": BOB, "reason": "x" * 501}, Malformed),
        ("ban remove", {"subject": BOB}, NotFound),
        ("limit mute", {"user": "b.example"}, NotFound),
        ("limit unmute", {"user": BOB}, NotFound),
        ("provider accept", {"provider": "not a domain"}, Malformed),
        ("report read", {"report": 1}, NotFound),
        ("report close", {"report": 1}, NotFound),
        ("report pass-on", {"report": 1, "provider": "b.example"}, NotFound),
    ],
)
async def test_what_makes_no_sense_is_refused_and_nothing_changes(
    name: str, arguments: dict[str, Any], refusal: type[MimiError], tmp_path: Path
) -> None:
    async with federated(tmp_path, A, jobs_of=()) as (hub,):
        with pytest.raises(refusal):
            await command(hub, name, **arguments)
        assert (await command(hub, "ban list"), (await command(hub, "limit list"))["mutes"]) == ({"bans": []}, [])
