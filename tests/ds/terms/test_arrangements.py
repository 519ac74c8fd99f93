"""The terms between a hub and its followers: given, seen, accepted, held to."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mimids.ds.commands import Context, command_named
from mimids.ds.ports import PeerAnswer
from mimids.ds.terms.hub_terms import HubTerms
from mimids.errors import (
    ArrangementOutdated,
    ArrangementRequired,
    Malformed,
    NotFound,
    PolicyRefused,
    ProviderNotAllowed,
    RateLimited,
    TooLarge,
    WelcomeNotExpected,
)
from mimids.mls.code_points import ContentType, WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import HpkeCiphertext
from mimids.mls.welcome import EncryptedGroupSecrets, Welcome
from mimids.store import arrangements, providers
from mimids.store.arrangements import HubTerm
from mimids.values import Device, Follower
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, Counter, GroupId, KeyPackageRef, ProviderId, UserId
from mimids.wire.messages import GroupInfoRequest, ReceiveRequest, SendRequest, WelcomeInitRequest, WelcomeInitResponse
from tests.support.doubles import Called, FakeClock
from tests.support.federation import PROPOSAL, Room, device, federated, read, wait_stored
from tests.support.provider import Assembled

A, B = ProviderId("a.example"), ProviderId("b.example")
BOB = "mimi://b.example/u/bob"
JOBS = ("delivery", "welcomes", "accepted_terms")
NOBODY = GroupId(b"no group")


async def command(of: Assembled, name: str, /, **arguments: Any) -> Any:
    """Run a command of the operator's, and what has to follow it."""
    made = command_named(name)
    context = Context.of(of.config, of.services.clock.now())
    answer = await of.services.store.write(lambda tx: made.run(tx, context, made.given(arguments)))
    if made.effects:
        of.services.offered_terms.forget()
        of.services.accepted_terms.forget()
    return answer


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(20):
        while not await look():  # noqa: ASYNC110  # what is waited for is a row
            await trio.sleep(0.01)


async def ask_something(follower: Assembled) -> None:
    """Call the hub for anything: its answer names the revision."""
    with pytest.raises(Exception, match=r"unknown|terms|group"):
        await follower.services.hub_router.hub(A).group_info(device(follower, "other", 9), GroupInfoRequest(NOBODY))


async def in_force(follower: Assembled, revision: int) -> None:
    """Wait until a revision of the hub's terms is in force at the follower, and the hub knows."""

    async def look() -> bool:
        shown = await command(follower, "provider show", provider=A)
        return bool(shown["their_terms_accepted"] == revision and shown["their_terms_told"])

    await until(look)


def bob(follower: Assembled) -> Device:
    return device(follower, "bob")


async def test_a_revision_counts_the_changes_of_what_concerns_the_follower(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        ours = hub.services.offered_terms
        await ours.load(B)
        assert ours.revision(B) == 1
        await command(hub, "ban add", subject="mimi://c.example/u/carol")
        await ours.load(B)
        assert ours.revision(B) == 1  # not about b.example's users
        await command(hub, "ban add", subject=BOB, reason="spam")
        await ours.load(B)
        assert ours.revision(B) == 2
        await command(hub, "ban add", subject=BOB, reason="again spam")
        await ours.load(B)
        assert ours.revision(B) == 2  # why is not part of the terms
        await command(hub, "limit mute", user=BOB, group="mimi://a.example/g/1")
        offer = await ours.terms_for(B)
        assert offer.revision == 3
        assert offer.as_json()["bans"] == [BOB]
        assert offer.as_json()["mutes"] == [{"user_id": BOB, "group_id": "bWltaTovL2EuZXhhbXBsZS9nLzE"}]
        assert HubTerms.read(json.loads(json.dumps(offer.as_json())), A).as_json() == offer.as_json()
        await command(hub, "ban remove", subject=BOB)
        assert (await ours.terms_for(B)).bans == ()


async def test_a_ban_that_ends_is_a_change_too(tmp_path: Path) -> None:
    clock = FakeClock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, _):
        ours = hub.services.offered_terms
        await command(hub, "ban add", subject=BOB, expires_at=clock.now() + 5000)
        await ours.load(B)
        assert (ours.revision(B), (await ours.terms_for(B)).bans) == (1, (BOB.encode(),))
        clock.advance(6)
        await ours.load(B)
        assert (ours.revision(B), (await ours.terms_for(B)).bans) == (2, ())


async def test_every_answer_names_the_revision_and_the_follower_accepts_what_is_new(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        await ask_something(follower)
        await in_force(follower, 1)
        assert (await command(hub, "provider show", provider=B))["our_terms_accepted"] == 1
        await command(hub, "ban add", subject=BOB)
        await ask_something(follower)
        await in_force(follower, 2)
        assert (await command(hub, "provider show", provider=B))["our_terms_accepted"] == 2
        assert (await command(follower, "provider show", provider=A))["they_ban"] == [{"user_id": BOB}]


async def test_whom_the_hub_bans_their_own_provider_keeps_out_but_for_leaving(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        room, who = Room(), bob(follower)
        await hub.services.hub.create_group(room.creation(), device(hub))
        hub_router = follower.services.hub_router
        await hub_router.hub(A).send(who, room.send("before"))
        assert await read(follower, who, A, room.key) == ["before"]
        await command(hub, "ban add", subject=BOB)
        await ask_something(follower)
        await in_force(follower, 2)
        called = len(follower.peers.calls)
        with pytest.raises(PolicyRefused) as refused:
            await hub_router.hub(A).send(who, room.send("after"))
        assert refused.value.members["rule"] == "hub-banned-sender"
        with pytest.raises(PolicyRefused):
            await read(follower, who, A, room.key)
        with pytest.raises(PolicyRefused):  # what a stream is filled from
            await hub_router.hub(A).page(who, ReceiveRequest(room.key, Counter(0)), limit_octets=1000)
        with pytest.raises(PolicyRefused):
            await hub_router.hub(A).group_info(who, GroupInfoRequest(room.group_id))
        assert len(follower.peers.calls) == called  # the hub was not even asked
        leaving = room.message("leave", kind=PROPOSAL)
        await hub_router.hub(A).send(who, SendRequest(leaving, room.key, None))  # it cannot be read: it may be that
        await follower.services.following.leave(who, A, room.group_id)
        other = device(follower, "ben", 2)
        await hub_router.hub(A).send(other, room.send("from somebody else"))
        assert await read(follower, other, A, room.key, 2) == ["from somebody else"]
        # Where b.example is the hub itself, the ban of a.example means nothing.
        own = Room("own", hub=B)
        await follower.services.hub.create_group(own.creation(), who)
        await hub_router.hub(B).send(who, own.send("at home"))


async def test_a_mute_holds_in_its_group_and_stops_application_messages_only(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        rooms, who = [Room("one"), Room("two")], bob(follower)
        for room in rooms:
            await hub.services.hub.create_group(room.creation(), device(hub))
        await command(hub, "limit mute", user=BOB, group=rooms[0].group_id.decode())
        await ask_something(follower)
        await in_force(follower, 1)
        hub_router = follower.services.hub_router
        with pytest.raises(PolicyRefused) as refused:
            await hub_router.hub(A).send(who, rooms[0].send("muted"))
        assert refused.value.members["rule"] == "hub-muted-sender"
        await hub_router.hub(A).send(who, rooms[1].send("not here"))
        await hub_router.hub(A).send(who, rooms[0].commit("a commit", Room.new_key()))
        await hub_router.hub(A).send(device(follower, "ben", 2), rooms[0].send("somebody else"))
        # The hub itself refuses nobody of whom it does not know that it is Bob.
        await hub.services.hub.send(rooms[0].send("unseen"), Follower(B))
        await command(hub, "limit unmute", user=BOB, group=rooms[0].group_id.decode())
        await ask_something(follower)
        await in_force(follower, 2)
        await hub_router.hub(A).send(who, rooms[0].send("again"))


async def test_a_batch_is_judged_message_by_message_and_keeps_its_order(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        room, muted, who = Room("one"), Room("two"), bob(follower)
        for each in (room, muted):
            await hub.services.hub.create_group(each.creation(), device(hub))
        await command(hub, "limit mute", user=BOB, group=muted.group_id.decode())
        await ask_something(follower)
        await in_force(follower, 1)
        batch = [room.send("0"), muted.send("1"), room.send("2"), muted.send("3"), room.send("4")]
        results = await follower.services.hub_router.hub(A).send_batch(who, batch)
        assert [isinstance(each, bytes) for each in results] == [False, True, False, True, False]
        assert await read(follower, who, A, room.key) == ["0", "2", "4"]
        only_refused = await follower.services.hub_router.hub(A).send_batch(who, [muted.send("5")])
        assert [isinstance(each, bytes) for each in only_refused] == [True]


async def test_what_is_accepted_is_still_known_after_a_restart(tmp_path: Path) -> None:
    room = Room()
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        await hub.services.hub.create_group(room.creation(), device(hub))
        await command(hub, "ban add", subject=BOB)
        await ask_something(follower)
        await in_force(follower, 1)
    async with federated(tmp_path, A, B, jobs_of=JOBS) as (hub, follower):
        with pytest.raises(PolicyRefused):
            await follower.services.hub_router.hub(A).send(bob(follower), room.send("after"))
        await hub.services.offered_terms.load(B)
        assert hub.services.offered_terms.revision(B) == 1
        assert follower.peers.calls == []


async def test_the_operator_accepts_where_that_is_manual_and_what_was_accepted_stays(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=JOBS, arrangement={"accept": "manual"}) as (hub, follower):
        await command(hub, "ban add", subject=BOB)
        await ask_something(follower)

        async def offered() -> bool:
            return bool((await command(follower, "provider show", provider=A))["their_terms"] == 1)

        await until(offered)
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await follower.services.hub_router.hub(A).send(bob(follower), room.send("not accepted, so not in force"))
        assert (await command(hub, "provider show", provider=B))["our_terms_accepted"] is None
        assert await command(follower, "provider accept", provider=A) == {"provider": A, "revision": 1}
        await in_force(follower, 1)
        with pytest.raises(PolicyRefused):
            await follower.services.hub_router.hub(A).send(bob(follower), room.send("now it is"))
        with pytest.raises(NotFound):
            await command(follower, "provider accept", provider="c.example")


async def test_terms_that_must_be_accepted_are_and_then_the_request_is_made_again(tmp_path: Path) -> None:
    required = {"required": True, "grace_seconds": 60}
    clock = FakeClock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=(), arrangement=required) as (hub, follower):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        spec = follower.services.peers
        with pytest.raises(ArrangementRequired) as wanted:
            await spec.call(A, "POST", "/ds/v1/receive", b"")
        assert wanted.value.members["revision"] == 1
        for path in ("welcome/init", "push", "resume"):
            with pytest.raises(Malformed):  # of the empty body: these are open to everybody
                await spec.call(A, "POST", f"/ds/v1/{path}")
        await spec.call(A, "GET", "/ds/v1/arrangement")
        await follower.services.hub_router.hub(A).send(bob(follower), room.send("accepted on the way"))
        assert (await command(hub, "provider show", provider=B))["our_terms_accepted"] == 1
        # The terms before the current ones suffice for the grace period, and no longer.
        await command(hub, "ban add", subject="mimi://b.example/u/ben")
        peers = follower.peers
        await peers.call(A, "POST", "/ds/v1/send", encode(room.send("in the grace period")))
        clock.advance(61)
        with pytest.raises(ArrangementRequired) as wanted:
            await peers.call(A, "POST", "/ds/v1/send", encode(room.send("too late")))
        assert wanted.value.members["revision"] == 2
        await follower.services.hub_router.hub(A).send(
            bob(follower), room.send("too late")
        )  # which accepts, and asks again


@pytest.mark.parametrize("way", ["receive", "present"])
async def test_terms_that_must_be_accepted_are_before_a_key_is_presented(way: str, tmp_path: Path) -> None:
    """The first thing that the provider of somebody who was added asks of a hub."""
    async with federated(tmp_path, A, B, arrangement={"required": True}) as (hub, follower):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await hub.services.hub.send(room.send("hello"), device(hub))
        if way == "receive":
            assert await read(follower, bob(follower), A, room.key) == ["hello"]
        else:
            await follower.services.hub_router.hub(A).present(bob(follower), room.key)
        assert await wait_stored(follower, A, bob(follower), room.key, 1) == ["hello"]


async def test_an_old_revision_is_not_taken_for_the_current_one(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, follower):
        call = follower.peers.call
        await call(A, "PUT", "/ds/v1/arrangement/1")
        await command(hub, "ban add", subject=BOB)
        for old in (1, 0, 7):
            with pytest.raises(ArrangementOutdated) as outdated:
                await call(A, "PUT", f"/ds/v1/arrangement/{old}")
            assert outdated.value.members["revision"] == 2
        answer = await call(A, "PUT", "/ds/v1/arrangement/2")
        assert answer.headers["mimids-arrangement"] == "2"
        with pytest.raises(NotFound):
            await call(A, "PUT", "/ds/v1/arrangement/two")


async def test_a_banned_provider_is_not_dealt_with_either_way_until_its_ban_ends(tmp_path: Path) -> None:
    clock = FakeClock()
    async with federated(tmp_path, A, B, clock=clock, jobs_of=()) as (hub, follower):
        room = Room()
        await hub.services.hub.create_group(room.creation(), device(hub))
        await command(hub, "ban add", subject=B, expires_at=clock.now() + 60_000)
        with pytest.raises(ProviderNotAllowed):
            await follower.services.hub_router.hub(A).send(bob(follower), room.send("no"))
        with pytest.raises(ProviderNotAllowed):
            await hub.services.peers.call(B, "POST", "/ds/v1/push")
        assert hub.peers.calls == []
        clock.advance(61)
        await follower.services.hub_router.hub(A).send(bob(follower), room.send("yes"))


async def test_a_hub_is_not_believed_about_other_providers_users(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (_, follower):
        said = {
            "revision": 4,
            "hub": A,
            "bans": ["mimi://a.example/u/alice", BOB],
            "mutes": [],
            "rates": {},
            "sizes": {},
        }
        assert {each.user_id for each in HubTerms.read(said, A).terms_for(B)} == {BOB.encode()}
        wrongs: tuple[Any, ...] = (
            {**said, "hub": "c.example"},
            {**said, "revision": "4"},
            {**said, "bans": "all"},
            {**said, "bans": [7]},
            {**said, "mutes": [{"user_id": BOB}]},
            {**said, "rates": {"device_sends_per_second": -1}},
            {**said, "sizes": {"message_bytes": "big"}},
            [],
        )
        for wrong in wrongs:
            with pytest.raises(ValueError, match=r"terms|must|member|encoding"):
                HubTerms.read(wrong, A)
        assert await follower.services.store.read(arrangements.all_taken) == []


async def test_the_hubs_rates_and_sizes_hold_for_each_of_our_devices_there(tmp_path: Path) -> None:
    clock = FakeClock()
    limits = {"device_sends_per_second": 1, "device_sends_burst": 2, "message_bytes": 200}
    async with federated(tmp_path, A, B, clock=clock, jobs_of=(), limits=limits) as (hub, follower):
        room, who = Room(), bob(follower)
        await hub.services.hub.create_group(room.creation(), device(hub))
        await follower.services.accepted_terms.renew(A)
        hub_router = follower.services.hub_router
        with pytest.raises(TooLarge):
            await hub_router.hub(A).send(who, room.send("x" * 300))
        await hub_router.hub(A).send(who, room.send("2"))
        with pytest.raises(RateLimited) as limited:
            await hub_router.hub(A).send(who, room.send("3"))
        assert limited.value.members["retry_after"] == 1
        clock.advance(1)
        await hub_router.hub(A).send(who, room.send("3"))


async def test_a_page_for_a_banned_reader_of_the_hubs_own_holds_handshakes_only(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):
        room, alice, anna = Room(), device(hub), device(hub, "anna", 2)
        await hub.services.hub.create_group(room.creation(), alice)
        for request in (
            room.send("app 0"),
            room.commit("commit 1", Room.new_key()),
            room.commit("commit 2", Room.new_key()),
            room.send("app 3"),
            room.commit("commit 4", Room.new_key()),
            room.send("app 5"),
        ):
            await hub.services.hub_router.hub(A).send(alice, request)
        await command(hub, "ban add", subject="mimi://a.example/u/anna")
        seen, counter = [], 0
        while page := await read(hub, anna, A, room.key, counter):
            seen += page
            counter += len(page)
        assert set(seen) == {"commit 1", "commit 2", "commit 4"}
        counters: list[int] = []
        asking = ReceiveRequest(room.key, Counter(0))
        while (found := await hub.services.hub_router.hub(A).page(anna, asking, limit_octets=300)) and found[
            1
        ].messages:
            page_ = found[1]
            assert page_.kinds == {ContentType.COMMIT}
            counters += range(page_.counter, page_.counter + len(page_.messages))
            asking = ReceiveRequest(room.key, Counter(counters[-1] + 1))
        assert counters == [1, 2, 4]
        assert len(await read(hub, alice, A, room.key)) == 6


async def test_rows_of_terms_are_found_by_hub_and_group(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, _):

        def work(tx: Any) -> None:
            row = providers.ensure_provider(tx, B)
            one, two = GroupId(b"one"), GroupId(b"two")
            users = [UserId(name) for name in (b"banned", b"everywhere", b"in one", b"nobody")]
            terms = [HubTerm(users[0], None), HubTerm(users[1], GroupId(b"")), HubTerm(users[2], one)]
            arrangements.note_offer(tx, row, 1, "{}", hub.services.clock.now())
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
    sql = "SELECT d.id FROM devices d JOIN users u ON u.id = d.user WHERE u.user_id = ?"
    row = tx.one(sql, (f"mimi://b.example/u/{name}".encode(),))
    tx.execute(
        "INSERT INTO key_package_refs (ref, init_key, device, version, cipher_suite, expires_at, claimed_at)"
        " VALUES (?, ?, ?, 1, 1, ?, 1)",
        (ref, ref, row[0], 1 << 50),
    )


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


async def test_a_hub_that_does_not_answer_holds_up_no_other(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, "c.example", jobs_of=JOBS) as (_, follower, _):

        async def silent(_: Called) -> PeerAnswer:
            await trio.sleep_forever()

        follower.peers.add("c.example", silent)
        follower.services.accepted_terms.note_revision(ProviderId("c.example"), 7)
        await trio.testing.wait_all_tasks_blocked()
        await ask_something(follower)
        await in_force(follower, 1)


async def test_after_a_restore_no_revision_is_given_twice(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (hub, follower):
        await follower.services.accepted_terms.renew(A)
        await command(hub, "ban add", subject=BOB)
        await follower.services.accepted_terms.renew(A)
        await hub.services.store.write(lambda tx: tx.execute("UPDATE terms_given SET revision = 1"))
        await command(hub, "ban remove", subject=BOB)  # the database is the one before the ban
        await hub.services.store.write(arrangements.outrun_revisions)
        assert await follower.services.accepted_terms.renew(A)
        shown = await command(follower, "provider show", provider=A)
        assert shown["they_ban"] == []
        assert shown["their_terms"] > 2
