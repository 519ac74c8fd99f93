"""Lists of proposals that break a rule."""

from __future__ import annotations

from typing import Any

from mimids.mls.code_points import (
    LeafNodeSource,
    ProposalOrRefType,
    ProposalType,
)
from mimids.mls.framing import MLSMessage
from mimids.mls.opening import open_group
from mimids.mls.proposals import (
    Add,
    GroupContextExtensions,
    PreSharedKey,
    Proposal,
    ProposalOrRef,
    ReInit,
    Remove,
    Update,
)
from mimids.mls.public_group import PublicGroup, Valid
from mimids.mls.rules import verdict
from mimids.mls.rules.checks import check, record
from mimids.mls.rules.verdict import Invalid
from mimids.wire.ids import MLS10, CipherSuite, GroupId
from tests.support.broken_rules import (
    INIT,
    JOINER,
    PSK,
    SELF,
    breaks,
    committed,
    room,
    said,
)
from tests.support.signing import Client, Room, by_reference, by_value, ref_of


@breaks(verdict.OWN_UPDATE)
def update_of_the_committer() -> Invalid | None:
    here = room()
    return committed(here, by_value(Update(here.clients[0].leaf(LeafNodeSource.UPDATE, 0))))


@breaks(verdict.OWN_REMOVE)
def removes_itself() -> Invalid | None:
    return committed(room(), by_value(Remove(3)), by=3)


def pending(here: Room, *messages: MLSMessage) -> tuple[PublicGroup, list[Any]]:
    group = open_group(here.info())
    for message in messages:
        found = check(group, message)
        assert isinstance(found, Valid)
        group = record(group, message, found)
    return group, [by_reference(ref_of(message, here.suite)) for message in messages]


@breaks(verdict.OWN_REMOVE)
def commits_its_own_self_remove() -> Invalid | None:
    here = room()
    group, items = pending(here, here.propose(3, SELF))
    return said(group, here.commit(3, *items)[0])


@breaks(verdict.SAME_LEAF)
def removed_twice() -> Invalid | None:
    return committed(room(), by_value(Remove(2)), by_value(Remove(2)))


@breaks(verdict.SAME_LEAF)
def updated_and_removed() -> Invalid | None:
    here = room()
    group, items = pending(here, here.propose(2, Update(here.clients[2].leaf(LeafNodeSource.UPDATE, 2))))
    return said(group, here.commit(0, *items, by_value(Remove(2)))[0])


@breaks(verdict.SAME_LEAF)
def removed_and_gone_by_itself() -> Invalid | None:
    here = room()
    group, items = pending(here, here.propose(2, SELF))
    return said(group, here.commit(0, *items, by_value(Remove(2)))[0])


@breaks(verdict.DUPLICATE_ADD)
def added_twice() -> Invalid | None:
    return committed(room(), by_value(Add(JOINER.key_package())), by_value(Add(JOINER.key_package())))


@breaks(verdict.ALREADY_MEMBER)
def adds_a_member() -> Invalid | None:
    here = room()
    return committed(here, by_value(Add(here.clients[2].key_package())))


@breaks(verdict.DUPLICATE_PSK)
def psk_twice() -> Invalid | None:
    return committed(room(), by_value(PreSharedKey(PSK)), by_value(PreSharedKey(PSK)))


@breaks(verdict.TWO_GROUP_CONTEXT_EXTENSIONS)
def extensions_twice() -> Invalid | None:
    return committed(room(), by_value(GroupContextExtensions(())), by_value(GroupContextExtensions(())))


@breaks(verdict.REINIT_ALONE)
def reinit_and_more() -> Invalid | None:
    reinit = by_value(ReInit(GroupId(b"new"), MLS10, CipherSuite(1), ()))
    return committed(room(), reinit, by_value(Remove(1)))


@breaks(verdict.REINIT_ALONE)
def reinit_and_something_unseen() -> Invalid | None:
    here = room()
    reinit = by_value(ReInit(GroupId(b"new"), MLS10, CipherSuite(1), ()))
    return committed(here, reinit, by_reference(ref_of(here.propose(1, SELF), here.suite)))


@breaks(verdict.PROPOSAL_SUPPORT)
def a_type_that_a_member_does_not_support() -> Invalid | None:
    here = room()
    bare = Client.of(61, proposals=())
    _, here = here.commit(0, by_value(Add(bare.key_package())))
    group, items = pending(here, here.propose(2, SELF))
    return said(group, here.commit(0, *items)[0])


@breaks(verdict.PROPOSAL_SUPPORT)
def an_unknown_type_that_the_committer_does_not_support() -> Invalid | None:
    return committed(room(), ProposalOrRef(ProposalOrRefType.PROPOSAL, Proposal(ProposalType(0xF0F3), b"")))


@breaks(verdict.EXTERNAL_COMMIT_INIT)
def joins_without_an_init() -> Invalid | None:
    return committed(room(), by=JOINER)


@breaks(verdict.EXTERNAL_COMMIT_REMOVE)
def joins_over_two() -> Invalid | None:
    return committed(room(), INIT, by_value(Remove(1)), by_value(Remove(2)), by=JOINER)


@breaks(verdict.EXTERNAL_COMMIT_PROPOSAL)
def joins_and_adds() -> Invalid | None:
    return committed(room(), INIT, by_value(Add(Client.of(61).key_package())), by=JOINER)


@breaks(verdict.EXTERNAL_COMMIT_PROPOSAL)
def joins_and_updates() -> Invalid | None:
    return committed(room(), INIT, by_value(Update(JOINER.leaf(LeafNodeSource.UPDATE, 5))), by=JOINER)


@breaks(verdict.EXTERNAL_COMMIT_REFERENCE)
def joins_and_covers_a_remove() -> Invalid | None:
    here = room()
    group, items = pending(here, here.propose(1, Remove(2)))
    return said(group, here.commit(JOINER, INIT, *items)[0])
