"""Removed devices leave their groups: by proposals of their provider, until the leaf is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from mimids.ds.departures import departures as job
from mimids.errors import PeerUnavailable
from mimids.http.api.operator_socket import OPERATOR_SOCKET
from mimids.mls.code_points import ContentType
from mimids.store import provider_keys
from mimids.store.departures import DUE, IMPOSSIBLE, PROPOSED, search_again
from mimids.values import Device
from mimids.wire.ids import Counter
from mimids.wire.messages import ReceiveRequest, SendRequest
from tests.support.chats import Chat, eventually_removals, owned, private_message, removals, senders_of
from tests.support.doubles import Called, bound_hits, stopped_clock
from tests.support.federation import federated
from tests.support.inmemory import InMemory
from tests.support.mls_makers import NOW
from tests.support.provider import Assembled
from tests.support.rig import packages
from tests.support.signing import Client
from tests.support.stored import DAY, rows, until

JOBS = ("delivery", "outgoing_welcomes", "departures")
ALICE, BOB, CAROL = Client.of(1, "alice@a.example"), Client.of(2, "bob@b.example"), Client.of(3, "carol@a.example")
SENT = (PROPOSED, None)


async def operate(provider: Assembled, command: str, **arguments: object) -> Any:
    socket = InMemory(provider.app(OPERATOR_SOCKET))
    headers = {"content-type": "application/json"}
    answer = await socket.ask("POST", f"/v1/{command}", json.dumps(arguments).encode(), headers)
    assert answer.status == 200, answer.body
    return answer.json()


async def upload_key(provider: Assembled, device: Device, client: Client) -> None:
    """Record the signature key of a client as an upload of its KeyPackages does."""
    await provider.services.store.write(lambda tx: provider_keys.add_of_device(tx, device.row, [client.signer.public]))


def refuse_to_answer(hub: Assembled, provider: Assembled) -> list[bytes]:
    """Let no call of a provider reach a hub from now on; return the list to which its Removes are added."""
    proposed: list[bytes] = []

    async def lose(called: Called) -> Any:
        if called.path == "/ds/v1/propose":
            proposed.append(called.body)
        raise PeerUnavailable

    provider.peers.add(hub.config.provider, lose)
    return proposed


@pytest.mark.parametrize("command", ["device/remove", "user/remove", "forget"])
@pytest.mark.parametrize("uploaded", [True, False])
async def test_a_removed_device_leaves_a_group_here_once_a_member_commits(
    command: str, uploaded: bool, tmp_path: Path
) -> None:
    async with federated(tmp_path, "a.example", jobs_of=JOBS) as (a,):
        alice, carol = await owned(a, "alice", ALICE), await owned(a, "carol", CAROL)
        if uploaded:
            await upload_key(a, carol, CAROL)
        chat = await Chat.create(a, alice, [ALICE, CAROL], await senders_of(a))
        await operate(a, command, user="carol", **({"name": carol.name} if command == "device/remove" else {}))
        await eventually_removals(a, SENT)
        assert len(await chat.removes()) == 1
        await chat.commit_pending()
        assert chat.leaf_of(CAROL) is None
        await eventually_removals(a)


async def test_what_a_commit_did_not_cover_is_proposed_again(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=JOBS) as (a,):
        alice, carol = await owned(a, "alice", ALICE), await owned(a, "carol", CAROL)
        chat = await Chat.create(a, alice, [ALICE, CAROL], await senders_of(a))
        await operate(a, "device/remove", user="carol", name=carol.name)
        await eventually_removals(a, SENT)
        for epoch in range(3):
            if epoch % 2:
                await chat.commit()
            else:
                await chat.join(Client.of(40 + epoch, "alice@a.example"), alice)
            assert await chat.removes() == []

            async def proposed() -> bool:
                a.services.notifier.notify("departures")
                return len(await chat.removes()) == 1

            await until(proposed)
        await chat.commit_pending()
        await eventually_removals(a)


async def test_a_suspended_user_and_others_stay(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=JOBS) as (a,):
        alice, carol = await owned(a, "alice", ALICE), await owned(a, "carol", CAROL)
        again = Client.of(4, "carol@a.example")
        other = await owned(a, "carol", again)
        chat = await Chat.create(a, alice, [ALICE, CAROL, again], await senders_of(a))
        await operate(a, "user/suspend", user="carol")
        await operate(a, "user/resume", user="carol")
        await operate(a, "device/rotate-token", user="carol", name=other.name)
        await operate(a, "device/remove", user="carol", name=carol.name)
        await eventually_removals(a, SENT)
        await chat.commit_pending()
        assert (chat.leaf_of(CAROL), chat.leaf_of(again)) == (None, 2)
        await eventually_removals(a)


async def test_a_reinstalled_device_of_the_same_name_stays(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=JOBS) as (a,):
        alice, carol = await owned(a, "alice", ALICE), await owned(a, "carol", CAROL)
        again = Client.of(9, credential=CAROL.credential)
        await upload_key(a, carol, CAROL)
        chat = await Chat.create(a, alice, [ALICE, CAROL, again], await senders_of(a))
        await operate(a, "device/remove", user="carol", name=carol.name)
        await eventually_removals(a, SENT, (IMPOSSIBLE, "other-key"))
        await upload_key(a, await owned(a, "carol", CAROL), again)
        await chat.commit_pending()
        assert (chat.leaf_of(CAROL), chat.leaf_of(again)) == (None, 2)
        await eventually_removals(a)


async def test_a_leaf_of_a_user_who_was_removed_twice_leaves_once(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=JOBS) as (a,):
        alice = await owned(a, "alice", ALICE)
        chat = await Chat.create(a, alice, [ALICE, CAROL], await senders_of(a))
        for _ in range(2):
            await operate(a, "user/add", name="carol", reuse=True)
            await operate(a, "user/remove", user="carol")
            await eventually_removals(a, SENT)
        assert len(await chat.removes()) == 1
        await operate(a, "user/add", name="carol", reuse=True)
        carol = await owned(a, "carol", CAROL)  # somebody has the user id again
        await chat.commit()
        await eventually_removals(a, (IMPOSSIBLE, "other-key"))
        await upload_key(a, carol, CAROL)
        await chat.commit()
        await eventually_removals(a)


async def test_a_group_of_another_hub_is_left_through_its_hub(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example", jobs_of=JOBS) as (a, b):
        alice, bob = await owned(a, "alice", ALICE), await owned(b, "bob", BOB)
        chat = await Chat.create(a, alice, [ALICE, BOB], await senders_of(a, b))
        await chat.follow(b, bob)
        await operate(b, "device/remove", user="bob", name=bob.name)
        await eventually_removals(b, SENT)
        assert len(await chat.removes()) == 1
        await chat.commit()  # it covers nothing

        async def proposed() -> bool:
            b.services.notifier.notify("departures")
            return len(await chat.removes()) == 1

        await until(proposed)  # although no device of b.example is in the group any more
        await chat.commit_pending()
        assert chat.leaf_of(BOB) is None
        await eventually_removals(b)


async def test_a_hub_that_cannot_be_reached_gets_the_same_octets_later(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example", jobs_of=JOBS) as (a, b):
        alice, bob = await owned(a, "alice", ALICE), await owned(b, "bob", BOB)
        chat = await Chat.create(a, alice, [ALICE, BOB], await senders_of(b))
        await chat.follow(b, bob)
        reach, sent = b.peers.peers[a.config.provider], []

        async def lose(called: Called) -> Any:
            answer = await reach(called)
            if called.path == "/ds/v1/propose":
                sent.append(called.body)
                raise PeerUnavailable
            return answer

        b.peers.add(a.config.provider, lose)
        await operate(b, "device/remove", user="bob", name=bob.name)

        async def failed() -> (
            bool
        ):  # the hub may push the proposal back at any time, so the removal may be done by then
            return b.services.departures.statistics().failures > 0

        await until(failed)
        b.peers.add(a.config.provider, reach)
        b.services.departures.heard(a.config.provider)
        await eventually_removals(b, SENT)
        assert len(await chat.removes()) == len(set(sent)) == 1


@pytest.mark.parametrize("end", ["its time", "a call of the hub"])
async def test_a_hub_that_cannot_be_reached_is_left_alone_until_its_back_off_ends(end: str, tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, "a.example", "b.example", jobs_of=JOBS, clock=clock) as (a, b):
        alice, bob = await owned(a, "alice", ALICE), await owned(b, "bob", BOB)
        for name in ("one", "two"):
            chat = await Chat.create(a, alice, [ALICE, BOB], await senders_of(b), name=name)
            await chat.follow(b, bob)
        reach = b.peers.peers[a.config.provider]
        proposed = refuse_to_answer(a, b)
        await operate(b, "device/remove", user="bob", name=bob.name)
        waits = (DUE, "peer-unavailable")
        await eventually_removals(b, waits, waits)
        await b.services.store.write(search_again)  # a search does not end the back-off

        async def searched() -> bool:
            b.services.notifier.notify("departures")
            return not await rows(b, "SELECT 1 FROM removals WHERE next_group IS NOT NULL")

        await until(searched)
        for _ in range(20):
            b.services.notifier.notify("departures")
            await trio.sleep(0.01)
        assert len(proposed) == 1
        b.peers.add(a.config.provider, reach)
        if end == "its time":
            clock.advance(3600)
        else:
            b.services.departures.heard(a.config.provider)
        await eventually_removals(b, SENT, SENT)


async def test_a_call_of_the_hub_before_an_attempt_does_not_end_the_back_off_after_it(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example", jobs_of=JOBS, clock=stopped_clock()) as (a, b):
        alice, bob = await owned(a, "alice", ALICE), await owned(b, "bob", BOB)
        chat = await Chat.create(a, alice, [ALICE, BOB], await senders_of(b))
        await chat.follow(b, bob)
        await operate(b, "device/remove", user="bob", name=bob.name)
        await eventually_removals(b, SENT)
        b.services.departures.heard(a.config.provider)
        proposed = refuse_to_answer(a, b)
        await chat.commit()  # it covers nothing, so the Remove is proposed once more
        await eventually_removals(b, (DUE, "peer-unavailable"))
        for _ in range(20):
            b.services.notifier.notify("departures")
            await trio.sleep(0.01)
        assert len(proposed) == 1


async def test_new_terms_of_a_hub_are_accepted_for_a_remove(tmp_path: Path) -> None:
    rule = {"required": True, "grace_seconds": 0}
    clock = stopped_clock()
    async with federated(tmp_path, "a.example", "b.example", jobs_of=JOBS, clock=clock, arrangement=rule) as (a, b):
        alice, bob = await owned(a, "alice", ALICE), await owned(b, "bob", BOB)
        await b.services.accepted_terms.renew(a.config.provider)
        await a.services.accepted_terms.renew(b.config.provider)
        chat = await Chat.create(a, alice, [ALICE, BOB], await senders_of(b))
        await chat.follow(b, bob)
        await operate(a, "ban/add", subject="mimi://b.example/u/somebody")
        await operate(b, "device/remove", user="bob", name=bob.name)
        await eventually_removals(b, SENT)
        assert len(await chat.removes()) == 1


async def test_a_removal_is_watched_until_the_last_key_package_of_the_device_has_expired(tmp_path: Path) -> None:
    clock = stopped_clock(NOW)
    async with federated(tmp_path, "a.example", jobs_of=(), clock=clock) as (a,):
        carol = await owned(a, "carol", CAROL)
        uploaded = await a.services.key_packages.upload(carol, packages(carol.user_id, 2))
        assert uploaded.accepted == 2
        (last,) = await rows(a, "SELECT max(expires_at) FROM key_package_refs")
        await operate(a, "device/remove", user="carol", name=carol.name)
        assert await rows(a, "SELECT packages_expire_at FROM removals") == [last]
        assert last[0] > clock.now()


async def test_signature_keys_of_key_packages_that_an_older_version_stored_are_recorded(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=(), clock=stopped_clock(NOW)) as (a,):
        carol = await owned(a, "carol", CAROL)
        await a.services.key_packages.upload(carol, packages(carol.user_id, 2))
        await a.services.store.write(lambda tx: tx.execute("DELETE FROM device_signature_keys"))
        async with trio.open_nursery() as jobs:
            await jobs.start(a.services.departures.run)
            await until(lambda: rows(a, "SELECT 1 FROM device_signature_keys WHERE device = ?", carol.row))
            jobs.cancel_scope.cancel()


async def test_all_groups_are_searched_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "GROUPS_AT_ONCE", 1)
    async with federated(tmp_path, "a.example", jobs_of=JOBS, clock=stopped_clock()) as (a,):
        alice, carol = await owned(a, "alice", ALICE), await owned(a, "carol", CAROL)
        for name in ("one", "two", "three"):
            await Chat.create(a, alice, [ALICE, CAROL], name=name)
        await operate(a, "device/remove", user="carol", name=carol.name)

        async def searched() -> bool:
            return await removals(a) == [(IMPOSSIBLE, "key-not-listed")] * 3

        await until(searched)


@pytest.mark.parametrize("bare", [True, False])
async def test_either_form_of_external_senders_is_enough(bare: bool, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=JOBS) as (a,):
        alice, carol = await owned(a, "alice", ALICE), await owned(a, "carol", CAROL)
        chat = await Chat.create(a, alice, [ALICE, CAROL], await senders_of(a, bare=bare))
        await operate(a, "device/remove", user="carol", name=carol.name)
        await eventually_removals(a, SENT)
        await chat.commit_pending()
        await eventually_removals(a)


async def test_what_cannot_be_done_is_listed_with_its_reason(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example", jobs_of=JOBS) as (a, b):
        alice, carol = await owned(a, "alice", ALICE), await owned(a, "carol", CAROL)
        await Chat.create(a, alice, [ALICE, CAROL], await senders_of(b), name="other key")
        hidden = await Chat.create(a, carol, [CAROL, ALICE], await senders_of(a), name="hidden")
        await hidden.encrypt_commit()
        await operate(a, "device/remove", user="carol", name=carol.name)
        await eventually_removals(a, (IMPOSSIBLE, "key-not-listed"), (IMPOSSIBLE, "encrypted-handshakes"))
        answer = await operate(a, "device/removals")
        listed = {each["reason"]: each for each in answer["removals"]}
        assert listed["key-not-listed"]["member"] == "mimi://a.example/u/carol/d/3"
        assert listed["key-not-listed"]["leaf"] == 1
        assert listed["encrypted-handshakes"]["member"] is None
        assert {each["name"].rpartition("/")[2] for each in answer["removals"]} == {"other key", "hidden"}


@pytest.mark.parametrize("command", ["device/remove", "user/remove", "forget"])
async def test_a_group_that_was_read_just_before_the_removal_is_listed(command: str, tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", jobs_of=JOBS) as (a,):
        alice, carol = await owned(a, "alice", ALICE), await owned(a, "carol", CAROL)
        hidden = await Chat.create(a, alice, [ALICE, CAROL], await senders_of(a))
        await a.services.hub_router.hub(a.config.provider).receive(carol, ReceiveRequest(hidden.key, Counter(0)))
        await hidden.encrypt_commit()
        await operate(a, command, user="carol", **({"name": carol.name} if command == "device/remove" else {}))
        await eventually_removals(a, (IMPOSSIBLE, "encrypted-handshakes"))


async def test_one_hub_has_a_bounded_number_of_departures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "DEPARTURES_OF_A_HUB", 2)
    clock = stopped_clock()
    async with federated(tmp_path, "a.example", jobs_of=JOBS, clock=clock) as (a,):
        alice, carol = await owned(a, "alice", ALICE), await owned(a, "carol", CAROL)
        senders = await senders_of(a)
        chats = [await Chat.create(a, alice, [ALICE, CAROL], senders, name=f"chat {number}") for number in range(3)]
        await operate(a, "device/remove", user="carol", name=carol.name)
        await eventually_removals(a, SENT, SENT)
        assert bound_hits(a.services.telemetry, "departures") > 0
        for chat in chats[:2]:
            await chat.commit_pending()
        await eventually_removals(a)
        clock.advance(job.SEARCH_ALL_SECONDS)  # there is room now
        await eventually_removals(a, SENT)
        assert len(await chats[2].removes()) == 1


async def test_a_group_of_leaves_that_only_claim_to_be_a_device_leaves_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "DEPARTURES_OF_A_HUB", 3)
    monkeypatch.setattr(job, "DEPARTURES_OF_A_GROUP", 3)
    async with federated(tmp_path, "a.example", jobs_of=JOBS) as (a,):
        alice = await owned(a, "alice", ALICE)
        await owned(a, "carol", CAROL)
        await Chat.create(a, alice, [ALICE, *(Client.of(number, "carol@a.example") for number in range(20, 24))])
        await Chat.create(a, alice, [ALICE, CAROL], await senders_of(a), name="real")
        await operate(a, "user/remove", user="carol")
        other = (IMPOSSIBLE, "key-not-listed")
        await eventually_removals(a, other, other, other, SENT)
        assert bound_hits(a.services.telemetry, "departures") > 0


async def test_a_state_that_comes_just_after_the_removal_is_taken(tmp_path: Path) -> None:
    async with federated(tmp_path, "a.example", "b.example", jobs_of=("departures",)) as (a, b):
        alice, bob = await owned(a, "alice", ALICE), await owned(b, "bob", BOB)
        chat = await Chat.create(a, alice, [ALICE, BOB], await senders_of(b))
        hub = b.services.hub_router.hub(a.config.provider)
        await hub.receive(bob, ReceiveRequest(chat.key, Counter(0)))
        await hub.send(bob, SendRequest(private_message(chat.room, ContentType.APPLICATION), chat.key, None))
        await operate(b, "device/remove", user="bob", name=bob.name)
        await eventually_removals(b, (IMPOSSIBLE, "state-unknown"))
        async with trio.open_nursery() as pushing:
            await pushing.start(a.services.delivery.run)
            await eventually_removals(b, SENT)
            pushing.cancel_scope.cancel()


async def test_a_remove_that_failed_while_the_clock_was_ahead_is_proposed_when_it_is_right(tmp_path: Path) -> None:
    clock = stopped_clock()
    async with federated(tmp_path, "a.example", "b.example", clock=clock, jobs_of=JOBS) as (a, b):
        alice, bob = await owned(a, "alice", ALICE), await owned(b, "bob", BOB)
        chat = await Chat.create(a, alice, [ALICE, BOB], await senders_of(b))
        await chat.follow(b, bob)
        reach = b.peers.peers[a.config.provider]
        refuse_to_answer(a, b)
        clock.jump(365 * DAY)
        await operate(b, "device/remove", user="bob", name=bob.name)
        await eventually_removals(b, (DUE, "peer-unavailable"))
        b.peers.add(a.config.provider, reach)
        clock.jump(-365 * DAY)
        clock.advance(b.config.delivery.backoff_cap_seconds)
        b.services.notifier.notify("departures")
        await eventually_removals(b, SENT)
