"""Reports: taken once, within quotas, held against what is stored, passed on nameless, closed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from mimids.ds.devices.accounts import add_device, add_user
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.terms.report import NOTE_OCTETS, Report
from mimids.ds.terms.reports import TOPIC
from mimids.errors import Malformed, NotFound, QuotaExceeded
from mimids.store import reports as stored
from mimids.testing.clock import MovableClock
from mimids.values import Device, Follower
from mimids.wire.base64url import base64url
from mimids.wire.declare import encode
from mimids.wire.ids import ProviderId, local_user_id
from tests.support.commands import command
from tests.support.doubles import stopped_clock
from tests.support.federation import Room, device, federated
from tests.support.hub import ALICE, offer
from tests.support.patience import patience
from tests.support.provider import Assembled
from tests.support.recordings import Recording, expected
from tests.support.reports import GROUP, report
from tests.support.stored import until

A, B, C = ProviderId("a.example"), ProviderId("b.example"), ProviderId("c.example")


async def replayed(of: Assembled, number: int) -> Any:
    """Return a report once its evidence was looked at; the clock is moved for the job to go on."""
    found: Any = None

    async def look() -> bool:
        nonlocal found
        clock = of.services.clock
        assert isinstance(clock, MovableClock)
        clock.advance(60)
        found = await command(of, "report read", report=number)
        return found["replayed_at"] is not None

    await until(look)
    return found


def members(**changed: Any) -> dict[str, Any]:
    said = {
        "hub": A,
        "group_id": base64url(GROUP),
        "accused": str(C),
        "kind": "terms",
        "note": "they do not",
        "evidence": [],
    }
    return {**said, **changed}


async def test_the_same_words_of_one_reporter_are_one_report(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        ours = hub.services.reports
        first = await ours.receive(report(), device(hub))
        assert await ours.receive(report(), device(hub)) == first
        assert await ours.receive(report(), attrs.evolve(device(hub, row=2), name="laptop")) == first
        theirs = await ours.receive(report(), Follower(B))
        assert await ours.receive(report(), Follower(B)) == theirs
        assert await ours.receive(report(note="more"), Follower(B)) != theirs
        assert len((await command(hub, "report list"))["reports"]) == 3


async def test_each_device_and_each_provider_has_a_quota_for_a_day(tmp_path: Path) -> None:
    clock = stopped_clock()
    limits = {"device_reports_per_day": 2, "provider_reports_per_day": 3}
    async with federated(tmp_path, A, B, C, clock=clock, jobs_of=(), limits=limits) as (hub, *_):
        receive = hub.services.reports.receive
        for reporter, quota, limit in (
            (device(hub), 2, "device_reports_per_day"),
            (device(hub, "anna", 2), 2, "device_reports_per_day"),
            (Follower(B), 3, "provider_reports_per_day"),
            (Follower(C), 3, "provider_reports_per_day"),
        ):
            for number in range(quota):
                await receive(report(note=f"{reporter} {number}"), reporter)
            with pytest.raises(QuotaExceeded) as refused:
                await receive(report(note=f"{reporter} more"), reporter)
            assert refused.value.members["limit"] == limit
            await receive(report(note=f"{reporter} 0"), reporter)  # said before: no new report
        clock.advance(86_401)
        await receive(report(note="the next day"), Follower(B))


@pytest.mark.parametrize(
    "wrong",
    [
        {"hub": "no domain!"},
        {"accused": "nobody in particular"},
        {"accused": 7},
        {"kind": "Spam, mostly"},
        {"kind": None},
        {"group_id": "not/base64url"},
        {"note": ["a list"]},
        {"note": "x" * (NOTE_OCTETS + 1)},
        {"note": "\ud800"},
        {"evidence": [7]},
        {"evidence": ["AAEAAg"]},
        {"evidence": [""]},
        {"evidence": [base64url(encode(Room().message("x")))] * 65},
        {"partition_key": "00" * 16},
    ],
)
def test_what_is_no_report_is_not_taken(wrong: dict[str, Any]) -> None:
    assert Report.read(members()).as_json() == members()
    with pytest.raises((ValueError, TypeError, KeyError, Malformed)):
        Report.read(members(**wrong))


async def test_partition_keys_are_refused_beside_a_message_and_in_the_note(tmp_path: Path) -> None:
    room = Room()
    request = room.send("a message")
    assert Report.read(members(evidence=[base64url(request.message.encoded)])).evidence == (request.message.encoded,)
    with pytest.raises(Malformed, match="partition keys"):
        Report.read(members(evidence=[base64url(encode(request))]))
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        await hub.services.hub.create_group(room.creation(), device(hub))
        key = room.key.reveal()
        for written in (key.hex(), key.hex().upper(), base64url(key), base64url(key) + "=="):
            with pytest.raises(Malformed, match="partition key"):
                await hub.services.reports.receive(report(note=f"look at {written}, please"), device(hub))
        await hub.services.reports.receive(report(note=f"no key is {bytes(16).hex()}"), device(hub))


async def test_evidence_is_held_against_what_is_stored_and_nobody_is_called(tmp_path: Path) -> None:
    recording = Recording("policy")
    lines = {recorded.line["name"]: recorded for recorded in recording.messages()}
    async with federated(tmp_path, A, B, clock=stopped_clock(), jobs_of=("reports",)) as (hub, _):
        await hub.services.hub.create_group(recording.creation(), ALICE)
        for recorded in recording.messages():
            if expected(recorded.line) == "accept":
                await offer(hub.services.hub, recorded)
        names = ("A_alice_bans_carol", "A_alice_adds_carol", "alice_on_A_number_10", "A_muted_bob_adds_bob_d2")
        evidence = [lines[name].request.message.encoded for name in names]
        foreign = encode(Room("elsewhere").message("of a group that is not known here"))
        number = await hub.services.reports.receive(report(*evidence, foreign), device(hub))
        shown = (await replayed(hub, number))["evidence"]
        assert hub.peers.calls == []
        sequenced, refused, text, by_muted, unknown = shown
        key = lines["A_alice_bans_carol"].key.mask(32).hex()
        assert (sequenced["partition"], sequenced["verdict"], sequenced["state"]) == (key, "valid", "derived")
        assert sequenced["counter"] is not None
        assert (refused["verdict"], refused["counter"]) == ("policy", None)
        assert refused["why"].startswith("banned-user-added")
        assert (text["wire_format"], text["verdict"]) == ("private_message", "valid")
        assert by_muted["verdict"] == "valid"  # whoever sent it: of that nothing is known
        assert (unknown["partition"], unknown["verdict"]) == (None, "unknown")
        assert [base64url(each) for each in evidence] == [each["message"] for each in shown[:4]]


async def test_evidence_of_an_epoch_beyond_what_a_row_holds_is_looked_at_too(tmp_path: Path) -> None:
    room = Room("1")
    async with federated(tmp_path, A, clock=stopped_clock(), jobs_of=("reports",)) as (hub,):
        await hub.services.hub.create_group(room.creation(), device(hub))
        evidence = encode(room.message("from the far end", epoch=(1 << 64) - 1))
        number = await hub.services.reports.receive(report(evidence), device(hub))
        (shown,) = (await replayed(hub, number))["evidence"]
        assert (shown["epoch"], shown["partition"], shown["verdict"]) == ((1 << 64) - 1, None, "unknown")


async def test_evidence_about_an_unknown_hub_is_not_looked_for_in_the_groups_of_another(tmp_path: Path) -> None:
    room = Room("1")
    async with federated(tmp_path, A, clock=stopped_clock(), jobs_of=("reports",)) as (hub,):
        await hub.services.hub.create_group(room.creation(), device(hub))
        sent = room.send("a message")
        await hub.services.hub.send(sent, device(hub))
        shown = []
        for accused_hub in (A, C):
            said = attrs.evolve(report(encode(sent.message)), hub=accused_hub)
            number = await hub.services.reports.receive(said, device(hub))
            found = [each["id"] for each in (await command(hub, "report list"))["reports"]]
            shown += (await replayed(hub, max(found)))["evidence"]
            assert number
        assert [each["counter"] for each in shown] == [0, None]


async def test_the_job_rests_after_each_piece_of_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = stopped_clock(), list[int]()

    def thread_time() -> float:
        asked.append(1)
        return 2.0 * len(asked)  # each look, from one question to the next, seems to take two seconds of a core

    async def looked_at(count: int) -> None:
        with patience():
            while len(asked) < 2 * count:  # noqa: ASYNC110  # a thread counts
                await trio.sleep(0.01)
        await trio.sleep(0.05)
        assert len(asked) == 2 * count

    monkeypatch.setattr("mimids.ds.terms.reports.time.thread_time", thread_time)
    async with federated(tmp_path, A, clock=clock, jobs_of=("reports",)) as (hub,):
        evidence = [encode(Room(str(number)).message("x")) for number in range(3)]
        number = await hub.services.reports.receive(report(*evidence), device(hub))
        for count in (1, 2, 3):
            await looked_at(count)
            clock.advance(37)
            await looked_at(count)
            clock.advance(1)  # two seconds of work are a twentieth of forty
        assert (await replayed(hub, number))["messages"] == 3


async def test_a_report_is_passed_on_without_its_reporters_name(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, clock=stopped_clock(), jobs_of=("reports",)) as (hub, other):
        hub_user = await hub.services.store.write(lambda tx: _add_bob(hub, tx))
        message = encode(Room().message("see for yourself"))
        note = f"{hub_user.user_id.decode()} says: bob, bobby, was insulted"
        number = await hub.services.reports.receive(report(message, note=note), hub_user)
        shown = await command(hub, "report read", report=number)
        assert shown["reporter"] == "mimi://a.example/u/bob"
        await command(hub, "report pass-on", report=number, provider=B)

        async def passed_on() -> bool:
            return (await command(hub, "report read", report=number))["passed_on_at"] is not None

        await replayed(hub, number)
        await until(passed_on)
        (listed,) = (await command(other, "report list"))["reports"]
        there = await command(other, "report read", report=listed["id"])
        assert (there["reporter"], there["kind"], there["accused"]) == (A, "spam", "mimi://c.example/u/carol")
        assert there["evidence"][0]["message"] == base64url(message)
        assert hub_user.user_id.decode() not in json.dumps(there)
        assert there["note"] == "[removed] says: [removed], bobby, was insulted"
        with pytest.raises(Malformed):
            await command(hub, "report pass-on", report=number, provider=A)


async def test_the_note_of_a_reporter_who_is_gone_is_not_passed_on(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, clock=stopped_clock(), jobs_of=("reports",)) as (hub, other):
        gone = await hub.services.store.write(lambda tx: _add_bob(hub, tx))
        number = await hub.services.reports.receive(report(note="bob says so"), gone)
        await command(hub, "user remove", user="bob")
        await command(hub, "report pass-on", report=number, provider=B)

        async def there() -> bool:
            return bool((await command(other, "report list"))["reports"])

        await until(there)
        assert (await command(other, "report read", report=1))["note"] == ""


def _add_bob(of: Assembled, tx: Any) -> Device:
    provider, now = of.config.provider, of.services.clock.now()
    add_user(tx, provider, "bob", now)
    return Device(provider, local_user_id(provider, "bob"), add_device(tx, provider, "bob", "phone", now).row, "phone")


async def test_who_is_away_gets_it_later_and_holds_up_nobody(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=("reports",)) as (hub, other):
        away = await hub.services.reports.receive(report(note="to somebody who is away"), Follower(B))
        there = await hub.services.reports.receive(report(note="to somebody who is there"), Follower(B))
        await command(hub, "report pass-on", report=away, provider=C)
        await command(hub, "report pass-on", report=there, provider=B)

        async def passed_on() -> bool:
            return (await command(hub, "report read", report=there))["passed_on_at"] is not None

        await until(passed_on)
        assert (await command(hub, "report read", report=away))["passed_on_at"] is None
        hub.peers.add(C, hub.peers.peers[B])

        async def later() -> bool:
            clock.advance(61)
            return (await command(hub, "report read", report=away))["passed_on_at"] is not None

        await until(later)
        assert len((await command(other, "report list"))["reports"]) == 2


async def test_a_closed_report_is_listed_when_asked_for(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        number = await hub.services.reports.receive(report(), Follower(B))
        await command(hub, "report close", report=number, outcome="banned her")
        assert (await command(hub, "report list"))["reports"] == []
        (listed,) = (await command(hub, "report list", all=True))["reports"]
        assert listed["reporter"] == B
        assert (await command(hub, "report read", report=number))["outcome"] == "banned her"
        with pytest.raises(NotFound):
            await command(hub, "report read", report=number + 1)


async def test_what_a_hub_cannot_have_meant_becomes_a_report(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, clock=stopped_clock(), jobs_of=("reports",)) as (_, follower):
        message = encode(Room().message("sequenced twice"))
        for _ in range(3):
            follower.services.reports.note_contradiction(Contradiction(A, GROUP, message, "sequenced-differently"))

        async def listed() -> bool:
            return bool((await command(follower, "report list"))["reports"])

        await until(listed)
        (only,) = (await command(follower, "report list"))["reports"]
        assert (only["accused"], only["kind"], only["reporter"], only["messages"]) == (A, "contradiction", None, 1)
        assert "sequenced-differently" in (await command(follower, "report read", report=only["id"]))["note"]
        await replayed(follower, only["id"])  # the job goes on after the contradictions
        assert follower.peers.calls == []


async def test_a_process_without_jobs_tells_the_others_that_it_stored_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (_, follower), trio.open_nursery() as jobs:
        reports, notifier, runs_jobs = follower.services.reports, follower.services.notifier, False
        monkeypatch.setattr(reports, "_runs_jobs", lambda: runs_jobs)
        message = encode(Room().message("sequenced twice"))
        reports.note_contradiction(Contradiction(A, GROUP, message, "sequenced-differently"))
        with notifier.listen(TOPIC) as other_process:
            await jobs.start(reports.run)
            with patience():
                await other_process.wait()
        (only,) = (await command(follower, "report list"))["reports"]
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked(0.05)
            clock.advance(60)
        shown = await command(follower, "report read", report=only["id"])
        assert (shown["kind"], shown["replayed_at"]) == ("contradiction", None)
        runs_jobs = True
        notifier.notify(TOPIC)
        await replayed(follower, only["id"])
        jobs.cancel_scope.cancel()


async def test_old_reports_are_dropped(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, _):
        await hub.services.reports.receive(report(), device(hub))
        clock.advance(100)
        await hub.services.reports.receive(report(note="newer"), device(hub))
        before = clock.now()
        await hub.services.store.write(lambda tx: stored.drop_older(tx, before))
        assert [each["id"] for each in (await command(hub, "report list"))["reports"]] == [2]
