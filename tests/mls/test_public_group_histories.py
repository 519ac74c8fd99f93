"""Random histories of a group, the working group's vectors and a large recorded group, followed commit by commit."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mimids.mls.code_points import (
    ComponentId,
    LeafNodeSource,
    PskType,
)
from mimids.mls.components import (
    RolesList,
)
from mimids.mls.framing import MLS_MESSAGE, AuthenticatedContent, MLSMessage
from mimids.mls.opening import open_group, restore_group
from mimids.mls.proposals import (
    Add,
    AppDataUpdate,
    AppEphemeral,
    ExternalInit,
    GroupContextExtensions,
    PreSharedKey,
    PreSharedKeyId,
    Proposal,
    ProposalOrRef,
    ReInit,
    Remove,
    SelfRemove,
    Update,
)
from mimids.mls.public_group import Valid
from mimids.mls.rules.checks import apply, check, record
from mimids.mls.suites import suite_of
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.mls.tree.rows import all_nodes, load
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, GroupId
from tests import vectors
from tests.support.public_groups import SENDERS, component, dictionary, followed, init, kept, refs, snapshot
from tests.support.signing import Client, Room, by_value, crowd, fresh_key

Move = tuple[str, int, int]
MOVES = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "join", "resync", "remove", "update", "self_remove", "components", "empty", "extensions"]
        ),
        st.integers(0, 30),
        st.integers(0, 30),
    ),
    max_size=12,
)


def moved(room: Room, move: Move, seed: int) -> tuple[list[MLSMessage], MLSMessage, Room] | None:
    """Return one epoch's messages: proposals, and the commit that covers them."""
    kind, first, second = move
    members = room.tree.members()
    committer, other = members[first % len(members)], members[second % len(members)]
    if kind == "add":
        sent = [room.propose(other, Add(Client.of(seed).key_package()))]
        return sent, *room.commit(
            committer, *refs(room, *sent), by_value(Add(Client.of(seed + 1).key_package())), path=first % 2 == 0
        )
    if kind == "join":
        return [], *room.commit(Client.of(seed), init(room))
    if kind == "resync":
        return [], *room.commit(room.clients[other], init(room), by_value(Remove(other)))
    if kind == "extensions":
        return [], *room.commit(committer, by_value(GroupContextExtensions((SENDERS,) if first % 2 else ())))
    if kind == "empty" or other == committer:
        return [], *room.commit(committer)
    if kind == "remove":
        sent = [room.propose(other, Remove(other))]
        return sent, *room.commit(committer, *refs(room, *sent))
    if kind == "update":
        sent = [room.propose(other, Update(room.clients[other].leaf(LeafNodeSource.UPDATE, other)))]
        return sent, *room.commit(committer, *refs(room, *sent))
    if kind == "self_remove":
        sent = [room.propose(other, SelfRemove())]
        return sent, *room.commit(committer, *refs(room, *sent))
    return None


@given(MOVES)
@settings(max_examples=40, deadline=None)
def test_any_public_history_is_followed_from_any_of_its_states(moves: list[Move]) -> None:
    room = crowd(3)
    group = open_group(room.info())
    log: list[tuple[list[MLSMessage], MLSMessage, Room]] = []
    states = [group]
    for number, move in enumerate(moves):
        made = moved(room, move, 100 + 2 * number)
        if made is None:
            continue
        log.append(made)
        sent, commit, room = made
        group = followed(kept(group, *sent), commit, room)
        states.append(group)
    for start, state in enumerate(states):  # from a GroupInfo, and from stored parts
        rows = {row.tree_hash: row for row in all_nodes(state.tree)}
        tree = load(state.suite, state.tree_hash, rows.get)
        again = restore_group(state.context.encoded, state.confirmation_tag, tree)
        for sent, commit, _ in log[start:]:
            again = apply(kept(again, *sent), commit)
        assert snapshot(again) == snapshot(group)
        assert RatchetTree.decode(group.suite, again.tree.encode()).tree_hash() == again.tree_hash


def any_body(draw: st.DrawFn, room: Room) -> Any:
    """Draw a proposal's body, valid or not; from few values, so that proposals collide."""
    number = draw(st.integers(0, 7))
    index = draw(st.integers(0, 5))
    psk = PreSharedKeyId(PskType.EXTERNAL, bytes([number % 2]), bytes(draw(st.sampled_from([32, 31]))))
    extensions = draw(st.sampled_from([(), (SENDERS,), (dictionary(_ff00=b"x"),), (SENDERS, SENDERS)]))
    return draw(
        st.sampled_from(
            [
                Add(Client.of(40 + number).key_package()),
                Add(Client.of(1 + number).key_package()),
                Update(Client.of(1 + index).leaf(LeafNodeSource.UPDATE, index)),
                Remove(index),
                Remove(index),
                PreSharedKey(psk),
                ReInit(GroupId(b"new"), MLS10, CipherSuite(1), ()),
                ExternalInit(fresh_key(room.suite)),
                GroupContextExtensions(extensions),
                component(0xFF00, None),
                component(ComponentId.ROLES_LIST, draw(st.sampled_from([b"", encode(RolesList(()))]))),
                AppEphemeral(ComponentId(0xFF07), b"now"),
                SelfRemove(),
                b"whatever",
            ]
        )
    )


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_signed_message_gets_a_verdict_and_valid_ones_the_right_state(data: st.DataObject) -> None:
    room = crowd(5, extensions=data.draw(st.sampled_from([(), (dictionary(_ff00=b"y"), SENDERS)])))
    group = open_group(room.info())
    items: list[ProposalOrRef] = []
    for _ in range(data.draw(st.integers(0, 3))):
        body = data.draw(st.composite(any_body)(room))
        if data.draw(st.booleans()):
            items.append(by_value(body))
            continue
        message = room.propose(data.draw(st.integers(0, 4)), body)
        if data.draw(st.booleans()):
            group = record(group, message, check(group, message))
        items += refs(room, message)
    committer: int | Client = data.draw(st.integers(0, 4))
    if data.draw(st.booleans()):
        committer = Client.of(50)
        items.append(init(room))
    before = snapshot(group)
    message, after = room.commit(committer, *items, path=data.draw(st.booleans()))
    found = check(group, MLS_MESSAGE.decode(message.encoded))
    assert snapshot(group) == before
    if isinstance(found, Valid):
        assert found.next is not None
        assert found.next.tree.encode() == after.tree.encode()
        components = any(
            isinstance(each.value, Proposal) and isinstance(each.value.body, AppDataUpdate) for each in items
        )
        if not components and not any(isinstance(each.proposal.body, AppDataUpdate) for each in group.pending.values()):
            assert found.next.context == after.context()  # the test's room does not follow components


def test_transcript_hashes_match_the_vectors() -> None:
    for vector in vectors.load("mls/transcript-hashes.json"):
        suite = suite_of(vector["cipher_suite"])
        assert suite is not None
        content = decode(AuthenticatedContent, bytes.fromhex(vector["authenticated_content"]))
        before = bytes.fromhex(vector["interim_transcript_hash_before"])
        confirmed = suite.hash(before + content.confirmed_transcript_hash_input())
        assert confirmed.hex() == vector["confirmed_transcript_hash_after"]
        interim = suite.hash(confirmed + content.interim_transcript_hash_input())
        assert interim.hex() == vector["interim_transcript_hash_after"]


def test_fifty_commits_in_a_group_of_a_thousand_reach_the_recorded_states() -> None:
    lines = vectors.load_lines("large/group-1000.jsonl")
    start = MLS_MESSAGE.decode(bytes.fromhex(lines[0]["bytes"])).message
    group = open_group(start, bytes.fromhex(lines[0]["ratchet_tree"]))  # type: ignore[arg-type]
    assert group.tree.member_count == 1000
    for line in lines[1:51]:
        group = apply(group, MLS_MESSAGE.decode(bytes.fromhex(line["bytes"])))
        assert group.tree_hash.hex() == line["next"]["tree_hash"], line["name"]
        assert group.context.confirmed_transcript_hash.hex() == line["next"]["confirmed_transcript_hash"]
    assert group.tree.encode().hex() == lines[51]["ratchet_tree"]
