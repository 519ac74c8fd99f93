"""For whom a restored group waits, and what is fetched again after a restore (semantics: restore)."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.following.recovery_as_follower import ROUND_SECONDS
from mimids.ds.following.recovery_as_hub import QUESTIONS_AT_ONCE
from mimids.ds.notifier import DELIVERY
from mimids.ds.ports import PeerAnswer
from mimids.errors import MethodNotAllowed, MimiError, PeerUnavailable, ProviderNotAllowed, RateLimited, UnknownGroup
from mimids.store import recoveries
from mimids.values import Follower
from mimids.wire.base64url import base64url
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, GroupId, ProviderId
from mimids.wire.messages import HeldGroupsResponse, PushRequest, PushResponse, ReceiveRequest
from tests.support.commands import command
from tests.support.doubles import Called, bound_hits
from tests.support.federation import Room, device, federated, wait_stored
from tests.support.provider import Assembled
from tests.support.restoring import all_groups_free, make_backup, restored
from tests.support.stored import rows, until
from tests.support.welcomes import hand_out, invite, reaches

pytestmark = pytest.mark.sqlite_file("backups and restores are of files")

A, B, C = map(ProviderId, ("a.example", "b.example", "c.example"))


async def refuses(called: Called) -> PeerAnswer:
    raise ProviderNotAllowed


async def is_down(called: Called) -> PeerAnswer:
    raise PeerUnavailable


async def followed(a: Assembled, b: Assembled) -> Room:
    """Create a group that another provider follows."""
    room = Room()
    await a.services.hub.create_group(room.creation(), device(a))
    await b.services.hub_router.hub(A).send(device(b, "bob"), room.send("0"))
    await wait_stored(b, A, device(b, "bob"), room.key, 1)
    return room


@pytest.mark.parametrize("state", ["delivered", "due"])
async def test_a_group_waits_for_those_who_got_a_welcome_and_asks_those_who_may_have_got_one(
    state: str, tmp_path: Path
) -> None:
    async with federated(tmp_path, A, B, jobs_of=()) as (a, _):
        await invite(a, Room())
        await a.services.store.write(lambda tx: tx.execute("UPDATE outgoing_welcomes SET state = ?", (state,)))
        make_backup(a, tmp_path / "copy")
        async with restored(a, tmp_path / "copy", tmp_path / "again", jobs=False) as again:
            again.peers.add(B, is_down)
            questions = "SELECT must_answer FROM recoveries WHERE group_ref > 0 AND answered = 0"
            assert await rows(again, questions) == [(int(state == "delivered"),)]
            async with trio.open_nursery() as tasks:
                await tasks.start(again.services.recovery_as_hub.run)
                await until(lambda: has_asked(again))
                assert bool(await rows(again, questions)) == (state == "delivered")
                tasks.cancel_scope.cancel()


async def has_asked(running: Assembled) -> bool:
    return len([call for call in running.peers.calls if call.path == "/ds/v1/recover/groups"]) > 1


async def test_nobody_waits_for_a_provider_that_may_not_be_called(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (a, b):
        room = await followed(a, b)
        make_backup(a, tmp_path / "copy")
        async with restored(a, tmp_path / "copy", tmp_path / "again", jobs=False) as again:
            again.peers.add(B, refuses)
            async with trio.open_nursery() as tasks:
                await tasks.start(again.services.recovery_as_hub.run)
                await all_groups_free(again)
                sent = await again.services.hub.send(room.send("1"), device(again))
                assert sent.counter > 1, "it may have messages under the next counters"
                tasks.cancel_scope.cancel()


async def test_followers_that_are_down_delay_only_their_own_groups_and_each_group_is_free_on_its_own(
    tmp_path: Path,
) -> None:
    groups_of_each = 40
    async with federated(tmp_path, A, B, C, jobs_of=()) as (a, b, c):
        for n in range(groups_of_each):
            for provider in (b, c):
                room = Room(f"{provider.config.provider} {n}")
                await a.services.hub.create_group(room.creation(), device(a))
                await provider.services.hub_router.hub(A).send(device(provider, "bob"), room.send("0"))
        make_backup(a, tmp_path / "copy")
        async with restored(a, tmp_path / "copy", tmp_path / "again", b, jobs=False) as again:
            asked_at_once = most = 0
            together = trio.Event()
            reach = again.peers.peers[B]

            async def counted(called: Called) -> PeerAnswer:
                nonlocal asked_at_once, most
                if called.path == "/ds/v1/recover":
                    asked_at_once += 1
                    most = max(most, asked_at_once)
                    if asked_at_once == QUESTIONS_AT_ONCE:
                        together.set()
                    with trio.move_on_after(5):
                        await together.wait()
                    asked_at_once -= 1
                return await reach(called)

            again.peers.add(B, counted)
            again.peers.add(C, is_down)
            async with trio.open_nursery() as tasks:
                await tasks.start(again.services.recovery_as_hub.run)
                await until(lambda: has_open_questions(again, groups_of_each + 1))
                assert most == QUESTIONS_AT_ONCE
                assert len([call for call in again.peers.calls if call.provider == C]) <= 10
                tasks.cancel_scope.cancel()


async def nobody_is_behind(running: Assembled) -> bool:
    behind = "SELECT p.next_counter > 1, f.next_counter < p.next_counter FROM follows f JOIN partitions p"
    return set(await rows(running, f"{behind} ON p.id = f.partition")) == {(1, 0)}


async def test_followers_are_told_of_counters_that_a_released_group_skips(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (a, b):
        room = await followed(a, b)
        make_backup(a, tmp_path / "copy")
        async with restored(a, tmp_path / "copy", tmp_path / "again", b) as again:
            reach = again.peers.peers[B]

            async def does_not_say_what_it_has(called: Called) -> PeerAnswer:
                return await (is_down if "recover" in called.path else reach)(called)

            again.peers.add(B, does_not_say_what_it_has)
            await command(again, "group release", group=room.group_id.decode())
            again.services.notifier.notify(DELIVERY)  # otherwise it looks within a minute
            await until(lambda: nobody_is_behind(again))


async def test_followers_are_told_of_counters_that_another_provider_had(tmp_path: Path) -> None:
    async def has_ten_messages(called: Called) -> PeerAnswer:
        if called.path != "/ds/v1/push":
            raise MethodNotAllowed
        epochs = decode(PushRequest, called.body).epochs
        return PeerAnswer(encode(PushResponse((Counter(10),) * len(epochs))))

    async with federated(tmp_path, A, B) as (a, b):
        room = await followed(a, b)
        await a.services.hub.receive(ReceiveRequest(room.key, Counter(0)), Follower(C))
        make_backup(a, tmp_path / "copy")
        async with restored(a, tmp_path / "copy", tmp_path / "again", b, jobs=False) as again:
            again.peers.add(C, has_ten_messages)
            async with trio.open_nursery() as tasks:
                await tasks.start(again.services.delivery.run)
                await tasks.start(again.services.recovery_as_hub.run)
                await until(lambda: nobody_is_behind(again))
                tasks.cancel_scope.cancel()


async def has_open_questions(running: Assembled, count: int) -> bool:
    return await rows(running, "SELECT count(*) FROM recoveries WHERE answered = 0") == [(count,)]


async def test_one_provider_of_several_can_be_given_up(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, C) as (a, b, c):
        room = await followed(a, b)
        await c.services.hub_router.hub(A).send(device(c, "carol"), room.send("1"))
        make_backup(a, tmp_path / "copy")
        async with restored(a, tmp_path / "copy", tmp_path / "again", jobs=False) as again:
            name = room.group_id.decode()
            assert (await command(again, "group list"))["groups"][0]["waits_for"] == [B, C]
            released = await command(again, "group release", group=name, provider=C)
            assert (released["did_not_answer"], released["waits_for"]) == (1, [B])
            released = await command(again, "group release", group=name)
            assert (released["did_not_answer"], released["waits_for"]) == (1, [])
            assert (await command(again, "group list"))["groups"][0]["waits_for"] == []


async def test_a_welcome_that_came_after_the_backup_comes_again(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (a, b):
        await hand_out(b)
        make_backup(b, tmp_path / "copy")
        await invite(a, Room())
        await reaches(a, "delivered")
        (before,) = await b.services.incoming_welcomes.inbox(device(b, "bob").row)
        async with restored(b, tmp_path / "copy", tmp_path / "again", a) as again:
            await until(lambda: again.services.incoming_welcomes.inbox(device(again, "bob").row))
            (found,) = await again.services.incoming_welcomes.inbox(device(again, "bob").row)
            assert found.body == before.body
            await until(lambda: has_finished(again))
            with pytest.raises(RateLimited):
                await a.services.recovery_answers.send_welcomes_again(Follower(B))
            assert bound_hits(a.services.telemetry, "welcomes-again") == 1
            await reaches(a, "delivered")


@pytest.mark.parametrize(("refusal", "again"), [(MethodNotAllowed(), False), (PeerUnavailable(), True)])
async def test_a_provider_that_sends_no_welcomes_again_is_asked_once_and_one_that_is_down_until_it_answers(
    refusal: MimiError, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []

    def note(backoff: Backoff, number: int, retry_after: float | None = None) -> float:
        failures.append(number)
        return 0.0

    async def sleep(seconds: float) -> None:
        paused.append(seconds)
        await trio.lowlevel.checkpoint()

    paused: list[float] = []
    monkeypatch.setattr(Backoff, "seconds", note)
    async with federated(tmp_path, A, B) as (a, b):
        await followed(a, b)
        make_backup(b, tmp_path / "copy")
        asked: list[str] = []

        async def refuses_welcomes(called: Called) -> PeerAnswer:
            if called.path == "/ds/v1/recover/welcomes":
                asked.append(called.path)
                if len(asked) < 3:
                    raise refusal
            return PeerAnswer(b"")

        async with restored(b, tmp_path / "copy", tmp_path / "again", jobs=False) as restarted:
            restarted.peers.add(A, refuses_welcomes)
            monkeypatch.setattr(restarted.services.clock, "sleep", sleep)
            await restarted.services.recovery_as_follower.run()
            assert paused.count(ROUND_SECONDS) == 1, "the hubs have so long to push"
            assert (len(asked), failures) == ((3, [1, 2]) if again else (1, []))
            assert await has_finished(restarted)


async def has_finished(running: Assembled) -> bool:
    return not await rows(running, "SELECT 1 FROM settings WHERE name = 'resume_everything'")


async def test_the_log_says_who_was_asked_and_what_came(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (a, b):
        room = await followed(a, b)
        make_backup(a, tmp_path / "copy")
        for n in range(1, 4):
            await a.services.hub.send(room.send(f"{n}"), device(a))
        await wait_stored(b, A, device(b, "bob"), room.key, 4)
        async with restored(a, tmp_path / "copy", tmp_path / "again", b) as again:
            await all_groups_free(again)
            await until(lambda: has_logged(again, (B, base64url(room.group_id), "3 messages"), (B, None, "1 groups")))


async def has_logged(running: Assembled, *came: tuple[str, str | None, str]) -> bool:
    lines = [line for line in running.log.lines if line["event"] == "asked another provider after a restore"]
    return {(line["peer"], line.get("group"), line["result"]) for line in lines} >= set(came)


async def test_a_group_that_was_only_named_can_be_released_while_two_providers_are_asked_about_it(
    tmp_path: Path,
) -> None:
    """The first answer removes the group, and the second one finds it gone."""
    asked: list[ProviderId] = []
    go_on = {B: trio.Event(), C: trio.Event()}

    async def knows_the_name(called: Called) -> PeerAnswer:
        if called.path == "/ds/v1/recover/groups":
            return PeerAnswer(encode(HeldGroupsResponse((GroupId(b"only named"),))))
        asked.append(called.provider)
        await go_on[called.provider].wait()
        raise UnknownGroup

    async with federated(tmp_path, A, jobs_of=()) as (a,):
        await a.services.store.write(lambda tx: recoveries.begin(tx, A, [B, C]))
        for name in (B, C):
            a.peers.add(name, knows_the_name)
        async with trio.open_nursery() as jobs:
            await jobs.start(a.services.recovery_as_hub.run)
            await until(lambda: _has_asked_both(asked))
            await command(a, "group release", group="only named")
            go_on[B].set()
            await until(lambda: _has_no_group(a))
            go_on[C].set()
            await until(lambda: _has_every_answer(a))
            jobs.cancel_scope.cancel()


async def _has_asked_both(asked: list[ProviderId]) -> bool:
    return sorted(asked) == [B, C]


async def _has_no_group(running: Assembled) -> bool:
    return not await rows(running, "SELECT 1 FROM groups")


async def _has_every_answer(running: Assembled) -> bool:
    """Tell whether each question has an answer."""
    lines = [line["result"] for line in running.log.lines if line["event"].startswith("asked another provider")]
    return len(lines) == 4
