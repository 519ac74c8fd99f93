"""The terms of other hubs: fetched, accepted, confirmed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mimids.ds.ports import PeerAnswer
from mimids.ds.terms.accepted import ACCEPT_ATTEMPTS, FETCH_INTERVAL_SECONDS, RENEW_SECONDS, TERMS_OCTETS
from mimids.errors import (
    ArrangementOutdated,
    NotFound,
    PeerFailed,
    PeerUnavailable,
    PolicyRefused,
    TooLarge,
    WelcomeNotExpected,
)
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import HpkeCiphertext
from mimids.mls.welcome import EncryptedGroupSecrets, Welcome
from mimids.store import arrangements, providers
from mimids.store.arrangements import Restriction
from mimids.testing.clock import MovableClock
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, KeyPackageRef, ProviderId, UserId
from mimids.wire.messages import WelcomeInitRequest, WelcomeInitResponse
from tests.support.commands import command
from tests.support.doubles import Called, stopped_clock
from tests.support.federation import Room, device, federated, read
from tests.support.provider import Assembled
from tests.support.stored import until
from tests.support.terms import BOB, JOBS, ask_hub, bob, wait_in_force

A, B = ProviderId("a.example"), ProviderId("b.example")


async def test_every_answer_names_the_revision_and_the_follower_accepts_what_is_new(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        await ask_hub(follower)
        await wait_in_force(follower, 1)
        assert (await command(hub, "provider show", provider=B))["our_terms_accepted"] == 1
        await command(hub, "ban add", subject=BOB)
        await ask_hub(follower)
        await wait_in_force(follower, 2)
        assert (await command(hub, "provider show", provider=B))["our_terms_accepted"] == 2
        assert (await command(follower, "provider show", provider=A))["they_ban"] == [{"user_id": BOB}]


async def test_what_is_accepted_is_still_known_after_a_restart(tmp_path: Path) -> None:
    room = Room()
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        await hub.services.hub.create_group(room.creation(), device(hub))
        await command(hub, "ban add", subject=BOB)
        await ask_hub(follower)
        await wait_in_force(follower, 1)
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        terms = follower.services.accepted_terms.in_force(A)
        assert terms is not None
        assert (terms.revision, terms.bans) == (1, (BOB.encode(),))
        with pytest.raises(PolicyRefused):
            await follower.services.hub_router.hub(A).send(bob(follower), room.send("after"))
        await hub.services.offered_terms.load(B)
        assert hub.services.offered_terms.revision(B) == 1
        assert follower.peers.calls == []


async def test_a_push_names_the_revision_so_a_banned_reader_reads_no_more(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=JOBS) as (hub, follower):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await read(follower, bob(follower), A, room.key)  # its user only reads, from what is stored there
        await wait_in_force(follower, 1)
        clock.advance(1)
        await command(hub, "ban add", subject=BOB)
        await hub.services.hub.send(room.send("not for Bob"), device(hub))
        await wait_in_force(follower, 2)
        with pytest.raises(PolicyRefused):
            await read(follower, bob(follower), A, room.key)


async def test_terms_are_renewed_though_neither_side_calls_the_other(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=JOBS) as (hub, follower):
        await command(hub, "ban add", subject=BOB)
        await ask_hub(follower)
        await wait_in_force(follower, 1)
        await command(hub, "ban remove", subject=BOB)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (await command(hub, "provider show", provider=B))["our_terms_accepted"] != 2
        clock.advance(RENEW_SECONDS)
        await wait_in_force(follower, 2)


async def test_a_hub_that_is_away_when_its_terms_are_renewed_is_asked_again_only_at_the_next_time(
    tmp_path: Path,
) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=JOBS) as (_, follower):
        await ask_hub(follower)
        await wait_in_force(follower, 1)
        del follower.peers.peers[A]
        calls = len(follower.peers.calls)
        for _ in range(3 * int(RENEW_SECONDS) // 100):
            clock.advance(100)
            await trio.testing.wait_all_tasks_blocked(0.02)
        assert 2 <= len(follower.peers.calls) - calls <= 3


async def test_a_hub_that_was_away_is_asked_again_when_it_calls(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=JOBS) as (_, follower):
        await ask_hub(follower)
        await wait_in_force(follower, 1)
        hub = follower.peers.peers.pop(A)
        calls = len(follower.peers.calls)
        clock.advance(FETCH_INTERVAL_SECONDS)
        follower.services.accepted_terms.note_revision(A, 2)
        await until(lambda: called(follower, calls + 1))
        follower.peers.peers[A] = hub
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(follower.peers.calls) == calls + 1
        follower.services.callers.note(A)
        await until(lambda: called(follower, calls + 2))


async def test_a_call_of_a_hub_during_an_attempt_that_fails_makes_the_next_one_due(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=JOBS) as (_, follower):
        await ask_hub(follower)
        await wait_in_force(follower, 1)
        hub, calls = follower.peers.peers[A], len(follower.peers.calls)

        async def calls_us_and_fails(called: Called) -> PeerAnswer:
            follower.peers.peers[A] = hub
            follower.services.callers.note(A)
            raise PeerUnavailable

        follower.peers.peers[A] = calls_us_and_fails
        clock.advance(FETCH_INTERVAL_SECONDS)
        follower.services.accepted_terms.note_revision(A, 2)
        await until(lambda: called(follower, calls + 2))


async def test_the_terms_of_a_hub_are_fetched_once_in_a_second_however_often_they_change(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=JOBS) as (_, follower):
        await ask_hub(follower)
        await wait_in_force(follower, 1)
        await trio.testing.wait_all_tasks_blocked(0.05)
        calls = len(follower.peers.calls)
        for fetched in range(1, 3):
            clock.advance(FETCH_INTERVAL_SECONDS)
            await trio.testing.wait_all_tasks_blocked(0.05)
            for revision in (7, 8):
                follower.services.accepted_terms.note_revision(A, revision)
                await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(follower.peers.calls) == calls + fetched


async def called(follower: Assembled, calls: int) -> bool:
    return len(follower.peers.calls) >= calls


async def test_terms_are_renewed_by_the_time_that_has_passed_whatever_the_date_is(tmp_path: Path) -> None:
    clock = stopped_clock()
    clock.jump(1_000_000)  # as on every machine, the date is far ahead of the time since its start
    async with federated(tmp_path, A, B, clock=clock, jobs_of=JOBS) as (_, follower):
        await ask_hub(follower)
        await wait_in_force(follower, 1)
        calls = len(follower.peers.calls)
        for _ in range(int(RENEW_SECONDS) // 100 - 1):
            clock.advance(100)
            await trio.testing.wait_all_tasks_blocked(0.02)
        assert len(follower.peers.calls) == calls
        await until(lambda: called_later(follower, clock, calls + 1))
        assert len(follower.peers.calls) == calls + 1


async def called_later(follower: Assembled, clock: MovableClock, calls: int) -> bool:
    """Move the clock, and tell whether there were so many calls by then."""
    clock.advance(10)
    return len(follower.peers.calls) >= calls


async def test_the_operator_accepts_where_that_is_manual_and_what_was_accepted_stays(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=JOBS, arrangement={"accept": "manual"}) as (hub, follower):
        await command(hub, "ban add", subject=BOB)
        await ask_hub(follower)

        async def offered() -> bool:
            return bool((await command(follower, "provider show", provider=A))["their_terms"] == 1)

        await until(offered)
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await follower.services.hub_router.hub(A).send(bob(follower), room.send("not accepted, so not in force"))
        assert (await command(hub, "provider show", provider=B))["our_terms_accepted"] is None
        assert await command(follower, "provider accept", provider=A) == {"provider": A, "revision": 1}
        await wait_in_force(follower, 1)
        with pytest.raises(PolicyRefused):
            await follower.services.hub_router.hub(A).send(bob(follower), room.send("now it is"))
        with pytest.raises(NotFound):
            await command(follower, "provider accept", provider="c.example")


def _terms(**changed: Any) -> bytes:
    return json.dumps({"revision": 9, "hub": A, "bans": [BOB], "mutes": []} | changed).encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"terms",
        b"[" * 100_000,
        b"\xff",
        b"[]",
        _terms(hub="c.example"),
        _terms(revision=None),
        _terms(bans={}),
        _terms(mutes=[BOB]),
        _terms(padding="x" * TERMS_OCTETS),
    ],
)
async def test_an_answer_that_is_no_terms_is_a_failure_of_the_hub_and_changes_nothing(
    answer: bytes, tmp_path: Path
) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (_, follower):
        accepted = follower.services.accepted_terms
        assert await accepted.renew(A)
        before = (accepted.in_force(A), follower.dump())

        async def senseless(_: Called) -> PeerAnswer:
            return PeerAnswer(answer)

        follower.peers.add(A, senseless)
        calls = len(follower.peers.calls)
        with pytest.raises(PeerFailed, match="the hub's terms are not valid"):
            await accepted.renew(A)
        assert (accepted.in_force(A), follower.dump()) == before
        assert [call.method for call in follower.peers.calls[calls:]] == ["GET"], "nothing is confirmed"


async def test_terms_of_exactly_the_largest_size_are_read(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (_, follower):

        async def large(called: Called) -> PeerAnswer:
            return PeerAnswer(_terms().ljust(TERMS_OCTETS) if called.method == "GET" else b"")

        follower.peers.add(A, large)
        assert await follower.services.accepted_terms.renew(A)


@pytest.mark.parametrize("changes", [ACCEPT_ATTEMPTS - 1, ACCEPT_ATTEMPTS])
async def test_terms_that_change_all_the_time_are_given_up(changes: int, tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (_, follower):
        told: list[str] = []

        async def restless(called: Called) -> PeerAnswer:
            if called.method == "GET":
                return PeerAnswer(_terms(revision=len(told) + 1))
            told.append(called.path)
            if len(told) <= changes:
                raise ArrangementOutdated(revision=len(told) + 1)
            return PeerAnswer(b"")

        follower.peers.add(A, restless)
        if changes < ACCEPT_ATTEMPTS:
            assert await follower.services.accepted_terms.renew(A)
        else:
            with pytest.raises(PeerFailed, match="change faster"):
                await follower.services.accepted_terms.renew(A)
        assert told == [f"/ds/v1/arrangement/{n}" for n in range(1, ACCEPT_ATTEMPTS + 1)]


async def test_the_sizes_of_a_hub_are_limits_at_exactly_their_bound(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (_, follower):

        async def small(called: Called) -> PeerAnswer:
            sizes = {"message_bytes": 100, "welcome_bytes": 0}
            return PeerAnswer(_terms(sizes=sizes) if called.method == "GET" else b"")

        follower.peers.add(A, small)
        accepted = follower.services.accepted_terms
        accepted.check_sizes(A, {"message_bytes": 101})  # no terms are known yet
        await accepted.renew(A)
        accepted.check_sizes(A, {"message_bytes": 100, "welcome_bytes": 1 << 30, "group_info_bytes": 1 << 30})
        with pytest.raises(TooLarge) as refused:
            accepted.check_sizes(A, {"message_bytes": 101})
        assert refused.value.members == {"limit": "message_bytes", "octets": 101}


async def test_terms_that_change_while_they_are_accepted_are_accepted_as_they_are_then(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, follower):
        answer, changes = follower.peers.peers[A], iter(("mimi://b.example/u/ben", BOB))

        async def changing(called: Called) -> PeerAnswer:
            answered = await answer(called)
            subject = next(changes, None) if called.method == "GET" else None
            if subject is not None:
                await command(hub, "ban add", subject=subject)
            return answered

        follower.peers.add(A, changing)
        assert await follower.services.accepted_terms.renew(A)
        shown = await command(follower, "provider show", provider=A)
        assert (shown["their_terms_accepted"], shown["their_terms_told"]) == (3, True)
        assert len(shown["they_ban"]) == 2


@pytest.mark.parametrize("silent_hubs", [1, 30])
async def test_a_hub_that_does_not_answer_holds_up_no_other(tmp_path: Path, silent_hubs: int) -> None:
    async with federated(tmp_path, A, B, "c.example", jobs_of=JOBS) as (_, follower, _):

        async def silent(_: Called) -> PeerAnswer:
            await trio.sleep_forever()

        for n in range(silent_hubs):
            follower.peers.add(f"c{n}.example", silent)
            follower.services.accepted_terms.note_revision(ProviderId(f"c{n}.example"), 7)
        await trio.testing.wait_all_tasks_blocked()
        await ask_hub(follower)
        await wait_in_force(follower, 1)


async def test_rows_of_terms_are_found_by_hub_and_group(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):

        def work(tx: Any) -> None:
            row = providers.ensure_provider(tx, B)
            one, two = GroupId(b"one"), GroupId(b"two")
            users = [UserId(name) for name in (b"banned", b"everywhere", b"in one", b"nobody")]
            terms = [Restriction(users[0], None), Restriction(users[1], GroupId(b"")), Restriction(users[2], one)]
            arrangements.store_offer(tx, row, 1, "{}", hub.services.clock.now())
            arrangements.accept(tx, row, terms, hub.services.clock.now())
            assert arrangements.banned_by(tx, row, users) == {users[0]}
            assert arrangements.muted_by(tx, row, users, one) == {users[1], users[2]}
            assert arrangements.muted_by(tx, row, users, two) == {users[1]}
            assert arrangements.banned_by(tx, row + 1, users) == frozenset()

        await hub.services.store.write(work)


async def test_no_welcome_is_taken_for_whom_the_hub_bans(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, follower):
        refs = {name: KeyPackageRef(name.encode().ljust(32, b".")) for name in ("bob", "ben")}
        for name, ref in refs.items():
            await follower.add_device(name)
            await follower.services.store.write(partial(_hand_out, name, ref))
        call = partial(hub.peers.call, B, "POST", "/ds/v1/welcome/init")
        request = encode(WelcomeInitRequest(tuple(refs.values())))
        answer = decode(WelcomeInitResponse, (await call(request)).body)
        assert set(answer.accepted) == set(refs.values())
        await command(hub, "ban add", subject=BOB)
        await follower.services.accepted_terms.renew(A)
        answer = decode(WelcomeInitResponse, (await call(request)).body)
        assert answer.accepted == (refs["ben"],)
        secrets = tuple(EncryptedGroupSecrets(ref, HpkeCiphertext(b"k", b"c")) for ref in refs.values())
        welcome = MLSMessage(MLS10, WireFormat.WELCOME, Welcome(CipherSuite(1), secrets, b"info"))
        deliver = partial(hub.peers.call, B, "POST", "/ds/v1/welcome", media_type="message/mls")
        await deliver(encode(welcome))  # it was said yes to for Bob too, before the ban was known
        waiting = await follower.services.store.read(lambda tx: tx.all("SELECT device FROM inbox"))
        assert waiting == [(2,)]
        for_bob = MLSMessage(MLS10, WireFormat.WELCOME, Welcome(CipherSuite(1), secrets[:1], b"info"))
        with pytest.raises(WelcomeNotExpected):
            await deliver(encode(for_bob))


def _hand_out(name: str, ref: KeyPackageRef, tx: Any) -> None:
    """Remember a KeyPackage of a user's first device as handed out."""
    sql = "SELECT d.id FROM devices d JOIN users u ON u.id = d.owner WHERE u.user_id = ?"
    row = tx.one(sql, (f"mimi://b.example/u/{name}".encode(),))
    tx.execute(
        "INSERT INTO key_package_refs (ref, init_key, device, version, cipher_suite, expires_at, claimed_at)"
        " VALUES (?, ?, ?, 1, 1, ?, 1)",
        (ref, ref, row[0], 1 << 50),
    )
