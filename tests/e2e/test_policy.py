"""Recorded room policy between real processes: each verdict in its branch, by hub and follower."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import pytest
import trio

from mimids.client import Problem
from mimids.mls.code_points import ContentType, WireFormat
from mimids.mls.framing import MLSMessage, PrivateMessage
from mimids.testing import PretendGroup, Provider, Session, open_federation
from mimids.wire.ids import MLS10, GroupId, PartitionKey
from mimids.wire.messages import SendRequest
from tests.e2e.test_conversations import LOCAL_ONLY, Sequenced, catch_up, play, upload_and_fetch
from tests.support.recordings import Recorded, expected
from tests.support.stage import HUB, NAMES, Stage, eventually, staged

pytestmark = pytest.mark.slow


def refused_by_policy(recorded: Recorded) -> bool:
    return recorded.line.get("expect") in ("reject_policy", LOCAL_ONLY)


async def knowledge_at(stage: Stage, provider: str) -> set[str]:
    rows = stage.federation[provider].read("SELECT DISTINCT knowledge FROM partitions WHERE next_counter > 0")
    return {row[0] for row in rows}


async def verdict(stage: Stage, recorded: Recorded) -> tuple[str, Any]:
    try:
        return "accept", (await stage.offer(recorded)).counter
    except Problem as problem:
        return problem.code, problem.members.get("rule")


async def test_each_message_gets_its_verdict_in_its_branch_also_after_a_restart(mimids_session: Session) -> None:
    async with staged("policy", mimids_session) as stage:
        await upload_and_fetch(stage)
        sequenced = await play(stage)  # compares with the expected verdicts
        for follower in NAMES[1:]:
            await catch_up(stage, follower, sequenced)
            # They joined by Welcomes: their state begins with the `opening` of a push.
            assert await knowledge_at(stage, follower) == {"claimed"}
        assert await knowledge_at(stage, HUB) == {"derived"}
        refused = [recorded for recorded in stage.recording.messages() if refused_by_policy(recorded)]
        assert len(refused) == 15
        before = [await verdict(stage, recorded) for recorded in refused]
        rules = {rule for _, rule in before}
        assert rules == {"banned-user-added", "banned-user-joins", "muted-sender"}
        for provider in stage.federation:
            await trio.to_thread.run_sync(provider.restart)
        assert [await verdict(stage, recorded) for recorded in refused] == before
        for recorded in stage.recording.messages():
            if expected(recorded.line) == "accept" and not refused_by_policy(recorded):
                position = sequenced[recorded.key].index(recorded.request.message.encoded)
                assert await verdict(stage, recorded) == ("accept", position), recorded.name
        await a_banned_member_may_only_leave(stage, sequenced)


async def a_banned_member_may_only_leave(stage: Stage, sequenced: Sequenced) -> None:
    """Branch C bans Dave in its epoch 9, before it removes him; its sibling D does not."""
    dave = stage.devices["dave"]
    lines = {line["name"]: line for line in stage.recording.lines}
    banned_in = PartitionKey.from_hex(lines["C_alice_adds_dave_d2"]["partition_key"])
    member_in = PartitionKey.from_hex(lines["dave_on_D_number_40"]["partition_key"])
    group_id = GroupId(bytes.fromhex(lines["create"]["group_id"]))

    def sealed(kind: ContentType) -> MLSMessage:
        message = PrivateMessage(group_id, 9, kind, b"", bytes(28), bytes(100))
        return MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, message)

    with pytest.raises(Problem) as refused:
        await dave.send(HUB, SendRequest(sealed(ContentType.APPLICATION), banned_in, None))
    assert (refused.value.code, refused.value.members["rule"]) == ("policy", "banned-sender")
    await dave.send(HUB, SendRequest(sealed(ContentType.APPLICATION), member_in, None))
    await dave.send(HUB, SendRequest(sealed(ContentType.PROPOSAL), banned_in, None))  # it could be his SelfRemove

    got = [each.message.content_type async for each in dave.receive_all(HUB, banned_in)]
    assert got
    assert ContentType.APPLICATION not in got
    others = [each.message.content_type for each in await stage.alice.receive(HUB, banned_in)]
    assert ContentType.APPLICATION in others
    assert len(await dave.receive(HUB, member_in)) == len(sequenced[member_in]) + 1


async def test_a_ban_takes_effect_at_the_hub_at_once_and_then_at_the_users_provider(mimids_session: Session) -> None:
    async with open_federation(*NAMES[:2], session=mimids_session) as federation:
        hub, follower = federation[NAMES[0]], federation[NAMES[1]]
        group = PretendGroup.at(HUB)
        accounts = [hub.add_device("alice"), follower.add_device("bob"), follower.add_device("ben")]
        async with accounts[0].client() as alice, accounts[1].client() as bob, accounts[2].client() as ben:
            await alice.create_group(group.creation())
            await bob.send(HUB, group.message(b"before"))
            hub.command("ban add", subject=bob_id(follower), reason="spam")
            sent = count()

            async def refused() -> bool:
                try:
                    await bob.send(HUB, group.message(b"%d" % next(sent)))
                except Problem as problem:
                    return (problem.code, problem.members.get("rule")) == ("policy", "hub-banned-sender")
                return False

            await eventually(refused)
            for provider in federation:
                await trio.to_thread.run_sync(provider.restart)
            assert await refused()
            await ben.send(HUB, group.message(b"somebody else"))
            assert hub.command("provider show", provider=NAMES[1])["our_terms_accepted"] == 2
            hub.command("ban remove", subject=bob_id(follower))
            await ben.send(HUB, group.message(b"so that it hears"))
            await eventually(lambda: unless(refused))
            hub.command("ban add", subject=NAMES[1])
            with pytest.raises(Problem, match="provider-not-allowed"):
                await ben.send(HUB, group.message(b"nobody of that provider"))


def bob_id(at: Provider) -> str:
    return at.user_id("bob")


async def unless(look: Callable[[], Awaitable[bool]]) -> bool:
    return not await look()
