"""Single proposals that break a rule."""

from __future__ import annotations

from mimids.mls.code_points import (
    AppDataUpdateOperation,
    ComponentId,
    CredentialType,
    ExtensionType,
    LeafNodeSource,
    PskType,
    ResumptionPskUsage,
    SenderType,
)
from mimids.mls.components import AppDataDictionary, ComponentData
from mimids.mls.framing import Sender
from mimids.mls.group_info import EXTERNAL_SENDERS, ExternalSender
from mimids.mls.leaf_node import Certificate, Credential, Extension
from mimids.mls.opening import open_group
from mimids.mls.proposals import (
    Add,
    AppDataUpdate,
    ExternalInit,
    GroupContextExtensions,
    PreSharedKey,
    PreSharedKeyId,
    ReInit,
    Remove,
    ResumptionPsk,
    Update,
)
from mimids.mls.rules import verdict
from mimids.mls.rules.checks import check, check_without_state, record
from mimids.mls.rules.verdict import Invalid
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, ProtocolVersion
from tests.support.broken_rules import (
    DICTIONARY,
    INIT,
    JOINER,
    PSK,
    SELF,
    breaks,
    committed,
    proposed,
    raised,
    required,
    room,
    said,
)
from tests.support.mls_makers import replace
from tests.support.signing import Client, by_value, fresh_key


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


TWICE = (Extension(ExtensionType(0xF0F1), b""), Extension(ExtensionType(0xF0F1), b"x"))


@breaks(verdict.DUPLICATE_EXTENSION)
def reinit_with_an_extension_twice() -> Invalid | None:
    return proposed(room(), ReInit(GroupId(b"new"), MLS10, CipherSuite(1), TWICE))


@breaks(verdict.DUPLICATE_EXTENSION)
def group_extension_twice_in_an_unknown_state() -> Invalid | None:
    message = room().propose(1, GroupContextExtensions(TWICE))
    return raised(lambda: check_without_state(message))


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


@breaks(verdict.GROUP_EXTENSIONS)
def external_sender_whose_certificate_does_not_parse() -> Invalid | None:
    credential = Credential(CredentialType.X509, (Certificate(b"none"),))
    data = EXTERNAL_SENDERS.encode((ExternalSender(JOINER.signer.public, credential),))
    return proposed(room(), GroupContextExtensions((Extension(ExtensionType.EXTERNAL_SENDERS, data),)))


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
