from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from mimids.mls.code_points import (
    AppDataUpdateOperation,
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
    AppDataDictionary,
    ComponentData,
    ParticipantList,
    ParticipantListUpdate,
    RolesList,
    UserIndexRolePair,
    UserRolePair,
)
from mimids.mls.framing import MLS_MESSAGE, AuthenticatedContent, MLSMessage, Sender
from mimids.mls.group_info import EXTERNAL_SENDERS, ExternalSender, RequiredCapabilities
from mimids.mls.leaf_node import Certificate, Credential, Extension
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
    ResumptionPsk,
    SelfRemove,
    Update,
)
from mimids.mls.public_group import PublicGroup, Valid
from mimids.mls.rules import verdict
from mimids.mls.rules.checks import apply, check, covered_proposals, record, signature_fits
from mimids.mls.rules.proposal_list import Covered
from mimids.mls.rules.verdict import Invalid, Missing, RuleError, Unknown
from mimids.mls.suites import SUITES, suite_of
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.mls.tree.rows import all_nodes, load
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, UserId
from tests import vectors
from tests.support.signing import Client, Room, by_reference, by_value, crowd, fresh_key, ref_of

SUITE_CODES = sorted(SUITES)


def followed(group: PublicGroup, message: MLSMessage, after: Room) -> PublicGroup:
    """The state after a commit, which must be the one that the committer came to."""
    message = MLS_MESSAGE.decode(message.encoded)
    before = snapshot(group)
    found = check(group, message)
    assert isinstance(found, Valid), found
    assert found.next is not None
    assert snapshot(group) == before
    assert found.next.context == after.context()
    assert found.next.confirmation_tag == after.tag
    assert found.next.tree.encode() == after.tree.encode()
    return found.next


def snapshot(group: PublicGroup) -> tuple[object, ...]:
    return group.context.encoded, group.tree.encode(), group.confirmation_tag, dict(group.pending), dict(group.refused)


def kept(group: PublicGroup, *messages: MLSMessage) -> PublicGroup:
    """The same epoch after these proposals, all valid."""
    for message in messages:
        found = check(group, message)
        assert isinstance(found, Valid), found
        assert found.ref == ref_of(message, group.suite)
        group = record(group, message, found)
    return group


def refs(room: Room, *messages: MLSMessage) -> list[ProposalOrRef]:
    return [by_reference(ref_of(message, room.suite)) for message in messages]


def init(room: Room) -> ProposalOrRef:
    return by_value(ExternalInit(fresh_key(room.suite)))


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


OUTSIDER = Client.of(70, "service@s.example")
SENDERS = Extension(
    ExtensionType.EXTERNAL_SENDERS,
    EXTERNAL_SENDERS.encode(
        (
            ExternalSender(Client.of(71).signer.public, Client.of(71).credential),
            ExternalSender(OUTSIDER.signer.public, OUTSIDER.credential),
        )
    ),
)


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


def component(component_id: int, update: bytes | None) -> AppDataUpdate:
    op = AppDataUpdateOperation.REMOVE if update is None else AppDataUpdateOperation.UPDATE
    return AppDataUpdate(ComponentId(component_id), op, update)


def dictionary(**entries: bytes) -> Extension:
    data = tuple(ComponentData(ComponentId(int(name[1:], 16)), octets) for name, octets in sorted(entries.items()))
    return Extension(ExtensionType.APP_DATA_DICTIONARY, encode(AppDataDictionary(data)))


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


def test_what_is_not_known_is_named_and_refuses_nothing() -> None:
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
    """The reference covers all but the membership tag, so whoever sees a proposal could send it with a broken one."""
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


def test_refusals_are_remembered_up_to_a_bound() -> None:
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
    assert not signature_fits(open_group(room.info()), from_outside)  # it covers no GroupContext and proves no fork


def test_apply_raises_what_check_says() -> None:
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
    """A client whose credential is a certificate chain that it signed itself."""
    client = Client.of(seed, suite=suite, credentials=(CredentialType.BASIC, CredentialType.X509))
    private: Any
    octets = bytes([seed + 1 if other_key else seed])
    scheme = client.suite.scheme
    if scheme == "Ed25519":
        private = ed25519.Ed25519PrivateKey.from_private_bytes(octets * 32)
    elif scheme == "Ed448":
        private = ed448.Ed448PrivateKey.from_private_bytes(octets * 57)
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
        .not_valid_after(now + timedelta(days=1))  # expiry is the members' affair
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
    )
    certificate = builder.sign(private, None if scheme.startswith("Ed") else hashes.SHA256())
    credential = Credential(CredentialType.X509, (Certificate(certificate.public_bytes(Encoding.DER)),))
    return Client.of(seed, suite=suite, credential=credential, credentials=(CredentialType.BASIC, CredentialType.X509))


def everybody_reads_certificates(size: int, suite: int) -> Room:
    both = (CredentialType.BASIC, CredentialType.X509)
    room = Room.create(Client.of(1, suite=suite, credentials=both))
    adds = [by_value(Add(Client.of(n, suite=suite, credentials=both).key_package())) for n in range(2, size + 1)]
    return room.commit(0, *adds)[1]


@pytest.mark.parametrize("suite", SUITE_CODES)
def test_certificates_name_their_holder_and_hold_its_key(suite: int) -> None:
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


def test_nothing_is_sent_to_a_group_that_was_reinitialized() -> None:
    room = crowd(3)
    message, after = room.commit(0, by_value(ReInit(GroupId(b"new"), MLS10, CipherSuite(3), ())), path=False)
    group = followed(open_group(room.info()), message, after)
    again = restore_group(group.context.encoded, group.confirmation_tag, group.tree, reinitialized=group.reinitialized)
    for state in (group, again):
        found = check(state, after.propose(1, Remove(2)))
        assert isinstance(found, Invalid)
        assert found.rule is verdict.REINITIALIZED


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
    """One epoch's messages: proposals, and the commit that covers them."""
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
    for start, state in enumerate(states):  # from a GroupInfo, and from what a store keeps
        rows = {row.tree_hash: row for row in all_nodes(state.tree)}
        tree = load(state.suite, state.tree_hash, rows.get)
        again = restore_group(state.context.encoded, state.confirmation_tag, tree)
        for sent, commit, _ in log[start:]:
            again = apply(kept(again, *sent), commit)
        assert snapshot(again) == snapshot(group)
        assert RatchetTree.decode(group.suite, again.tree.encode()).tree_hash() == again.tree_hash


def any_body(draw: st.DrawFn, room: Room) -> Any:
    """A proposal's body, sound or not; few values, so that they meet."""
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
def test_whatever_is_signed_gets_a_verdict_and_the_right_state_if_it_is_valid(data: st.DataObject) -> None:
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
            assert found.next.context == after.context()  # the room knows nothing of components


def test_transcript_hashes_are_those_of_the_vectors() -> None:
    for vector in vectors.load("mls/transcript-hashes.json"):
        suite = suite_of(vector["cipher_suite"])
        assert suite is not None
        content = decode(AuthenticatedContent, bytes.fromhex(vector["authenticated_content"]))
        before = bytes.fromhex(vector["interim_transcript_hash_before"])
        confirmed = suite.hash(before + content.confirmed_transcript_hash_input())
        assert confirmed.hex() == vector["confirmed_transcript_hash_after"]
        interim = suite.hash(confirmed + content.interim_transcript_hash_input())
        assert interim.hex() == vector["interim_transcript_hash_after"]


def test_fifty_commits_in_a_group_of_a_thousand_lead_where_they_did() -> None:
    lines = vectors.load_lines("large/group-1000.jsonl")
    start = MLS_MESSAGE.decode(bytes.fromhex(lines[0]["bytes"])).message
    group = open_group(start, bytes.fromhex(lines[0]["ratchet_tree"]))  # type: ignore[arg-type]
    assert group.tree.member_count == 1000
    for line in lines[1:51]:
        group = apply(group, MLS_MESSAGE.decode(bytes.fromhex(line["bytes"])))
        assert group.tree_hash.hex() == line["next"]["tree_hash"], line["name"]
        assert group.context.confirmed_transcript_hash.hex() == line["next"]["confirmed_transcript_hash"]
    assert group.tree.encode().hex() == lines[51]["ratchet_tree"]
