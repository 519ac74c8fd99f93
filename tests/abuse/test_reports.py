"""A report tells the accused nothing, and no partition key reaches another provider in its note."""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from mimids.ds.terms import reports
from mimids.ds.terms.report import NOTE_OCTETS, POSSIBLE_KEYS, Report, possible_keys
from mimids.errors import Malformed, QuotaExceeded
from mimids.values import Follower
from mimids.wire.base64url import base64url
from mimids.wire.ids import GROUP_ID_OCTETS, ProviderId
from tests.support.commands import command
from tests.support.federation import Room, device, federated
from tests.support.reports import report
from tests.support.stored import count

A, B = "a.example", "b.example"


async def test_the_accused_cannot_learn_that_somebody_filed_a_report(tmp_path: Path) -> None:
    """Each filer of the same words gets an id of its own, and counts against its own quota."""
    limits = {"provider_reports_per_day": 1}
    async with federated(tmp_path, A, B, jobs_of=(), limits=limits) as (hub, _):
        receive = hub.services.reports.receive
        filed = await receive(report(accused=B), device(hub))
        accused = Follower(ProviderId(B))
        repeated = await receive(report(accused=B), accused)
        assert repeated != filed
        assert await receive(report(accused=B), accused) == repeated
        assert count(hub, "SELECT count(*) FROM reports") == 2


async def test_the_answer_to_a_report_does_not_tell_how_many_there_are(tmp_path: Path) -> None:
    """Numbers in a row told a provider how many reports others had filed between two of its own."""
    told = []
    for others in (0, 5):
        (tmp_path / str(others)).mkdir()
        async with federated(tmp_path / str(others), A, B, jobs_of=()) as (hub, _):
            for n in range(others):
                await hub.services.reports.receive(report(note=f"{n}"), device(hub))
            filed = await hub.services.reports.receive(report(), Follower(ProviderId(B)))
            told.append(filed)
            shown = await command(hub, "report read", report=filed)
            assert (shown["reference"], shown["id"]) == (filed, others + 1)
    assert told[0] == told[1] > 1 << 20


WRITTEN: list[Callable[[bytes], str]] = [
    lambda key: key.hex(),
    lambda key: key.hex().upper(),
    lambda key: key.hex(" "),
    lambda key: key.hex(":", 2),
    lambda key: key.hex("-"),
    lambda key: str(uuid.UUID(bytes=key)),
    lambda key: f"{key.hex()[:5]} {key.hex()[5:]}",
    lambda key: f"xyz{key.hex()}00",
    lambda key: ", ".join(f"0x{octet:02x}" for octet in key),
    lambda key: "".join(f"\\x{octet:02x}" for octet in key),
    lambda key: str(list(key)),
    lambda key: "\n".join(map(str, key)),
    lambda key: str(int.from_bytes(key, "big")),
    lambda key: str(int.from_bytes(key, "little")),
    lambda key: base64.b64encode(key).decode(),
    lambda key: base64url(key),
]


@pytest.mark.parametrize("write", WRITTEN)
async def test_a_key_is_found_in_a_note_however_it_is_written(write: Callable[[bytes], str], tmp_path: Path) -> None:
    async with federated(tmp_path, A, jobs_of=()) as (hub,):
        alice, room = device(hub), Room()
        await hub.services.hub.create_group(room.creation(), alice)
        with pytest.raises(Malformed, match="partition key"):
            await hub.services.reports.receive(report(note=f"see {write(room.key.reveal())} please"), alice)
        other = write(secrets.token_bytes(16))
        await hub.services.reports.receive(report(note=f"see {other} please"), alice)


@pytest.mark.parametrize("piece", ["1 ", "ab ", "a", "0x", "ab-", "255,", "99999999999999999999 "])
def test_a_note_takes_bounded_work(piece: str) -> None:
    assert sum(1 for _ in possible_keys(piece * (NOTE_OCTETS // len(piece)))) <= POSSIBLE_KEYS


async def test_a_note_with_more_digits_than_are_searched_is_refused(tmp_path: Path) -> None:
    """A key after that many others was not found."""
    async with federated(tmp_path, A, jobs_of=()) as (hub,):
        alice, room = device(hub), Room()
        await hub.services.hub.create_group(room.creation(), alice)
        digits = "".join(secrets.choice("abcdef") for _ in range(POSSIBLE_KEYS + 31))  # decimal digits count twice
        await hub.services.reports.receive(report(note=digits), alice)
        for more in (f"{digits} and {secrets.token_hex(16)}", digits + room.key.reveal().hex()):
            with pytest.raises(Malformed, match="too many digits"):
                await hub.services.reports.receive(report(note=more), alice)


def test_a_report_has_a_group_id_of_bounded_length() -> None:
    members = {"hub": A, "accused": B, "kind": "spam"}
    assert Report.read({**members, "group_id": base64url(bytes(GROUP_ID_OCTETS))}).group_id == bytes(GROUP_ID_OCTETS)
    with pytest.raises(ValueError, match="group id"):
        Report.read({**members, "group_id": base64url(bytes(GROUP_ID_OCTETS + 1))})


async def test_a_note_is_searched_no_more_often_than_reports_may_be_filed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Report] = []

    def has_a_key(report: Report, tx: object) -> bool:
        searched.append(report)
        return "key" in report.note

    monkeypatch.setattr(reports, "_note_has_a_key", has_a_key)
    async with federated(tmp_path, A, B, jobs_of=(), limits={"device_reports_per_day": 3}) as (hub, _):
        receive, alice = hub.services.reports.receive, device(hub)
        first = await receive(report(note="0"), alice)
        refused = []
        for number in range(20):
            with pytest.raises((Malformed, QuotaExceeded)) as error:
                await receive(report(note=f"key {number}"), alice)
            refused.append(error.type)
        assert refused[0] is Malformed
        assert refused[-1] is QuotaExceeded
        assert await receive(report(note="0"), alice) == first, "a repeat is neither searched nor counted"
        assert len(searched) <= 4
        await receive(report(note="another device"), device(hub, row=2))
