"""Whom a restored provider asks, how often, and after which pause (semantics: restore)."""

from __future__ import annotations

from collections import Counter as Count
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.ds.backoff import Backoff
from mimids.ds.following import recovery_as_follower, recovery_as_hub
from mimids.ds.following.recovery_as_hub import TOPIC, RecoveryStatistics
from mimids.ds.notifier import DELIVERY, heard_topic
from mimids.ds.ports import PeerAnswer
from mimids.errors import MethodNotAllowed, MimiError, PeerUnavailable, ProviderNotAllowed, UnknownGroup
from mimids.store import group_deletion, groups
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, Counter, GroupId, ProviderId
from mimids.wire.messages import (
    HeldGroupsRequest,
    HeldGroupsResponse,
    PushRequest,
    PushResponse,
    RecoverRequest,
    RecoverResponse,
)
from tests.support.doubles import Called
from tests.support.federation import Room, device, federated, wait_stored
from tests.support.followers import epoch
from tests.support.patience import patience
from tests.support.provider import Assembled
from tests.support.restoring import all_groups_free, make_backup, recovering, restored
from tests.support.stored import rows, until

A, B, C = map(ProviderId, ("a.example", "b.example", "c.example"))
ROOM = Room()
NO_GROUPS = PeerAnswer(encode(HeldGroupsResponse(())))
GROUPS, MESSAGES, RESUME = "/ds/v1/recover/groups", "/ds/v1/recover", "/ds/v1/resume"


class Names:
    """A provider that names groups, two in each answer, and has no messages of them."""

    def __init__(self, *names: bytes, about: type[MimiError] = UnknownGroup) -> None:
        self.pages: list[bytes] = []  # after which group each answer began
        self.asked: list[bytes] = []  # about which groups
        self._names = names
        self._about = about

    async def __call__(self, called: Called) -> PeerAnswer:
        if called.path == GROUPS:
            after = decode(HeldGroupsRequest, called.body).after
            self.pages.append(after)
            page = [GroupId(name) for name in self._names if name > after][:2]
            return PeerAnswer(encode(HeldGroupsResponse(tuple(page))))
        self.asked.append(decode(RecoverRequest, called.body).group_id)
        raise self._about


async def has_nothing_open(running: Assembled) -> bool:
    return running.services.recovery_as_hub.statistics().waiting == 0


def results(running: Assembled) -> list[str]:
    lines = [line for line in running.log.lines if line["event"] == "asked another provider after a restore"]
    return [line["result"] for line in lines]


# --- as hub -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noted_at_once", [1, 500])
async def test_each_group_that_a_provider_names_is_asked_about_once_page_by_page(
    noted_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_as_hub, "GROUPS_IN_AN_ANSWER", 2)
    monkeypatch.setattr(recovery_as_hub, "NOTED_AT_ONCE", noted_at_once)
    names = Names(b"a", b"b", b"c", b"d")
    async with recovering(tmp_path, ROOM, names) as a:
        await all_groups_free(a)
        await until(lambda: has_nothing_open(a))
        assert names.pages == [b"", b"b", b"d"]
        assert sorted(names.asked) == [b"a", b"b", b"c", b"d"]
        assert Count(results(a)) == {"4 groups": 1, "unknown-group": 4}
        assert await rows(a, "SELECT group_id FROM groups") == [(ROOM.group_id,)]


def add_group(tx: Tx, group_id: GroupId, creation_digest: bytes | None) -> int:
    return groups.add_group(
        tx,
        hub=1,
        group_id=group_id,
        version=MLS10,
        cipher_suite=CipherSuite(1),
        creation_digest=creation_digest,
        creator=None,
        now=Milliseconds(0),
    ).id


async def test_a_deleted_group_and_one_of_others_that_a_provider_names_are_not_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = trio.Event()
    names = Names(b"a deleted one", ROOM.group_id, b"z new")

    async def peer(called: Called) -> PeerAnswer:
        await go_on.wait()
        return await names(called)

    def delete(tx: Tx) -> None:
        row = add_group(tx, GroupId(b"a deleted one"), bytes(32))
        group_deletion.delete_group(tx, row, Milliseconds(0), hosted=True)

    monkeypatch.setattr(recovery_as_hub, "GROUPS_IN_AN_ANSWER", 2)
    async with recovering(tmp_path, ROOM, peer) as a:
        await a.services.store.write(delete)
        go_on.set()
        await all_groups_free(a)
        assert names.asked == [b"z new"]


@pytest.mark.parametrize("linear", [False, True])
async def test_a_provider_may_say_later_than_another_that_a_group_is_linear(linear: bool, tmp_path: Path) -> None:
    other, go_on = Room("other"), trio.Event()

    async def peer(called: Called) -> PeerAnswer:
        await go_on.wait()
        if called.path == GROUPS:
            return PeerAnswer(encode(HeldGroupsResponse((other.group_id,))))
        known = decode(RecoverRequest, called.body).known
        epochs = () if known else (epoch(other, other.key, ["0"]),)
        return PeerAnswer(encode(RecoverResponse(MLS10, CipherSuite(1), epochs)), linear)

    async with recovering(tmp_path, ROOM, peer) as a:
        await a.services.store.write(lambda tx: add_group(tx, other.group_id, None))
        go_on.set()
        await all_groups_free(a)
        assert await rows(a, "SELECT linear FROM groups ORDER BY id") == [(0,), (int(linear),)]


async def test_a_group_that_was_only_named_is_removed_if_its_provider_does_not_allow_us(tmp_path: Path) -> None:
    async with recovering(tmp_path, ROOM, Names(b"z", about=ProviderNotAllowed)) as a:
        await all_groups_free(a)
        assert await rows(a, "SELECT group_id FROM groups") == [(ROOM.group_id,)]


@pytest.mark.parametrize("answer", ["messages", "counters", "not allowed"])
async def test_followers_are_pushed_what_an_answer_changed_and_it_is_counted(answer: str, tmp_path: Path) -> None:
    go_on = trio.Event()

    async def peer(called: Called) -> PeerAnswer:
        await go_on.wait()
        if called.path == GROUPS:
            return NO_GROUPS
        if answer == "not allowed":
            raise ProviderNotAllowed
        if called.path == "/ds/v1/push":
            return PeerAnswer(encode(PushResponse((Counter(3),) * len(decode(PushRequest, called.body).epochs))))
        if answer == "counters":
            raise MethodNotAllowed
        (known,) = decode(RecoverRequest, called.body).known
        epochs = () if known.counter > 1 else (epoch(ROOM, ROOM.key, ["1", "2"], 1),)
        return PeerAnswer(encode(RecoverResponse(MLS10, CipherSuite(1), epochs)))

    async with recovering(tmp_path, ROOM, peer, follows=True) as a:
        statistics = a.services.recovery_as_hub.statistics
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert statistics() == RecoveryStatistics(waiting=2, messages=0)
        with a.services.notifier.listen(DELIVERY) as waiter:
            go_on.set()
            with patience():
                await waiter.wait()
        await all_groups_free(a)
        await until(lambda: has_nothing_open(a))
        assert statistics().messages == (2 if answer == "messages" else 0)


async def test_a_provider_is_asked_once_at_a_time_and_again_after_growing_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []
    go_on, asked = trio.Event(), 0

    def note(backoff: Backoff, error: MimiError, number: int) -> float:
        failures.append(number)
        return 0.0

    async def peer(called: Called) -> PeerAnswer:
        nonlocal asked
        asked += 1
        await go_on.wait()
        if asked <= 3:
            raise PeerUnavailable
        return NO_GROUPS

    monkeypatch.setattr(Backoff, "seconds_after", note)
    async with recovering(tmp_path, ROOM, peer) as a:
        await trio.testing.wait_all_tasks_blocked(0.05)
        a.services.notifier.notify(TOPIC)
        with patience():
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert asked == 1
        go_on.set()
        await all_groups_free(a)
        assert (asked, failures) == (4, [1, 2, 3])


async def test_an_error_about_one_of_several_groups_leads_to_a_pause_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []
    asked = 0

    def note(backoff: Backoff, error: MimiError, number: int) -> float:
        failures.append(number)
        return 0.0

    async def peer(called: Called) -> PeerAnswer:
        nonlocal asked
        if called.path == GROUPS:
            return NO_GROUPS
        asked += 1
        if asked <= 2:
            return PeerAnswer(b"nonsense")
        raise UnknownGroup

    monkeypatch.setattr(Backoff, "seconds_after", note)
    async with recovering(tmp_path, ROOM, peer, follows=True) as a:
        await all_groups_free(a)
        assert failures == [1, 2]


# --- as follower --------------------------------------------------------------------------------------------------


# Longer than 40 lines: one story, in which each step needs the one before.
@pytest.mark.sqlite_file("backups and restores are of files")
async def test_a_hub_that_does_not_answer_is_asked_again_after_a_pause_or_when_it_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other partitions are skipped until then, and the other hubs are asked."""
    failures: list[int] = []
    asked: list[ProviderId] = []

    def note(backoff: Backoff, number: int, retry_after: float | None = None) -> float:
        failures.append(number)
        return 3600.0

    async def peer(called: Called) -> PeerAnswer:
        if called.path == RESUME:
            asked.append(called.provider)
            if called.provider == A and len(failures) < 2:
                raise PeerUnavailable
        return PeerAnswer(b"")

    monkeypatch.setattr(Backoff, "seconds", note)
    monkeypatch.setattr(recovery_as_follower, "ROUND_SECONDS", 0.0)
    async with federated(tmp_path, A, B, C) as (a, b, c):
        bob = device(b, "bob")
        for hub, name in ((a, "one"), (a, "two"), (c, "three")):
            room = Room(name, hub.config.provider)
            await hub.services.hub.create_group(room.creation(), device(hub))
            await b.services.hub_router.hub(room.hub).send(bob, room.send("0"))
            await wait_stored(b, room.hub, bob, room.key, 1)
        make_backup(b, tmp_path / "copy")
        async with restored(b, tmp_path / "copy", tmp_path / "again", jobs=False) as again:
            for name in (A, C):
                again.peers.add(name, peer)

            async def hear(name: ProviderId) -> list[ProviderId]:
                again.services.notifier.notify(heard_topic(name))
                await trio.testing.wait_all_tasks_blocked(0.05)
                return asked

            with patience():
                async with trio.open_nursery() as jobs:
                    jobs.start_soon(again.services.recovery_as_follower.run)
                    await until(lambda: _has_failed(failures, 1))
                    assert await hear(C) == [A, C], "it answered"
                    assert await hear(A) == [A, C] * 2
                    await hear(A)
            assert (asked, failures) == ([A, C, A, C, A, A, C], [1, 2])


async def _has_failed(failures: list[int], times: int) -> bool:
    return len(failures) == times
