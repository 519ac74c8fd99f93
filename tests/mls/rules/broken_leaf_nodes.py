"""Leaf nodes that break a rule."""

from __future__ import annotations

from mimids.mls.code_points import (
    CredentialType,
    ExtensionType,
    LeafNodeSource,
)
from mimids.mls.leaf_node import (
    Extension,
)
from mimids.mls.opening import open_group
from mimids.mls.proposals import (
    Add,
    GroupContextExtensions,
    Remove,
    Update,
)
from mimids.mls.public_group import Valid
from mimids.mls.rules import verdict
from mimids.mls.rules.checks import check, record
from mimids.mls.rules.verdict import Invalid
from tests.support.broken_rules import (
    INIT,
    JOINER,
    breaks,
    committed,
    proposed,
    required,
    room,
    said,
)
from tests.support.mls_makers import replace
from tests.support.signing import Client, by_reference, by_value, ref_of


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
