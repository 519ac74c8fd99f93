"""Groups for plays: made ones, and recorded ones in which every member has a key that is ours."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any, Final

from fuzz import recordings
from fuzz.signers import SEEDS, with_fields
from mimids.mls.code_points import CredentialType, ExtensionType, ProposalType
from mimids.mls.components import BANNED_ROLE, CAN_SEND_MESSAGE, ParticipantList, Role, RolesList, UserRolePair
from mimids.mls.group_info import GroupInfo, RequiredCapabilities
from mimids.mls.leaf_node import Extension, LeafNode, ParentNode
from mimids.mls.opening import open_group
from mimids.mls.public_group import PublicGroup
from mimids.mls.rules.parameters import parameters_of
from mimids.mls.rules.verdict import RuleError
from mimids.mls.suites import SUITES, Suite
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.wire.declare import encode
from mimids.wire.ids import GroupId, UserId
from tests.support import signing
from tests.support.naive_tree import NaiveTree
from tests.support.public_groups import SENDERS, dictionary
from tests.support.signing import Client, Room, crowd

RECORDED: Final = 6  # recorded groups at most
FIRST_KEY: Final = 1_000_000  # of the keys that a play makes, so that it makes the same ones every time
_ROLES: Final = RolesList(
    (
        Role(0, b"member", b"", (CAN_SEND_MESSAGE,), 0, None, 0, None, ()),
        Role(BANNED_ROLE, b"banned", b"", (), 0, 9, 0, 9, ()),
    )
)
_PEOPLE: Final = ParticipantList((UserRolePair(UserId(b"mimi://a.example/u/user2"), 0), UserRolePair(UserId(b"x"), 1)))


def clients(suite: Suite) -> dict[int, Client]:
    """Return our clients of a suite by seed."""
    return _clients(int(suite.code))


@cache
def _clients(code: int) -> dict[int, Client]:
    return {seed: Client.of(seed, suite=code) for seed in SEEDS}


@cache
def stages() -> tuple[PublicGroup, ...]:
    """Return the groups in which plays begin; `fuzz.plays.Play.stage` chooses one by its place."""
    for suite in SUITES.values():
        clients(suite)
    demands = Extension(
        ExtensionType.REQUIRED_CAPABILITIES,
        encode(RequiredCapabilities((), (ProposalType.APP_DATA_UPDATE,), (CredentialType.BASIC,))),
    )
    policy = dictionary(_0022=encode(_PEOPLE), _0025=encode(_ROLES))
    made = [
        crowd(5),
        crowd(8, extensions=(SENDERS, dictionary(_ff00=b"y"))),
        crowd(4, extensions=(demands, policy)),
        crowd(3, suite=2),
        crowd(3, suite=4),
        crowd(1),
        crowd(20, path=False),
    ]
    return (*(open_group(room.info()) for room in made), *_recorded())


def _recorded() -> list[PublicGroup]:
    found = []
    infos = [message.message for message in recordings.messages() if isinstance(message.message, GroupInfo)]
    for _, each in itertools.groupby(infos, key=lambda info: info.group_context.group_id):
        states = [group for group in map(_opened, each) if group is not None]
        if states:
            found.append(_with_our_keys(max(states, key=lambda group: group.tree.member_count)))
    return found[:RECORDED]


def _opened(info: GroupInfo) -> PublicGroup | None:
    try:
        return open_group(info)
    except RuleError:
        return None


def _with_our_keys(group: PublicGroup) -> PublicGroup:
    """Return a state in which leaf n has the signature key of client n + 1; parent hashes are left as they were."""
    nodes: list[Any] = list(group.tree.nodes())
    ours = clients(group.suite)
    for place, node in enumerate(nodes):
        if node is not None and isinstance(node.node, LeafNode):
            key = ours[SEEDS[place // 2 % len(SEEDS)]].signer.public
            nodes[place] = with_fields(node, node=with_fields(node.node, signature_key=key))
    tree = RatchetTree.of_nodes(group.suite, tuple(nodes))
    context = with_fields(group.context, tree_hash=tree.tree_hash())
    parameters = parameters_of(context.extensions, group.suite)
    return PublicGroup(group.suite, context, parameters, tree, group.confirmation_tag)


def room_of(group: PublicGroup) -> Room:
    """Return a state as a room, whose members can send: those whose keys are ours."""
    nodes: list[LeafNode | ParentNode | None] = [None if node is None else node.node for node in group.tree.nodes()]
    members = {index: signing.client_of(leaf) for index, leaf in group.tree.leaves()}
    known = {index: client for index, client in members.items() if client is not None}
    context = group.context
    return Room(
        group.suite,
        NaiveTree(group.suite, nodes),
        known,
        context.extensions,
        group.epoch,
        context.confirmed_transcript_hash,
        group.confirmation_tag,
        GroupId(group.group_id),
    )


def begin_keys() -> None:
    """Make the next fresh key the first one of a play."""
    signing._fresh = itertools.count(FIRST_KEY)
