from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding

from mimids.mls.code_points import (
    ComponentId,
    CredentialType,
    ExtensionType,
    LeafNodeSource,
    ProposalType,
    PskType,
    ResumptionPskUsage,
    SenderType,
    WireFormat,
)
from mimids.mls.components import (
    ParticipantList,
    ParticipantListUpdate,
    RolesList,
    UserIndexRolePair,
    UserRolePair,
)
from mimids.mls.framing import MLSMessage, Sender
from mimids.mls.group_info import RequiredCapabilities
from mimids.mls.leaf_node import Certificate, Credential, Extension
from mimids.mls.opening import open_group, restore_group
from mimids.mls.proposals import (
    Add,
    AppEphemeral,
    GroupContextExtensions,
    PreSharedKey,
    PreSharedKeyId,
    ReInit,
    Remove,
    ResumptionPsk,
    SelfRemove,
    Update,
)
from mimids.mls.rules import verdict
from mimids.mls.rules.checks import apply, check, covered_proposals, record, signature_fits
from mimids.mls.rules.proposal_list import Covered
from mimids.mls.rules.verdict import Invalid, Missing, RuleError, Unknown
from mimids.mls.suites import SUITES
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, UserId
from tests.support.public_groups import OUTSIDER, SENDERS, component, dictionary, followed, init, kept, refs
from tests.support.signing import (
    EXTRA_EXTENSIONS,
    EXTRA_PROPOSALS,
    Client,
    Room,
    by_reference,
    by_value,
    crowd,
    ref_of,
)

SUITE_CODES = sorted(SUITES)


@pytest.mark.parametrize("suite", SUITE_CODES)
def test_every_suite_is_followed_through_all_kinds_of_commits(suite: int) -> None:
    room = crowd(6, suite=suite)
    group = open_group(room.info())
    for step in (
        room.propose(2, Update(room.clients[2].leaf(LeafNodeSource.UPDATE, 2))),
        room.propose(3, Remove(4)),
        room.propose(1, Add(Client.of(20, suite=suite).key_package())),
    ):
        group = kept(group, step)
    message, room = room.commit(0, *map(by_reference, room.sent))
    group = followed(group, message, room)
    message, room = room.commit(Client.of(21, suite=suite), init(room))
    group = followed(group, message, room)
    psk = PreSharedKeyId(PskType.EXTERNAL, b"one", bytes(room.suite.hash_size))
    message, room = room.commit(5, by_value(PreSharedKey(psk)), path=False)
    group = followed(group, message, room)
    message, room = room.commit(room.clients[1], by_value(Remove(1)), init(room))
    followed(group, message, room)


def test_a_history_of_one_proves_its_first_epoch() -> None:
    room = Room.create(Client.of(1))
    group = open_group(room.info())
    message, room = room.commit(0)
    group = followed(group, message, room)
    message, room = room.commit(room.clients[0], by_value(Remove(0)), init(room))  # the sole member rejoins
    followed(group, message, room)


def test_psks_of_a_branch_belong_to_its_first_commit() -> None:
    room = Room.create(Client.of(1))
    psk = PreSharedKeyId(PskType.RESUMPTION, ResumptionPsk(ResumptionPskUsage.BRANCH, GroupId(b"old"), 3), bytes(32))
    message, after = room.commit(0, by_value(PreSharedKey(psk)))
    followed(open_group(room.info()), message, after)


def test_external_senders_propose_and_members_commit() -> None:
    room = crowd(5, extensions=(SENDERS,))
    outside = Sender(SenderType.EXTERNAL, 1)
    proposals = [
        room.propose(outside, Remove(2), by=OUTSIDER.signer),
        room.propose(outside, Add(Client.of(30).key_package()), by=OUTSIDER.signer),
        room.propose(
            Sender(SenderType.NEW_MEMBER_PROPOSAL, None), Add(Client.of(31).key_package()), by=Client.of(31).signer
        ),
    ]
    group = kept(open_group(room.info()), *proposals)
    message, after = room.commit(3, *refs(room, *proposals))
    covered = covered_proposals(group, message)
    assert [each.sender for each in covered if isinstance(each, Covered)] == [
        outside,
        outside,
        Sender(SenderType.NEW_MEMBER_PROPOSAL, None),
    ]
    assert [each.ref for each in covered if isinstance(each, Covered)] == [
        ref_of(each, room.suite) for each in proposals
    ]
    after_commit = followed(group, message, after)
    assert UserId(b"mimi://a.example/u/user31") in after_commit.users()
    assert UserId(b"mimi://a.example/u/user3") not in after_commit.users()


def test_self_removes_are_covered_by_members_and_by_joiners() -> None:
    for by in (0, Client.of(40)):
        room = crowd(6)
        leaving = [room.propose(index, SelfRemove()) for index in (2, 5)]
        group = kept(open_group(room.info()), *leaving)
        assert set(group.self_removes()) == {ref_of(each, room.suite) for each in leaving}
        items = refs(room, *leaving)
        message, after = room.commit(by, *([init(room)] if isinstance(by, Client) else []), *items)
        assert 5 not in followed(group, message, after).users().get(UserId(b"mimi://a.example/u/user6"), ())


ALICE, BOB = UserId(b"mimi://a.example/u/user1"), UserId(b"mimi://a.example/u/user2")


def test_app_data_updates_change_the_dictionary_and_nothing_else() -> None:
    participants = ParticipantList((UserRolePair(ALICE, 4), UserRolePair(BOB, 3)))
    room = crowd(3, extensions=(dictionary(_0022=encode(participants), _ff00=b"left alone"), SENDERS))
    group = open_group(room.info())
    demote = ParticipantListUpdate((UserIndexRolePair(1, 1),), (), ())
    forget = component(0xFF00, None)
    items = [
        by_value(component(ComponentId.PARTICIPANT_LIST, encode(demote))),
        by_value(forget),
        by_value(component(ComponentId.ROLES_LIST, encode(RolesList(())))),
    ]
    message, after = room.commit(1, *items, path=False)
    expected = ParticipantList((UserRolePair(ALICE, 4), UserRolePair(BOB, 1)))
    after.extensions = (dictionary(_0022=encode(expected), _0025=encode(RolesList(()))), SENDERS)
    group = followed(group, message, after)
    assert group.parameters.dictionary is not None
    joins, later = after.commit(Client.of(50), init(after), by_value(component(ComponentId.ROLES_LIST, None)))
    later.extensions = (dictionary(_0022=encode(expected)), SENDERS)
    followed(group, joins, later)


def test_the_first_app_data_update_brings_the_dictionary_as_last_extension() -> None:
    room = crowd(3, extensions=(SENDERS,))
    first = ParticipantListUpdate((), (), (UserRolePair(ALICE, 4),))
    outside = room.propose(
        Sender(SenderType.EXTERNAL, 1), component(ComponentId.PARTICIPANT_LIST, encode(first)), by=OUTSIDER.signer
    )
    group = kept(open_group(room.info()), outside)
    message, after = room.commit(0, *refs(room, outside), path=False)
    after.extensions = (SENDERS, dictionary(_0022=encode(ParticipantList((UserRolePair(ALICE, 4),)))))
    followed(group, message, after)


def test_extensions_are_replaced_before_components_are_updated() -> None:
    required = Extension(
        ExtensionType.REQUIRED_CAPABILITIES,
        encode(RequiredCapabilities((), (ProposalType.APP_DATA_UPDATE,), ())),
    )
    room = crowd(3, extensions=(dictionary(_ff00=b"x"), required))
    items = [
        by_value(GroupContextExtensions((dictionary(_ff00=b"x"), required, SENDERS))),
        by_value(component(0xFF00, None)),
    ]
    message, after = room.commit(0, *items)
    after.extensions = (dictionary(), required, SENDERS)
    followed(open_group(room.info()), message, after)


def missing(found: object) -> tuple[Missing, ...]:
    assert isinstance(found, Unknown), found
    return found.missing


def test_missing_information_is_named_and_refuses_nothing() -> None:
    room = crowd(4)
    group = open_group(room.info())
    unseen = room.propose(1, Remove(2))
    ref = ref_of(unseen, room.suite)
    message, _ = room.commit(0, by_reference(ref))
    assert missing(check(group, message)) == (Missing(verdict.PROPOSAL, ref.hex()),)
    with pytest.raises(LookupError):
        apply(group, message)
    custom = room.propose(1, b"whatever")
    group = kept(group, custom)
    message, _ = room.commit(0, *refs(room, custom))
    assert missing(check(group, message)) == (Missing(verdict.PROPOSAL_TYPE, "0xf0f2"),)
    message, _ = room.commit(0, by_value(component(0xFF01, b"?")), path=False)
    assert missing(check(group, message)) == (Missing(verdict.COMPONENT, "0xff01"),)
    _, wider = room.commit(0, by_value(Add(Client.of(61, proposals=()).key_package())))
    message, _ = wider.commit(0, by_value(b"it may remove whoever does not support it"))
    assert missing(check(open_group(wider.info()), message)) == (Missing(verdict.PROPOSAL_TYPE, "0xf0f2"),)
    message, _ = room.commit(Client.of(60), init(room), by_value(b"whatever"))
    assert missing(check(group, message)) == (Missing(verdict.PROPOSAL_TYPE, "0xf0f2"),)


def test_app_ephemeral_changes_no_state() -> None:
    room = crowd(4)
    message, after = room.commit(0, by_value(AppEphemeral(ComponentId(0xFF07), b"now")), path=False)
    followed(open_group(room.info()), message, after)


def test_a_refused_proposal_refuses_the_commit_that_covers_it_for_the_same_reason() -> None:
    room = crowd(4)
    group = open_group(room.info())
    bad = room.propose(1, Remove(7))
    found = check(group, bad)
    assert isinstance(found, Invalid)
    group = record(group, bad, found)
    again = check(group, room.commit(0, *refs(room, bad))[0])
    assert isinstance(again, Invalid)
    assert (again.rule, again.section) == (found.rule, found.section)
    by_policy = room.propose(1, Remove(2))
    why = Invalid(verdict.Rule("policy-banned", "semantics: policy", "banned"), "semantics: policy", "banned")
    group = group.with_refused(ref_of(by_policy, room.suite), why)
    refused = check(group, room.commit(0, *refs(room, by_policy))[0])
    assert isinstance(refused, Invalid)
    assert refused.rule.name == "policy-banned"


def test_a_broken_copy_does_not_poison_the_proposal_itself() -> None:
    """A reference does not cover the membership tag, so anybody could resend a proposal with a wrong tag."""
    room = crowd(4)
    group = open_group(room.info())
    good = room.propose(1, Remove(2))
    bad = decode(MLSMessage, good.encoded[:-33] + b"\x00")
    found = check(group, bad)
    assert isinstance(found, Invalid)
    assert found.rule is verdict.MEMBERSHIP_TAG_LENGTH
    group = kept(record(group, bad, found), good)
    message, after = room.commit(0, *refs(room, good))
    followed(group, message, after)


def test_refusals_are_stored_up_to_a_bound() -> None:
    group = open_group(crowd(2).info())
    why = Invalid(verdict.SIGNATURE, "", "")
    for number in range(1100):
        group = group.with_refused(number.to_bytes(32, "big"), why)  # type: ignore[arg-type]
    assert len(group.refused) == 1024


def test_a_signature_fits_the_state_it_was_made_in_only() -> None:
    room = crowd(4)
    message, left = room.commit(0)
    _, right = room.commit(1)
    in_left, _ = left.commit(2)
    joins_left, _ = left.commit(Client.of(60), init(left))
    for made in (in_left, joins_left):
        assert signature_fits(open_group(left.info()), made)
        assert not signature_fits(open_group(right.info()), made)
        assert not signature_fits(open_group(room.info()), made)
    assert signature_fits(open_group(room.info()), message)
    from_outside = room.propose(
        Sender(SenderType.NEW_MEMBER_PROPOSAL, None), Add(Client.of(61).key_package()), by=Client.of(61).signer
    )
    assert not signature_fits(
        open_group(room.info()), from_outside
    )  # its signature covers no GroupContext, so it fits no state
    of_nobody = room.propose(Sender(SenderType.MEMBER, 9), Remove(1), by=Client.of(61).signer)
    assert not signature_fits(open_group(room.info()), of_nobody)


def test_apply_raises_the_verdict_of_check() -> None:
    room = crowd(4)
    group = open_group(room.info())
    message, after = room.commit(0)
    assert apply(group, message).context == after.context()
    with pytest.raises(RuleError, match="wrong-epoch"):
        apply(apply(group, message), message)
    with pytest.raises(LookupError):
        apply(group, room.propose(1, Remove(2)))
    with pytest.raises(TypeError):
        check(group, MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info()))


CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}


def certified(suite: int, seed: int, uri: str, *, other_key: bool = False) -> Client:
    """Return a client whose credential is a self-signed certificate chain."""
    client = Client.of(seed, suite=suite, credentials=(CredentialType.BASIC, CredentialType.X509))
    private: Any
    octets = bytes([seed + 1 if other_key else seed])
    scheme = client.suite.scheme
    if scheme == "Ed25519":
        private = ed25519.Ed25519PrivateKey.from_private_bytes(octets * 32)
    elif scheme == "Ed448":
        private = ed448.Ed448PrivateKey.from_private_bytes(octets * 57)
    elif scheme.startswith("ML-DSA"):
        private = getattr(mldsa, f"{scheme.replace('-', '')}PrivateKey").from_seed_bytes(octets * 32)
    else:
        private = ec.derive_private_key(int.from_bytes(octets * 32, "big"), CURVES[scheme])
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody")])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(seed)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))  # members check the expiry
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
    )
    certificate = builder.sign(private, hashes.SHA256() if scheme in CURVES else None)
    credential = Credential(CredentialType.X509, (Certificate(certificate.public_bytes(Encoding.DER)),))
    return Client.of(seed, suite=suite, credential=credential, credentials=(CredentialType.BASIC, CredentialType.X509))


def everybody_reads_certificates(size: int, suite: int) -> Room:
    both = (CredentialType.BASIC, CredentialType.X509)
    room = Room.create(Client.of(1, suite=suite, credentials=both))
    adds = [by_value(Add(Client.of(n, suite=suite, credentials=both).key_package())) for n in range(2, size + 1)]
    return room.commit(0, *adds)[1]


@pytest.mark.parametrize("suite", SUITE_CODES)
def test_certificates_name_their_user_and_contain_its_key(suite: int) -> None:
    room = everybody_reads_certificates(3, suite)
    group = open_group(room.info())
    holder = certified(suite, 90, "mimi://x.example/u/xavier")
    message, after = room.commit(0, by_value(Add(holder.key_package())))
    group = followed(group, message, after)
    assert group.users()[UserId(b"mimi://x.example/u/xavier")] == (3,)
    message, later = after.commit(holder, by_value(Remove(3)), init(after))
    followed(group, message, later)
    thief = certified(suite, 91, "mimi://x.example/u/xavier", other_key=True)
    found = check(open_group(room.info()), room.propose(1, Add(thief.key_package())))
    assert isinstance(found, Invalid)
    assert found.section == "RFC 9420 section 5.3"
    other = certified(suite, 92, "mimi://x.example/u/yvonne")
    found = check(group, after.commit(other, by_value(Remove(3)), init(after))[0])
    assert isinstance(found, Invalid)
    assert found.rule is verdict.CREDENTIAL_SUCCESSOR


def test_certificates_are_refused_where_a_member_cannot_read_them() -> None:
    room = crowd(3)
    found = check(
        open_group(room.info()),
        room.commit(0, by_value(Add(certified(1, 90, "mimi://x.example/u/x").key_package())))[0],
    )
    assert isinstance(found, Invalid)
    assert found.rule is verdict.CREDENTIAL_SUPPORT


def test_members_who_support_exactly_what_a_group_needs_are_enough() -> None:
    capabilities = RequiredCapabilities(EXTRA_EXTENSIONS, EXTRA_PROPOSALS, (CredentialType.BASIC,))
    demands = Extension(ExtensionType.REQUIRED_CAPABILITIES, encode(capabilities))
    room = crowd(3, extensions=(demands, dictionary(_ff00=b"data"), Extension(EXTRA_EXTENSIONS[1], b"")))
    followed(open_group(room.info()), *room.commit(1))


def test_a_reinitialized_group_accepts_no_messages() -> None:
    room = crowd(3)
    message, after = room.commit(0, by_value(ReInit(GroupId(b"new"), MLS10, CipherSuite(3), ())), path=False)
    group = followed(open_group(room.info()), message, after)
    again = restore_group(group.context.encoded, group.confirmation_tag, group.tree, reinitialized=group.reinitialized)
    for state in (group, again):
        found = check(state, after.propose(1, Remove(2)))
        assert isinstance(found, Invalid)
        assert found.rule is verdict.REINITIALIZED
