"""The terms of other hubs: fetched, accepted, confirmed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mimids.ds.ports import PeerAnswer
from mimids.errors import (
    NotFound,
    PolicyRefused,
    WelcomeNotExpected,
)
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import HpkeCiphertext
from mimids.mls.welcome import EncryptedGroupSecrets, Welcome
from mimids.store import arrangements, providers
from mimids.store.arrangements import Restriction
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, KeyPackageRef, ProviderId, UserId
from mimids.wire.messages import WelcomeInitRequest, WelcomeInitResponse
from tests.support.commands import command
from tests.support.doubles import Called
from tests.support.federation import Room, device, federated
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
        with pytest.raises(PolicyRefused):
            await follower.services.hub_router.hub(A).send(bob(follower), room.send("after"))
        await hub.services.offered_terms.load(B)
        assert hub.services.offered_terms.revision(B) == 1
        assert follower.peers.calls == []


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
