"""After a restore: a provider that is allowed, and nothing else, gets no group and can forge nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mimids.ds.following import recovery_as_hub
from mimids.ds.following.intake import RESTORED_JUMP
from mimids.ds.ports import PeerAnswer
from mimids.errors import UnknownGroup
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import Add
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, Counter, GroupId
from mimids.wire.messages import (
    Epoch,
    GroupInfoResponse,
    HeldGroupsRequest,
    HeldGroupsResponse,
    PushedEpoch,
    RecoverResponse,
)
from tests.support import signing
from tests.support.doubles import Called, bound_hits
from tests.support.federation import Room, device, read
from tests.support.followers import epoch
from tests.support.provider import Assembled
from tests.support.restoring import recovering
from tests.support.signing import Client
from tests.support.stored import rows, until


class Liar:
    """A provider that claims to have groups and returns what it likes of them."""

    def __init__(self, *group_ids: GroupId, answer: RecoverResponse | None = None, endless: bool = False) -> None:
        self.asked: list[str] = []
        self._group_ids = group_ids
        self._answer = answer
        self._endless = endless
        self._pages = 0

    async def __call__(self, called: Called) -> PeerAnswer:
        self.asked.append(called.path)
        if called.path == "/ds/v1/recover/groups":
            if self._endless:
                self._pages += 1
                made_up = (GroupId(f"{self._pages:06}-{n:06}".encode()) for n in range(10_000))
                return PeerAnswer(encode(HeldGroupsResponse(tuple(made_up))))
            after = decode(HeldGroupsRequest, called.body).after
            return PeerAnswer(encode(HeldGroupsResponse(tuple(each for each in self._group_ids if each > after))))
        if called.path == "/ds/v1/recover" and self._answer is not None:
            return PeerAnswer(encode(self._answer))
        raise UnknownGroup


async def all_answered(a: Assembled) -> bool:
    return await rows(a, "SELECT 1 FROM recoveries WHERE answered = 0") == []


async def test_a_stranger_that_names_a_group_is_told_nothing_of_it_and_does_not_follow_it(tmp_path: Path) -> None:
    room = Room()
    forged = RecoverResponse(MLS10, CipherSuite(1), (epoch(room, room.key, ["forged"], 1),))
    liar = Liar(room.group_id, answer=forged)
    async with recovering(tmp_path, room, liar) as a:
        await until(lambda: all_answered(a))
        assert set(liar.asked) == {"/ds/v1/recover/groups"}, "it got no masked key and no counter"
        assert await read(a, device(a), room.hub, room.key) == ["0"]
        assert await rows(a, "SELECT 1 FROM follows") == []
        assert (await a.services.hub.send(room.send("1"), device(a))).counter == 1, "the group is not held"


async def test_made_up_groups_are_bounded_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_as_hub, "MOST_NAMED_GROUPS", 300)
    liar = Liar(endless=True)
    async with recovering(tmp_path, Room(), liar) as a:
        await until(lambda: all_answered(a))
        assert liar.asked.count("/ds/v1/recover/groups") == 1
        assert liar.asked.count("/ds/v1/recover") == 300
        assert bound_hits(a.services.telemetry, "recovered-groups") == 1
        assert await rows(a, "SELECT count(*) FROM groups") == [(1,)]


async def test_an_answer_that_does_not_advance_ends_the_question(tmp_path: Path) -> None:
    class Repeating(Liar):
        async def __call__(self, called: Called) -> PeerAnswer:
            self.asked.append(called.path)
            same = tuple(GroupId(f"{n:06}".encode()) for n in range(10_000))
            return PeerAnswer(encode(HeldGroupsResponse((*same[1:], same[0]))))

    liar = Repeating()
    async with recovering(tmp_path, Room(), liar) as a:
        await until(lambda: _asked(liar))
        assert await rows(a, "SELECT count(*) FROM groups") == [(1,)]


async def _asked(liar: Liar) -> bool:
    """Tell whether the liar was asked again, so its first answer about the last question was dealt with."""
    return liar.asked.count(liar.asked[-1]) > 1 if liar.asked else False


async def test_a_follower_cannot_end_a_partition_by_a_counter(tmp_path: Path) -> None:
    room = Room()
    jump = RecoverResponse(MLS10, CipherSuite(1), (epoch(room, room.key, [], 0x7FFF_FFFF),))
    liar = Liar(answer=jump)
    async with recovering(tmp_path, room, liar, follows=True) as a:
        await until(lambda: _asked(liar))
        ((counter,),) = await rows(a, "SELECT next_counter FROM partitions")
        assert counter <= 1 + RESTORED_JUMP


async def test_what_a_follower_returns_of_another_group_is_not_stored(tmp_path: Path) -> None:
    room, other = Room(), Room("other")
    messages = epoch(other, room.key, ["x"], 1).epoch
    wrong = PushedEpoch(room.group_id, room.key.mask(32), Counter(1), None, messages)
    liar = Liar(answer=RecoverResponse(MLS10, CipherSuite(1), (wrong,)))
    async with recovering(tmp_path, room, liar, follows=True) as a:
        await until(lambda: _asked(liar))
        assert await read(a, device(a), room.hub, room.key) == ["0"], "its message names another group"


def with_members_everywhere(providers: int) -> RecoverResponse:
    """Return a group that the backup does not contain, with a member at each of many made-up providers."""
    room = signing.Room.create(Client.of(1, "eve@m.example"))
    others = [Client.of(seed, f"eve@p{seed}.example") for seed in range(2, providers + 2)]
    _, room = room.commit(0, *[signing.by_value(Add(each.key_package())) for each in others])
    info = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info())
    opening = GroupInfoResponse(info, None)
    return RecoverResponse(
        MLS10, CipherSuite(1), (PushedEpoch(room.group_id, Room.new_key().mask(32), Counter(0), opening, Epoch(())),)
    )


class Inventor(Liar):
    """A provider that returns a group once."""

    async def __call__(self, called: Called) -> PeerAnswer:
        repeats = called.path in self.asked
        if called.path == "/ds/v1/recover" and repeats:
            self._answer = RecoverResponse(MLS10, CipherSuite(1), ())
        return await super().__call__(called)


@pytest.mark.parametrize(("mode", "asked"), [("allow-list", 0), ("open", 5)])
async def test_members_that_a_provider_makes_up_are_bounded(tmp_path: Path, mode: str, asked: int) -> None:
    """Each further provider gets a row and is called; one answer can name thousands."""
    inventor = Inventor(signing.GROUP, answer=with_members_everywhere(20))
    sections: dict[str, Any] = {"federation": {"mode": mode}, "limits": {"provider_new_providers_per_day": asked}}
    async with recovering(tmp_path, Room("another"), inventor, **sections) as a:
        await until(lambda: all_answered(a))
        assert inventor.asked.count("/ds/v1/recover") == 2
        called = {each.provider for each in a.peers.calls} - {"m.example"}
        assert len(called) == asked
        assert await rows(a, "SELECT count(*) FROM providers") == [(2 + asked,)]
