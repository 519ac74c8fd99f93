"""Each rule of the table broken once, by somebody who signs correctly what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimids.mls import knowledge
from mimids.mls.code_points import (
    AppDataUpdateOperation,
    ComponentId,
    ContentType,
    CredentialType,
    ExtensionType,
    LeafNodeSource,
    NodeType,
    ProposalOrRefType,
    ProposalType,
    PskType,
    ResumptionPskUsage,
    SenderType,
    WireFormat,
)
from mimids.mls.components import AppDataDictionary, ComponentData
from mimids.mls.framing import MLSMessage, PrivateMessage, Sender
from mimids.mls.group_info import EXTERNAL_SENDERS, ExternalSender, GroupInfo, RequiredCapabilities
from mimids.mls.leaf_node import (
    RATCHET_TREE,
    Extension,
    HpkePublicKey,
    Node,
    ParentNode,
)
from mimids.mls.opening import open_group
from mimids.mls.proposals import (
    Add,
    AppDataUpdate,
    Ciphertexts,
    ExternalInit,
    GroupContextExtensions,
    HpkeCiphertext,
    PreSharedKey,
    PreSharedKeyId,
    Proposal,
    ProposalOrRef,
    ReInit,
    Remove,
    ResumptionPsk,
    SelfRemove,
    Update,
    UpdatePath,
    UpdatePathNode,
)
from mimids.mls.public_group import PublicGroup, Valid
from mimids.mls.rules import verdict
from mimids.mls.rules.checks import check, check_without_state, record
from mimids.mls.rules.verdict import RULES, Invalid, RuleError, rules_table
from mimids.mls.welcome import Welcome
from mimids.replay import replay
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, ProtocolVersion
from tests.support.mls_makers import replace
from tests.support.signing import Client, Room, by_reference, by_value, crowd, fresh_key, ref_of

Case = Callable[[], Invalid | None]
CASES: list[tuple[str, Case]] = []
SELF = SelfRemove()
INIT = by_value(ExternalInit(bytes(32)))
PSK = PreSharedKeyId(PskType.EXTERNAL, b"psk", bytes(32))
JOINER = Client.of(60, "zoe@z.example")
DICTIONARY = Extension(
    ExtensionType.APP_DATA_DICTIONARY,
    encode(AppDataDictionary((ComponentData(ComponentId(0xFF00), b"data"),))),
)
MEMBER = SenderType.MEMBER


def breaks(rule: verdict.Rule) -> Callable[[Case], Case]:
    def note(case: Case) -> Case:
        CASES.append((rule.name, case))
        return case

    return note


def room(size: int = 5, *extensions: Extension) -> Room:
    return crowd(size, extensions=extensions)


def said(where: Room | PublicGroup, message: MLSMessage) -> Invalid | None:
    group = open_group(where.info()) if isinstance(where, Room) else where
    found = check(group, message)
    return found if isinstance(found, Invalid) else None


def committed(where: Room, *items: Any, by: int | Client = 0, **how: Any) -> Invalid | None:
    return said(where, where.commit(by, *items, **how)[0])


def proposed(where: Room, body: Any, sender: Sender | int = 1, **how: Any) -> Invalid | None:
    return said(where, where.propose(sender, body, **how))


def opened(info: GroupInfo, tree: bytes | None = None) -> Invalid | None:
    return raised(lambda: open_group(info, tree))


def raised(call: Callable[[], object]) -> Invalid | None:
    try:
        call()
    except RuleError as error:
        return error.invalid
    return None


def with_framed(message: MLSMessage, **changed: Any) -> MLSMessage:
    return replace(message, message=replace(message.message, **changed))


def required(*, extensions: tuple[int, ...] = (), proposals: tuple[int, ...] = ()) -> Extension:
    capabilities = RequiredCapabilities(tuple(map(ExtensionType, extensions)), tuple(map(ProposalType, proposals)), ())
    return Extension(ExtensionType.REQUIRED_CAPABILITIES, encode(capabilities))


def private(**changed: Any) -> MLSMessage:
    message = PrivateMessage(GroupId(b"mimi://a.example/g/room"), 1, ContentType.APPLICATION, b"", bytes(28), bytes(40))
    return MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, replace(message, **changed))


# Framing


@breaks(verdict.MALFORMED)
def no_message() -> Invalid | None:
    return next(iter(replay.replay('{"bytes": "00"}', now_s=0))).verdict  # type: ignore[return-value]


@breaks(verdict.WRONG_GROUP)
def other_group() -> Invalid | None:
    return said(room(), private(group_id=GroupId(b"other")))


@breaks(verdict.WRONG_EPOCH)
def earlier_epoch() -> Invalid | None:
    here = room()
    return said(here.commit(0)[1], here.commit(1)[0])


@breaks(verdict.LAST_EPOCH)
def no_more_epochs() -> Invalid | None:
    here = room()
    here.epoch = (1 << 64) - 1
    return committed(here)


@breaks(verdict.REINITIALIZED)
def after_a_reinit() -> Invalid | None:
    here = room()
    message, after = here.commit(0, by_value(ReInit(GroupId(b"new"), MLS10, CipherSuite(1), ())), path=False)
    left = check(open_group(here.info()), message)
    assert isinstance(left, Valid)
    assert left.next is not None
    return said(left.next, after.commit(1)[0])


@breaks(verdict.APPLICATION_IN_CLEAR)
def application_in_clear() -> Invalid | None:
    here = room()
    return said(
        here, here.send(Sender(MEMBER, 1), here.clients[1].signer, b"hello", content_type=ContentType.APPLICATION)
    )


@breaks(verdict.SENDER_CONTENT)
def a_newcomer_proposes_as_a_committer() -> Invalid | None:
    return proposed(room(), Add(JOINER.key_package()), Sender(SenderType.NEW_MEMBER_COMMIT, None), by=JOINER.signer)


@breaks(verdict.BLANK_SENDER)
def nobody_there() -> Invalid | None:
    return proposed(room(), Remove(1), Sender(MEMBER, 6), by=JOINER.signer)


@breaks(verdict.UNLISTED_SENDER)
def not_an_external_sender() -> Invalid | None:
    return proposed(room(), Remove(1), Sender(SenderType.EXTERNAL, 0), by=JOINER.signer)


@breaks(verdict.SIGNATURE)
def signed_by_another() -> Invalid | None:
    return proposed(room(), Remove(1), Sender(MEMBER, 2), by=Client.of(4).signer)


@breaks(verdict.SIGNATURE)
def signed_in_a_sibling() -> Invalid | None:
    here = room()
    return said(here.commit(0)[1], here.commit(1)[1].commit(2)[0])


@breaks(verdict.SIGNATURE)
def newcomers_are_held_to_their_signature_in_any_state() -> Invalid | None:
    message = room().propose(
        Sender(SenderType.NEW_MEMBER_PROPOSAL, None), Add(JOINER.key_package()), by=Client.of(3).signer
    )
    return raised(lambda: check_without_state(message))


@breaks(verdict.CONFIRMATION_TAG_LENGTH)
def short_confirmation_tag() -> Invalid | None:
    return committed(room(), tag=bytes(31))


@breaks(verdict.MEMBERSHIP_TAG_LENGTH)
def empty_membership_tag() -> Invalid | None:
    here = room()
    return said(here, with_framed(here.commit(0)[0], membership_tag=b""))


@breaks(verdict.SENDER_DATA_LENGTH)
def empty_sender_data() -> Invalid | None:
    return said(room(), private(encrypted_sender_data=b""))


@breaks(verdict.CIPHERTEXT_LENGTH)
def only_a_tag() -> Invalid | None:
    return said(room(), private(ciphertext=bytes(16)))


# Leaf nodes


@breaks(verdict.LEAF_NODE)
def leaf_without_its_own_credential_type() -> Invalid | None:
    here = room()
    shy = replace(here.clients[0].capabilities, credentials=())
    return committed(here, change_leaf={"capabilities": shy})


@breaks(verdict.LEAF_NODE)
def chain_of_no_certificate() -> Invalid | None:
    here = room()
    client = here.clients[1]
    credential = replace(client.credential, credential_type=CredentialType.X509, content=())
    capabilities = replace(client.capabilities, credentials=(CredentialType.X509,))
    update = client.leaf(LeafNodeSource.UPDATE, 1, credential=credential, capabilities=capabilities)
    return proposed(here, Update(update))


@breaks(verdict.LEAF_SOURCE)
def update_with_a_key_packages_leaf() -> Invalid | None:
    here = room()
    return proposed(here, Update(here.clients[1].leaf(LeafNodeSource.KEY_PACKAGE)))


@breaks(verdict.LEAF_SOURCE)
def path_with_an_updates_leaf() -> Invalid | None:
    return committed(room(), change_leaf={"leaf_node_source": LeafNodeSource.UPDATE, "origin": None})


@breaks(verdict.LEAF_SIGNATURE)
def update_signed_for_another_leaf() -> Invalid | None:
    here = room()
    return proposed(here, Update(here.clients[1].leaf(LeafNodeSource.UPDATE, 2)))


@breaks(verdict.LEAF_KEY_KEPT)
def update_with_the_same_key() -> Invalid | None:
    here = room()
    key = here.tree.leaf(1).encryption_key
    return proposed(here, Update(here.clients[1].leaf(LeafNodeSource.UPDATE, 1, encryption_key=key)))


@breaks(verdict.LEAF_KEY_KEPT)
def path_with_the_same_key() -> Invalid | None:
    here = room()
    return committed(here, change_leaf={"encryption_key": here.tree.leaf(0).encryption_key})


@breaks(verdict.CREDENTIAL_SUCCESSOR)
def resync_over_somebody_else() -> Invalid | None:
    return committed(room(), by_value(Remove(2)), INIT, by=JOINER)


@breaks(verdict.CREDENTIAL_SUCCESSOR)
def a_member_becomes_another_user() -> Invalid | None:
    here = room()
    return proposed(here, Update(here.clients[1].leaf(LeafNodeSource.UPDATE, 1, credential=JOINER.credential)))


@breaks(verdict.REQUIRED_CAPABILITIES)
def newcomer_without_a_required_capability() -> Invalid | None:
    bare = Client.of(61, proposals=())
    return proposed(room(5, required(proposals=(0x000A,))), Add(bare.key_package()))


@breaks(verdict.REQUIRED_CAPABILITIES)
def a_demand_that_a_member_cannot_meet() -> Invalid | None:
    return committed(room(), by_value(GroupContextExtensions((required(extensions=(0xF0EE,)),))))


@breaks(verdict.REQUIRED_CAPABILITIES)
def a_demand_that_an_added_member_cannot_meet() -> Invalid | None:
    bare = by_value(Add(Client.of(61, extensions=(ExtensionType.APP_DATA_DICTIONARY,)).key_package()))
    demand = by_value(GroupContextExtensions((required(extensions=(0xF0F1,)),)))
    return committed(room(), bare, demand)


@breaks(verdict.EXTENSION_SUPPORT)
def an_extension_that_members_do_not_support() -> Invalid | None:
    return committed(room(), by_value(GroupContextExtensions((Extension(ExtensionType(0xF0EE), b""),))))


@breaks(verdict.CREDENTIAL_SUPPORT)
def a_credential_type_that_others_do_not_support() -> Invalid | None:
    here = room()
    odd = replace(here.clients[0].credential, credential_type=CredentialType(0xF001), content=b"odd")
    capabilities = replace(here.clients[0].capabilities, credentials=(CredentialType(0xF001), CredentialType.BASIC))
    package = Client.of(62, credential=odd, credentials=capabilities.credentials).key_package()
    return committed(here, by_value(Add(package)))


@breaks(verdict.SUITE_SUPPORT)
def a_committer_that_unlists_the_suite() -> Invalid | None:
    here = room()
    return committed(here, change_leaf={"capabilities": replace(here.clients[0].capabilities, cipher_suites=())})


@breaks(verdict.SIGNATURE_KEY_UNIQUE)
def two_members_with_one_signature_key() -> Invalid | None:
    here = room()
    here.clients[1] = Client(here.clients[2].signer, here.clients[1].credential, here.clients[1].capabilities)
    leaf = here.clients[1].leaf(LeafNodeSource.UPDATE, 1)
    by = Client.of(2).signer
    group = open_group(here.info())
    message = here.propose(1, Update(leaf), by=by)
    found = check(group, message)
    assert isinstance(found, Valid)  # a commit could remove the other one
    return said(record(group, message, found), here.commit(0, by_reference(ref_of(message, here.suite)))[0])


@breaks(verdict.SIGNATURE_KEY_UNIQUE)
def joiner_with_a_members_signature_key() -> Invalid | None:
    here = room()
    return committed(here, INIT, by=here.clients[2])


@breaks(verdict.ENCRYPTION_KEY_UNIQUE)
def newcomer_with_a_members_encryption_key() -> Invalid | None:
    here = room()
    leaf = JOINER.leaf(LeafNodeSource.KEY_PACKAGE, encryption_key=here.tree.leaf(3).encryption_key)
    return committed(here, by_value(Add(JOINER.key_package(leaf))), path=False)


@breaks(verdict.DUPLICATE_EXTENSION)
def the_same_extension_twice() -> Invalid | None:
    twice = (Extension(ExtensionType(0xF0F1), b""), Extension(ExtensionType(0xF0F1), b"x"))
    return proposed(room(), GroupContextExtensions(twice))


# Single proposals


@breaks(verdict.KEY_PACKAGE)
def key_package_signed_by_another() -> Invalid | None:
    package = JOINER.key_package()
    return proposed(room(), Add(replace(package, init_key=fresh_key(JOINER.suite))))


@breaks(verdict.KEY_PACKAGE)
def key_package_whose_keys_are_the_same() -> Invalid | None:
    leaf = JOINER.leaf(LeafNodeSource.KEY_PACKAGE)
    return proposed(room(), Add(JOINER.key_package(leaf, init_key=leaf.encryption_key)))


@breaks(verdict.KEY_PACKAGE_GROUP)
def key_package_of_another_suite() -> Invalid | None:
    return proposed(room(), Add(Client.of(60, suite=3).key_package()))


@breaks(verdict.REMOVE_BLANK)
def remove_nobody() -> Invalid | None:
    return proposed(room(), Remove(7))


@breaks(verdict.REMOVE_BLANK)
def remove_outside_the_tree() -> Invalid | None:
    return proposed(room(), Remove(0xFFFFFFFF))


@breaks(verdict.PSK_NONCE)
def short_nonce() -> Invalid | None:
    return proposed(room(), PreSharedKey(replace(PSK, psk_nonce=bytes(31))))


@breaks(verdict.PSK_USAGE)
def psk_of_a_branch() -> Invalid | None:
    psk = ResumptionPsk(ResumptionPskUsage.BRANCH, GroupId(b"old"), 3)
    return proposed(room(), PreSharedKey(PreSharedKeyId(PskType.RESUMPTION, psk, bytes(32))))


@breaks(verdict.REINIT_VERSION)
def back_to_version_0() -> Invalid | None:
    return proposed(room(), ReInit(GroupId(b"new"), ProtocolVersion(0), CipherSuite(1), ()))


@breaks(verdict.EXTERNAL_INIT)
def external_init_of_a_member() -> Invalid | None:
    return proposed(room(), ExternalInit(bytes(32)))


@breaks(verdict.EXTERNAL_INIT)
def external_init_in_a_members_commit() -> Invalid | None:
    return committed(room(), INIT)


@breaks(verdict.KEM_OUTPUT)
def short_kem_output() -> Invalid | None:
    return committed(room(), by_value(ExternalInit(bytes(31))), by=JOINER)


@breaks(verdict.GROUP_EXTENSIONS)
def demands_that_do_not_parse() -> Invalid | None:
    return proposed(room(), GroupContextExtensions((Extension(ExtensionType.REQUIRED_CAPABILITIES, b"\x01"),)))


@breaks(verdict.GROUP_EXTENSIONS)
def dictionary_that_is_not_sorted() -> Invalid | None:
    entries = (ComponentData(ComponentId(0xFF01), b""), ComponentData(ComponentId(0xFF00), b""))
    data = encode(AppDataDictionary(entries))
    return proposed(room(), GroupContextExtensions((Extension(ExtensionType.APP_DATA_DICTIONARY, data),)))


OUTSIDER = Client.of(70, "service@s.example")
SENDERS = Extension(
    ExtensionType.EXTERNAL_SENDERS,
    EXTERNAL_SENDERS.encode((ExternalSender(OUTSIDER.signer.public, OUTSIDER.credential),)),
)
FROM_OUTSIDE = Sender(SenderType.EXTERNAL, 0)


@breaks(verdict.EXTERNAL_PROPOSAL)
def update_from_outside() -> Invalid | None:
    update = Update(OUTSIDER.leaf(LeafNodeSource.UPDATE))
    return proposed(room(5, SENDERS), update, FROM_OUTSIDE, by=OUTSIDER.signer)


@breaks(verdict.NEW_MEMBER_ADD)
def newcomer_proposes_a_remove() -> Invalid | None:
    message = room().propose(Sender(SenderType.NEW_MEMBER_PROPOSAL, None), Remove(1), by=JOINER.signer)
    return raised(lambda: check_without_state(message))


@breaks(verdict.DICTIONARY_KEPT)
def dictionary_replaced_where_it_is_updated() -> Invalid | None:
    here = room(5, required(proposals=(0x0008,)), DICTIONARY)
    return proposed(here, GroupContextExtensions((required(proposals=(0x0008,)),)))


def app_data(component: int, update: bytes | None) -> AppDataUpdate:
    op = AppDataUpdateOperation.REMOVE if update is None else AppDataUpdateOperation.UPDATE
    return AppDataUpdate(ComponentId(component), op, update)


@breaks(verdict.COMPONENT_UPDATE)
def participants_that_do_not_parse() -> Invalid | None:
    return committed(room(), by_value(app_data(ComponentId.PARTICIPANT_LIST, b"\xff")))


@breaks(verdict.COMPONENT_ABSENT)
def removes_what_is_not_there() -> Invalid | None:
    return committed(room(5, DICTIONARY), by_value(app_data(0xFF01, None)))


@breaks(verdict.COMPONENT_LIST)
def updates_and_removes_one_component() -> Invalid | None:
    return committed(room(5, DICTIONARY), by_value(app_data(0xFF00, None)), by_value(app_data(0xFF00, b"x")))


@breaks(verdict.SELF_REMOVE_SENDER)
def an_outsider_removes_itself() -> Invalid | None:
    return proposed(room(5, SENDERS), SELF, FROM_OUTSIDE, by=OUTSIDER.signer)


@breaks(verdict.SELF_REMOVE_TWICE)
def a_second_self_remove() -> Invalid | None:
    here = room()
    group = open_group(here.info())
    first = here.propose(1, SELF)
    group = record(group, first, check(group, first))
    assert said(group, first) is None  # the same one again
    return said(group, here.propose(1, SELF, authenticated_data=b"again"))


@breaks(verdict.SELF_REMOVE_BY_VALUE)
def self_remove_by_value() -> Invalid | None:
    return committed(room(), by_value(SELF))


# Lists


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


@breaks(verdict.EXTERNAL_COMMIT_REFERENCE)
def joins_and_covers_a_remove() -> Invalid | None:
    here = room()
    group, items = pending(here, here.propose(1, Remove(2)))
    return said(group, here.commit(JOINER, INIT, *items)[0])


# Paths


@breaks(verdict.PATH_MISSING)
def empty_without_a_path() -> Invalid | None:
    return committed(room(), path=False)


@breaks(verdict.PATH_MISSING)
def removes_without_a_path() -> Invalid | None:
    return committed(room(), by_value(Remove(2)), path=False)


@breaks(verdict.PATH_LENGTH)
def path_too_short() -> Invalid | None:
    return committed(room(), change_path=lambda path: replace(path, nodes=path.nodes[:-1]))


def sealed_for(path: UpdatePath, more: int) -> UpdatePath:
    node = path.nodes[-1]
    one = HpkeCiphertext(bytes(32), bytes(48))
    count = node.encrypted_path_secret.count + more
    return replace(path, nodes=(*path.nodes[:-1], replace(node, encrypted_path_secret=Ciphertexts.of(*[one] * count))))


@breaks(verdict.PATH_CIPHERTEXTS)
def sealed_for_one_too_many() -> Invalid | None:
    return committed(room(), change_path=lambda path: sealed_for(path, 1))


@breaks(verdict.PATH_CIPHERTEXTS)
def sealed_for_the_newcomer_as_well() -> Invalid | None:
    return committed(room(), by_value(Add(JOINER.key_package())), change_path=lambda path: sealed_for(path, 1))


def first_key(path: UpdatePath, key: HpkePublicKey) -> UpdatePath:
    return replace(path, nodes=(UpdatePathNode(key, path.nodes[0].encrypted_path_secret), *path.nodes[1:]))


@breaks(verdict.PATH_KEY)
def key_too_short() -> Invalid | None:
    return committed(room(), change_path=lambda path: first_key(path, HpkePublicKey(bytes(31))))


@breaks(verdict.PATH_KEY)
def key_off_the_curve() -> Invalid | None:
    here = crowd(3, suite=2)
    return committed(here, change_path=lambda path: first_key(path, HpkePublicKey(b"\x04" + bytes([7]) * 64)))


@breaks(verdict.PATH_KEY_REUSED)
def key_of_another_member() -> Invalid | None:
    here = room()
    return committed(here, change_path=lambda path: first_key(path, here.tree.leaf(3).encryption_key))


@breaks(verdict.PATH_KEY_REUSED)
def key_twice_in_the_path() -> Invalid | None:
    return committed(room(), change_path=lambda path: first_key(path, path.leaf_node.encryption_key))


@breaks(verdict.PATH_PARENT_HASH)
def parent_hash_of_another_path() -> Invalid | None:
    return committed(room(), change_leaf={"origin": bytes(32)})


@breaks(verdict.PATH_PARENT_HASH)
def key_that_the_leaf_did_not_sign() -> Invalid | None:
    return committed(room(), change_path=lambda path: first_key(path, fresh_key(JOINER.suite)))


# Welcome, GroupInfo, whole trees


@breaks(verdict.WELCOME_EMPTY)
def welcome_for_nobody() -> Invalid | None:
    welcome = MLSMessage(MLS10, WireFormat.WELCOME, Welcome(CipherSuite(1), (), b""))
    line = f'{{"bytes": "{welcome.encoded.hex()}", "expect": "reject"}}'
    found = next(iter(replay.replay(line, now_s=0)))
    assert not found.failed
    return found.verdict  # type: ignore[return-value]


@breaks(verdict.UNKNOWN_SUITE)
def suite_of_nobody() -> Invalid | None:
    context = replace(room().context(), cipher_suite=CipherSuite(0x0A0A))
    return opened(room().info(group_context=context))


@breaks(verdict.GROUP_INFO_SIGNER)
def signer_who_left() -> Invalid | None:
    here = room()
    here.clients[6] = here.clients[1]
    return opened(here.info(signer=6))


@breaks(verdict.GROUP_INFO_SIGNATURE)
def info_signed_by_another() -> Invalid | None:
    return opened(replace(room().info(signer=2), signer=1))


@breaks(verdict.GROUP_INFO_LENGTH)
def info_with_a_short_tag() -> Invalid | None:
    return opened(room().info(confirmation_tag=b"tag"))


@breaks(verdict.FIRST_EPOCH)
def begins_with_five() -> Invalid | None:
    here = room()
    here.epoch, here.confirmed = 0, b""
    return opened(here.info())


@breaks(verdict.FIRST_EPOCH)
def begins_with_a_transcript() -> Invalid | None:
    here = room(1)
    here.confirmed = bytes(32)
    return opened(here.info())


@breaks(verdict.TREE_NEEDED)
def info_without_a_tree() -> Invalid | None:
    return opened(room().info(tree=False))


@breaks(verdict.TREE_MALFORMED)
def tree_of_one_blank() -> Invalid | None:
    return opened(room().info(tree=False), RATCHET_TREE.encode((None,)))


@breaks(verdict.TREE_HASH)
def tree_of_another_group() -> Invalid | None:
    return opened(room().info(tree=False), room().tree.encode())


@breaks(verdict.TREE_PARENT_HASH)
def parent_of_nobody() -> Invalid | None:
    here = room()
    assert here.tree.nodes[5] is None
    here.tree.nodes[5] = ParentNode(fresh_key(here.suite), b"", ())
    return opened(here.info())


@breaks(verdict.TREE_UNMERGED)
def unmerged_and_blank() -> Invalid | None:
    here = room()
    node = here.tree.nodes[here.tree.root]
    assert isinstance(node, ParentNode)
    here.tree.nodes[here.tree.root] = replace(node, unmerged_leaves=(6,))
    return opened(here.info())


@breaks(verdict.TREE_UNMERGED)
def unmerged_and_not_sorted() -> Invalid | None:
    here = room()
    node = here.tree.nodes[here.tree.root]
    assert isinstance(node, ParentNode)
    here.tree.nodes[here.tree.root] = replace(node, unmerged_leaves=(4, 3))
    return opened(here.info())


@breaks(verdict.ENCRYPTION_KEY_UNIQUE)
def tree_with_a_key_twice() -> Invalid | None:
    here = room()
    here.tree.nodes[2] = here.clients[1].leaf(
        LeafNodeSource.KEY_PACKAGE, encryption_key=here.tree.leaf(3).encryption_key
    )
    return opened(here.info())


@breaks(verdict.LEAF_SIGNATURE)
def tree_with_a_forged_leaf() -> Invalid | None:
    here = crowd(5, path=False)  # no parent node that would notice first
    here.tree.nodes[2] = replace(here.tree.leaf(1), signature=bytes(64))
    return opened(here.info())


def claimed_after(here: Room, info: Callable[[Room], GroupInfo]) -> Invalid | None:
    message, after = here.commit(1)
    judgement = knowledge.judge(knowledge.Derived(open_group(here.info())), message)
    return raised(lambda: knowledge.next_knowledge(judgement, message, info(after)))


@breaks(verdict.GROUP_INFO_TAG)
def info_with_another_tag() -> Invalid | None:
    return claimed_after(room(), lambda after: after.info(confirmation_tag=bytes(32)))


@breaks(verdict.DUPLICATE_EXTENSION)
def info_of_a_known_state_with_an_extension_twice() -> Invalid | None:
    extension = Extension(ExtensionType(0xF0F1), b"")
    return claimed_after(room(), lambda after: after.info(extension, extension))


@breaks(verdict.GROUP_INFO_CONTRADICTS)
def info_of_another_state() -> Invalid | None:
    def other(after: Room) -> GroupInfo:
        after.extensions = (DICTIONARY,)
        return after.info()

    return claimed_after(room(), other)


@breaks(verdict.GROUP_INFO_CONTRADICTS)
def info_with_another_tree() -> Invalid | None:
    other = Node(NodeType.LEAF, JOINER.leaf(LeafNodeSource.KEY_PACKAGE))
    tree = Extension(ExtensionType.RATCHET_TREE, RATCHET_TREE.encode((other,)))
    return claimed_after(room(), lambda after: after.info(tree, tree=False))


@pytest.mark.parametrize(("rule", "case"), CASES, ids=[f"{name}:{case.__name__}" for name, case in CASES])
def test_a_broken_rule_is_refused_by_its_name(rule: str, case: Case) -> None:
    found = case()
    assert found is not None, "it was not refused"
    assert found.rule.name == rule, str(found)
    assert found.section
    assert found.detail


def test_every_rule_of_the_table_is_broken_once() -> None:
    assert {name for name, _ in CASES} == set(RULES)


def test_sections_are_of_documents() -> None:
    for rule in RULES.values():
        assert rule.section.startswith(("RFC 9420 section ", "draft-ietf-mls-extensions", "semantics: ")), rule


def test_the_document_has_the_table_as_the_code_prints_it() -> None:
    assert rules_table() in (Path(__file__).parents[2] / "docs" / "mls.md").read_text()
