"""Groups with post-quantum suites, of members that run OpenMLS, through three live providers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.client import Problem
from mimids.mls.key_package import KeyPackageIn
from mimids.testing import Session
from mimids.wire.declare import decode, encode
from tests.support.live_group import LiveGroup, Person, live_group
from tests.support.mls_makers import replace

pytestmark = pytest.mark.slow

X_WING = 0x004F
COMMITS = (20, pytest.param(50, marks=pytest.mark.soak))
OFTEN_RUN = (0x0051,)
RARELY_RUN = (0x004E, 0xF042, 0x0050, 0x0042, 0x0052, 0x0907, 0x0906)


def hub_state(group: LiveGroup) -> tuple[str, bool]:
    """Return the tree hash of the hub's newest state, and whether the hub derived it from the commits itself."""
    assert group.tip is not None
    masks = group.tip.masks()
    rows = group.federation[group.people["alice"].provider].read(
        "SELECT knowledge, root_hash FROM partitions WHERE masked_key IN (?, ?, ?)", masks
    )
    ((knowledge, root),) = rows
    return root.hex(), knowledge == "derived"


async def add(group: LiveGroup, by: Person, *names: str) -> None:
    people = [group.people[name] for name in names]
    await group.commit(by, [await group.fetch(by, each) for each in people], adding=people)


@pytest.mark.parametrize("wanted", COMMITS)
async def test_a_group_with_x_wing_lives_through_many_commits(
    wanted: int, stacks_program: Path, mimids_session: Session
) -> None:
    async with live_group(stacks_program, mimids_session, stacks=["openmls"], suite=X_WING) as group:
        alice, bob, carol, dave = (group.people[name] for name in ("alice", "bob", "carol", "dave"))
        await group.create(alice)
        await add(group, alice, "bob", "carol")
        await group.join_external(dave)
        await group.say(dave, "joined from outside")
        commits = 3
        while commits < wanted:
            by = (alice, bob, carol, dave)[commits % 4]
            await group.commit(by, [{"type": "update"}])
            commits += 1
            if commits % 10 == 0:
                await group.join_external(bob)  # replaces its own leaf
                await group.say(bob, f"after {commits} commits")
                commits += 1
        await group.commit(alice, [{"type": "remove", "leaf": group.leaf(carol)}])
        await group.check()
        state = alice.mls.ask("state", group_id=group.group_id)
        assert state["epoch"] >= wanted
        assert hub_state(group) == (state["tree_hash"], True)


@pytest.mark.parametrize(
    "suite", [*OFTEN_RUN, *(pytest.param(suite, marks=pytest.mark.soak) for suite in RARELY_RUN)], ids=hex
)
async def test_members_of_every_post_quantum_suite_are_added_and_join(
    suite: int, stacks_program: Path, mimids_session: Session
) -> None:
    async with live_group(stacks_program, mimids_session, stacks=["openmls"], suite=suite) as group:
        alice, bob = group.people["alice"], group.people["bob"]
        await group.create(alice)
        await add(group, alice, "bob", "carol", "erin")
        await group.join_external(group.people["dave"])
        await group.commit(bob, [{"type": "update"}])
        await group.say(bob, "hello")
        await group.check()
        state = alice.mls.ask("state", group_id=group.group_id)
        assert hub_state(group) == (state["tree_hash"], True)


async def test_forged_and_shortened_keys_are_refused(stacks_program: Path, mimids_session: Session) -> None:
    async with live_group(stacks_program, mimids_session, stacks=["openmls"], suite=X_WING) as group:
        alice, bob = group.people["alice"], group.people["bob"]
        octets = bob.mls.octets("key_package", "key_package")[4:]
        good = decode(KeyPackageIn, octets)
        leaf = good.leaf_node
        spoilt = {
            "the init key does not fit": replace(good, init_key=good.init_key[:-1]),
            "the encryption key does not fit": replace(good, leaf_node=replace(leaf, encryption_key=bytes(32))),
            "the signature key does not fit": replace(good, leaf_node=replace(leaf, signature_key=bytes(31))),
            "the leaf node's signature": replace(good, leaf_node=replace(leaf, encryption_key=good.init_key[::-1])),
            "the KeyPackage's signature": replace(good, init_key=good.init_key[::-1]),
        }
        uploaded = await bob.device.upload([*map(encode, spoilt.values()), octets])
        assert uploaded.accepted == 1
        for (_, reason), expected in zip(uploaded.refused, spoilt, strict=True):
            assert expected in reason
        await group.create(alice)
        await add(group, alice, "bob")
        made = alice.mls.ask("commit", group_id=group.group_id, changes=[{"type": "update"}])
        message = bytearray.fromhex(made["message"])
        message[-200] ^= 1  # within the signed path
        with pytest.raises(Problem) as refused:
            await group.send_commit(alice, made | {"message": message.hex()})
        assert refused.value.code == "invalid-message"
        answer = await group.send_commit(alice, made)
        assert answer.earlier_commits == ()
        await group.check()
