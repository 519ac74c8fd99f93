"""An example of each struct of the wire format, with an encoding written by hand from the notation."""

from __future__ import annotations

from typing import Any, Final

from mimids.mls.code_points import ContentType, CredentialType, LeafNodeSource, ProposalType, SenderType, WireFormat
from mimids.mls.framing import FramedContent, MLSMessage, PrivateMessage, PublicMessage, Sender
from mimids.mls.group_info import GroupContext, GroupInfo
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.leaf_node import Capabilities, Credential, HpkePublicKey, LeafNode, Lifetime, SignaturePublicKey
from mimids.mls.proposals import Commit, HpkeCiphertext, Proposal, SelfRemove
from mimids.mls.welcome import EncryptedGroupSecrets, Welcome
from mimids.wire.ids import (
    MLS10,
    NO_LONGER_FOLLOWED,
    BearerToken,
    CipherSuite,
    Counter,
    GroupId,
    KeyPackageRef,
    MaskedPartitionKey,
    PartitionKey,
    ProtocolVersion,
    ProviderId,
    UserId,
)
from mimids.wire.messages import (
    Ack,
    CaughtUp,
    CommitData,
    CommitHint,
    CreateGroupRequest,
    EncodedKeyPackage,
    Epoch,
    ExternalJoinRequest,
    ExternalProposalRequest,
    Frame,
    FrameType,
    GroupInfoBundle,
    GroupInfoRequest,
    GroupInfoResponse,
    Heartbeat,
    HeldGroupsRequest,
    HeldGroupsResponse,
    HintedEpoch,
    InboxWelcome,
    KeyPackageBundleRequest,
    KeyPackageBundleResponse,
    KeyPackageRequest,
    KeyPackageResponse,
    KeyPackageResult,
    KeyPackageStatus,
    KnownPartition,
    Message,
    Messages,
    Position,
    PositionsRequest,
    PositionsResponse,
    Present,
    PushedEpoch,
    PushRequest,
    PushResponse,
    RatchetTree,
    ReceiveRequest,
    ReceiveResponse,
    RecoverRequest,
    RecoverResponse,
    Result,
    ResumeRequest,
    Send,
    SendRequest,
    SendResponse,
    SendResult,
    SendStatus,
    SiblingsRequest,
    Stock,
    WelcomeData,
    WelcomeInitRequest,
    WelcomeInitResponse,
    WelcomeState,
    WelcomeStatus,
    WelcomeStatusRequest,
    WelcomeStatusResponse,
    Withdraw,
)

# --- parts: each in Python, and beside it in hex ------------------------------------------------------------------

SUITE: Final = CipherSuite(1)
GREASE: Final = 0x0A0A
GROUP, GROUP_HEX = GroupId(b"g1"), "02 6731"
BOB, BOB_HEX = UserId(b"mimi://b.example/u/bob"), "16" + b"mimi://b.example/u/bob".hex()
A, A_HEX = ProviderId("a.example"), "09" + b"a.example".hex()
B, B_HEX = ProviderId("b.example"), "09" + b"b.example".hex()
KEY_HEX, NEXT_HEX = "000102030405060708090a0b0c0d0e0f", "101112131415161718191a1b1c1d1e1f"
KEY, NEXT = PartitionKey(bytes(range(16))), PartitionKey(bytes(range(16, 32)))
MASK, MASK_HEX = MaskedPartitionKey(b"\x32" * 32), "20" + "32" * 32  # 33 octets
MASK_48, MASK_48_HEX = MaskedPartitionKey(b"\x48" * 48), "30" + "48" * 48  # 49
MASK_64, MASK_64_HEX = MaskedPartitionKey(b"\x64" * 64), "4040" + "64" * 64  # 66
TREE, TREE_HEX = RatchetTree(b"\3\0\0\0"), "03 00 00 00"  # three blank nodes
PROBLEM, PROBLEM_HEX = b"{}", "02 7b7d"

EPOCH_HEX = "0000000000000007"


def private(content_type: ContentType) -> MLSMessage:
    message = PrivateMessage(GROUP, 7, content_type, b"", b"\xaa", b"\xbb\xcc")
    return MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, message)


APPLICATION, APPLICATION_HEX = private(ContentType.APPLICATION), f"0001 0002 {GROUP_HEX} {EPOCH_HEX} 01 00 01aa 02bbcc"
PROPOSAL, PROPOSAL_HEX = private(ContentType.PROPOSAL), f"0001 0002 {GROUP_HEX} {EPOCH_HEX} 02 00 01aa 02bbcc"
COMMIT, COMMIT_HEX = private(ContentType.COMMIT), f"0001 0002 {GROUP_HEX} {EPOCH_HEX} 03 00 01aa 02bbcc"  # 22 octets

JOIN = MLSMessage(
    MLS10,
    WireFormat.PUBLIC_MESSAGE,
    PublicMessage(
        FramedContent(GROUP, 7, Sender(SenderType.NEW_MEMBER_COMMIT, None), b"", ContentType.COMMIT, Commit((), None)),
        b"s",
        b"c",
        None,
    ),
)
JOIN_HEX = f"0001 0001 {GROUP_HEX} {EPOCH_HEX} 04 00 03 00 00 0173 0163"

REMOVAL = MLSMessage(
    MLS10,
    WireFormat.PUBLIC_MESSAGE,
    PublicMessage(
        FramedContent(
            GROUP,
            7,
            Sender(SenderType.MEMBER, 3),
            b"",
            ContentType.PROPOSAL,
            Proposal(ProposalType.SELF_REMOVE, SelfRemove()),
        ),
        b"s",
        None,
        b"m",
    ),
)
REMOVAL_HEX = f"0001 0001 {GROUP_HEX} {EPOCH_HEX} 01 00000003 00 02 000a 0173 016d"  # 28 octets

WELCOME = MLSMessage(
    MLS10,
    WireFormat.WELCOME,
    Welcome(SUITE, (EncryptedGroupSecrets(KeyPackageRef(b"re"), HpkeCiphertext(b"k", b"c")),), b"\xee"),
)
WELCOME_HEX = "0001 0003 0001 07 02 7265 016b 0163 01ee"

INFO = MLSMessage(
    MLS10,
    WireFormat.GROUP_INFO,
    GroupInfo(GroupContext(MLS10, SUITE, GROUP, 7, b"t", b"h", ()), (), b"c", 3, b"s"),
)
INFO_HEX = f"0001 0004 0001 0001 {GROUP_HEX} {EPOCH_HEX} 0174 0168 00 00 0163 00000003 0173"

KEY_PACKAGE = EncodedKeyPackage(
    KeyPackageIn(
        MLS10,
        SUITE,
        HpkePublicKey(b"i"),
        LeafNode(
            HpkePublicKey(b"e"),
            SignaturePublicKey(b"s"),
            Credential(CredentialType.BASIC, b"bob"),
            Capabilities((MLS10,), (SUITE,), (), (), (CredentialType.BASIC,)),
            LeafNodeSource.KEY_PACKAGE,
            Lifetime(8, 9),
            (),
            b"l",
        ),
        (),
        b"k",
    ).encoded
)
KEY_PACKAGE_HEX = (  # 50 octets
    "0001 0001 0169"
    "0165 0173 0001 03626f62 02 0001 02 0001 00 00 02 0001 01 0000000000000008 0000000000000009 00 016c"
    "00 016b"
)

# --- the structs --------------------------------------------------------------------------------------------------

REQUEST = KeyPackageRequest(BOB, BearerToken(b"tok"), MLS10, SUITE)
REQUEST_HEX = f"{BOB_HEX} 03 746f6b 0001 0001"  # 31 octets
KNOWN = Position(1, Counter(2), Counter(5), 0, (MASK,))
KNOWN_HEX = f"01 0000000000000002 0000000000000005 00 21 {MASK_HEX}"  # 52
NOT_KNOWN = Position(0, Counter(0), Counter(0), 0, ())
GREASED = KeyPackageRequest(BOB, BearerToken(b""), ProtocolVersion(GREASE), CipherSuite(GREASE))
GREASED_HEX = f"{BOB_HEX} 00 0a0a 0a0a"  # 28 octets

WELCOME_DATA, WELCOME_DATA_HEX = WelcomeData(WELCOME, (A, B)), f"{WELCOME_HEX} 14 {A_HEX} {B_HEX}"
BARE_DATA, BARE_DATA_HEX = CommitData(NEXT, None, None), f"{NEXT_HEX} 00 00"
FULL_DATA = CommitData(NEXT, INFO, WELCOME_DATA)
FULL_DATA_HEX = f"{NEXT_HEX} 01 {INFO_HEX} 01 {WELCOME_DATA_HEX}"

SAID, SAID_HEX = SendRequest(APPLICATION, KEY, None), f"{APPLICATION_HEX} {KEY_HEX}"  # 38 octets
COMMITTED, COMMITTED_HEX = SendRequest(COMMIT, KEY, BARE_DATA), f"{COMMIT_HEX} {KEY_HEX} {BARE_DATA_HEX}"  # 56

ACCEPTED = SendResponse(Counter(5), 0x0123456789AB, MASK, 1, (MASK, MASK))
ACCEPTED_HEX = f"00000005 00000123456789ab {MASK_HEX} 01 4042 {MASK_HEX} {MASK_HEX}"  # 114

POSITION, POSITION_HEX = ReceiveRequest(KEY, Counter(3)), f"{KEY_HEX} 00000003"  # 20
PLAIN, PLAIN_HEX = Message(APPLICATION, None), APPLICATION_HEX
OPENING, OPENING_HEX = Message(COMMIT, CommitHint(MASK, None)), f"{COMMIT_HEX} {MASK_HEX} 00"  # 56
EPOCH, EPOCH_OF_TWO_HEX = Epoch((PLAIN, OPENING)), f"404e {PLAIN_HEX} {OPENING_HEX}"  # 22 + 56 = 78
NONE_YET, NONE_YET_HEX = Epoch(()), "00"

STATE, STATE_HEX = GroupInfoResponse(INFO, TREE), f"{INFO_HEX} 01 {TREE_HEX}"
PUSHED = PushedEpoch(GROUP, MASK, Counter(2), None, Epoch((PLAIN,)))
PUSHED_HEX = f"{GROUP_HEX} {MASK_HEX} 00000002 00 16 {PLAIN_HEX}"  # 64
PUSHED_WITH_STATE = PushedEpoch(GROUP, MASK, Counter(0), STATE, NONE_YET)
PUSHED_WITH_STATE_HEX = f"{GROUP_HEX} {MASK_HEX} 00000000 01 {STATE_HEX} 00"  # 3 + 33 + 4 + 1 + 38 + 1 = 80

EXAMPLES: Final[list[tuple[Any, str]]] = [
    (REQUEST, REQUEST_HEX),
    (GREASED, GREASED_HEX),
    (KeyPackageResponse(KEY_PACKAGE), KEY_PACKAGE_HEX),
    (KeyPackageBundleRequest((REQUEST, GREASED)), f"3b {REQUEST_HEX} {GREASED_HEX}"),
    (KeyPackageResult(KeyPackageStatus.OK, KEY_PACKAGE), f"00 {KEY_PACKAGE_HEX}"),
    (KeyPackageResult(KeyPackageStatus.REFUSED, None), "01"),
    (KeyPackageResult(KeyPackageStatus.EXHAUSTED, None), "02"),
    (
        KeyPackageBundleResponse(
            (
                KeyPackageResult(KeyPackageStatus.EXHAUSTED, None),
                KeyPackageResult(KeyPackageStatus.OK, KEY_PACKAGE),
                KeyPackageResult(KeyPackageStatus.REFUSED, None),
            )
        ),
        f"35 02 00 {KEY_PACKAGE_HEX} 01",
    ),
    (WELCOME_DATA, WELCOME_DATA_HEX),
    (WelcomeData(WELCOME, ()), f"{WELCOME_HEX} 00"),
    (BARE_DATA, BARE_DATA_HEX),
    (FULL_DATA, FULL_DATA_HEX),
    (KNOWN, KNOWN_HEX),
    (SendRequest(PROPOSAL, KEY, None), f"{PROPOSAL_HEX} {KEY_HEX}"),
    (SendRequest(REMOVAL, KEY, None), f"{REMOVAL_HEX} {KEY_HEX}"),
    (COMMITTED, COMMITTED_HEX),
    (SendRequest(JOIN, KEY, FULL_DATA), f"{JOIN_HEX} {KEY_HEX} {FULL_DATA_HEX}"),
    (ACCEPTED, ACCEPTED_HEX),
    (SendResponse(Counter(0), 0, MASK_64, 0, ()), f"00000000 0000000000000000 {MASK_64_HEX} 00 00"),
    (SendResult(SendStatus.ACCEPTED, ACCEPTED), f"00 {ACCEPTED_HEX}"),
    (SendResult(SendStatus.REFUSED, PROBLEM), f"01 {PROBLEM_HEX}"),
    (POSITION, POSITION_HEX),
    (PLAIN, PLAIN_HEX),
    (Message(PROPOSAL, None), PROPOSAL_HEX),
    (OPENING, OPENING_HEX),
    (Message(JOIN, CommitHint(MASK_48, INFO)), f"{JOIN_HEX} {MASK_48_HEX} 01 {INFO_HEX}"),
    (EPOCH, EPOCH_OF_TWO_HEX),
    (NONE_YET, NONE_YET_HEX),
    (HintedEpoch(MASK_48, EPOCH), f"{MASK_48_HEX} {EPOCH_OF_TWO_HEX}"),
    (ReceiveResponse(EPOCH, ()), f"{EPOCH_OF_TWO_HEX} 00"),
    (
        ReceiveResponse(NONE_YET, (HintedEpoch(MASK, Epoch((PLAIN,))), HintedEpoch(MASK, NONE_YET))),
        f"00 405a {MASK_HEX} 16 {PLAIN_HEX} {MASK_HEX} 00",
    ),
    (WelcomeInitRequest((KeyPackageRef(b"one"), KeyPackageRef(b"four"))), "09 03 6f6e65 04 666f7572"),
    (WelcomeInitResponse((KeyPackageRef(b"one"),)), "04 03 6f6e65"),
    (WelcomeStatusRequest(KEY), KEY_HEX),
    (WelcomeStatus(KeyPackageRef(b"one"), WelcomeState.WAITING, b"busy"), "03 6f6e65 02 04 62757379"),
    (
        WelcomeStatusResponse(
            (
                WelcomeStatus(KeyPackageRef(b"one"), WelcomeState.MISSING, b""),
                WelcomeStatus(KeyPackageRef(b"four"), WelcomeState.CANCELLED, b""),
            )
        ),
        "0d 03 6f6e65 00 00 04 666f7572 06 00",
    ),
    (SiblingsRequest(MLS10, CipherSuite(0x4D)), "0001 004d"),
    (PositionsRequest((KEY, KEY)), f"20 {KEY_HEX} {KEY_HEX}"),
    (KNOWN, KNOWN_HEX),
    (PositionsResponse((KNOWN, NOT_KNOWN)), f"4047 {KNOWN_HEX} 00 0000000000000000 0000000000000000 00 00"),
    (ExternalJoinRequest(JOIN, BARE_DATA), f"{JOIN_HEX} {BARE_DATA_HEX}"),
    (GroupInfoRequest(GROUP), GROUP_HEX),
    (STATE, STATE_HEX),
    (GroupInfoResponse(INFO, None), f"{INFO_HEX} 00"),
    (GroupInfoBundle(STATE, ()), f"{STATE_HEX} 00"),
    (GroupInfoBundle(STATE, (REMOVAL, REMOVAL)), f"{STATE_HEX} 38 {REMOVAL_HEX} {REMOVAL_HEX}"),
    (ExternalProposalRequest(REMOVAL, None), f"{REMOVAL_HEX} 00"),
    (ExternalProposalRequest(REMOVAL, MASK), f"{REMOVAL_HEX} 01 {MASK_HEX}"),
    (
        CreateGroupRequest(GROUP, MLS10, CipherSuite(2), KEY, None, None, None),
        f"{GROUP_HEX} 0001 0002 {KEY_HEX} 00 00 00",
    ),
    (
        CreateGroupRequest(GROUP, MLS10, CipherSuite(2), KEY, INFO, TREE, WELCOME_DATA),
        f"{GROUP_HEX} 0001 0002 {KEY_HEX} 01 {INFO_HEX} 01 {TREE_HEX} 01 {WELCOME_DATA_HEX}",
    ),
    (PUSHED, PUSHED_HEX),
    (PUSHED_WITH_STATE, PUSHED_WITH_STATE_HEX),
    (PushRequest((PUSHED, PUSHED_WITH_STATE)), f"4090 {PUSHED_HEX} {PUSHED_WITH_STATE_HEX}"),
    (PushResponse((Counter(4), NO_LONGER_FOLLOWED)), "08 00000004 ffffffff"),
    (ResumeRequest(GROUP, MASK, Counter(9)), f"{GROUP_HEX} {MASK_HEX} 00000009"),
    (InboxWelcome(6, B, WELCOME), f"0000000000000006 {B_HEX} {WELCOME_HEX}"),
    (Frame(1, FrameType.PRESENT, Present(A, (POSITION,))), f"00000001 01 {A_HEX} 14 {POSITION_HEX}"),
    (Frame(2, FrameType.WITHDRAW, Withdraw((KEY, NEXT))), f"00000002 02 20 {KEY_HEX} {NEXT_HEX}"),
    (
        Frame(0xFFFFFFFF, FrameType.SEND, Send(A, (SAID, COMMITTED))),
        f"ffffffff 03 {A_HEX} 405e {SAID_HEX} {COMMITTED_HEX}",
    ),
    (Frame(4, FrameType.ACK, Ack((6, 2**63 - 1))), "00000004 04 10 0000000000000006 7fffffffffffffff"),
    (
        Frame(
            5,
            FrameType.RESULT,
            Result((SendResult(SendStatus.ACCEPTED, ACCEPTED), SendResult(SendStatus.REFUSED, PROBLEM))),
        ),
        f"00000005 05 4077 00 {ACCEPTED_HEX} 01 {PROBLEM_HEX}",
    ),
    (Frame(0, FrameType.MESSAGES, Messages(A, PUSHED)), f"00000000 06 {A_HEX} {PUSHED_HEX}"),
    (Frame(8, FrameType.HEARTBEAT, Heartbeat()), "00000008 0a"),
    (Frame(9, FrameType.CAUGHT_UP, CaughtUp((A,))), f"00000009 0b 0a {A_HEX}"),
    (Frame(0, FrameType.WELCOME, InboxWelcome(6, B, WELCOME)), f"00000000 07 0000000000000006 {B_HEX} {WELCOME_HEX}"),
    (Frame(0, FrameType.STOCK, Stock(MLS10, CipherSuite(3), 5)), "00000000 08 0001 0003 00000005"),
    (Frame(9, FrameType.PROBLEM, PROBLEM), f"00000009 09 {PROBLEM_HEX}"),
    # The structs of restoring a hub are not in that section, but in docs/http.md.
    (HeldGroupsRequest(GroupId(b"")), "00"),
    (HeldGroupsResponse((GROUP, GroupId(b""))), f"04 {GROUP_HEX} 00"),
    (KnownPartition(MASK, Counter(7)), f"{MASK_HEX} 00000007"),
    (RecoverRequest(GROUP, (KnownPartition(MASK, Counter(7)),)), f"{GROUP_HEX} 25 {MASK_HEX} 00000007"),
    (RecoverResponse(MLS10, SUITE, (PUSHED,)), f"0001 0001 4040 {PUSHED_HEX}"),
]
