"""The structures of the wire format that devices, followers and hubs send to each other (wire: structures).

They are in one long file because they are one contract. docs/wire.md is printed from them, in the same order. Each
structure comes after the structures that it contains.

An MLSMessage has no length prefix, so a parser must know MLS framing to find its end. That is why this module imports
`mls`, while the codec engine imports nothing. MLS objects are kept as received and written byte for byte. A ratchet
tree is kept as its octets; `mls.tree.ratchet_tree` parses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Final, NewType, TypeVar

from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLS_MESSAGE, MLSMessage
from mimids.mls.key_package import KeyPackageIn
from mimids.wire import varint
from mimids.wire.codec import NOTHING, OPAQUE_V, UINT8, UINT32, Codec, Reader, opaque, optional, uint, vector
from mimids.wire.declare import codec, select, struct, wire
from mimids.wire.ids import (
    BEARER_TOKEN,
    CIPHER_SUITE,
    COUNTER,
    GROUP_ID,
    KEY_PACKAGE_REF,
    LAST_COUNTER,
    MASKED_PARTITION_KEY,
    NEXT_COUNTER,
    PARTITION_KEY,
    PROTOCOL_VERSION,
    PROVIDER_ID,
    USER_ID,
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

T = TypeVar("T")

# The largest number of items of each vector: without it, a request of many tiny items would cause seconds of work. Each
# bound is far above the number of items in our own requests and answers.
MOST_KEY_PACKAGES: Final = 16_384  # in an upload
MOST_BUNDLED: Final = 1024  # requests, sealed by anybody: the gateway takes 5 ms to decode them
MOST_POSITIONS: Final = 256  # keys in a PositionsRequest, whose answer takes a reader of the database about 10 ms
MOST_SUCCESSORS: Final = 64  # successors of one partition in the answer, which then has at most 0.6 MiB
MOST_JOINERS: Final = 4096  # in one Welcome, and in one welcome/init, which takes about 25 ms of the writer
MOST_STATUSES: Final = 32_768  # for the Welcomes of one commit: 16,384 references, and 16,384 Adds
MOST_SENDS: Final = 65_536  # in a batch
MOST_MESSAGES: Final = 65_536  # in an Epoch
MOST_EPOCHS: Final = 1024  # in a push, an answer to a receive request, or a recovery
MOST_SELF_REMOVES: Final = 16_384
MOST_GROUP_IDS: Final = 10_000  # in a page
MOST_KNOWN_PARTITIONS: Final = 262_144  # of one group, in a RecoverRequest
MOST_WELCOMES: Final = 16_384  # in an inbox
MOST_MISSING: Final = 1024  # hubs in a CaughtUp
STORABLE: Final = uint(8, most=(1 << 63) - 1)  # the largest id that a row can have
WELCOME_ID: Final = STORABLE
POSITION_COUNTER: Final = uint(8, most=LAST_COUNTER).of(Counter)

RatchetTree = NewType("RatchetTree", bytes)  # `optional<Node> ratchet_tree<V>`, with its length prefix


class _RatchetTreeCodec(Codec[RatchetTree]):
    """Reads the length of a ratchet tree and keeps its octets, unparsed."""

    def read(self, reader: Reader) -> RatchetTree:
        start = reader.pos
        reader.opaque()
        return RatchetTree(reader.data[start : reader.pos])

    def write(self, value: RatchetTree, out: bytearray) -> None:
        out += value


RATCHET_TREE: Final[Codec[RatchetTree]] = _RatchetTreeCodec()

EncodedKeyPackage = NewType("EncodedKeyPackage", bytes)  # parsed; `mls.key_package` validates it


class _KeyPackageCodec(Codec[EncodedKeyPackage]):
    """Parses a KeyPackage to find its end, and keeps its octets."""

    def read(self, reader: Reader) -> EncodedKeyPackage:
        start = reader.pos
        codec(KeyPackageIn).read(reader)
        return EncodedKeyPackage(reader.data[start : reader.pos])

    def write(self, value: EncodedKeyPackage, out: bytearray) -> None:
        out += value


KEY_PACKAGE: Final[Codec[EncodedKeyPackage]] = _KeyPackageCodec()
KEY_PACKAGES: Final = vector(KEY_PACKAGE, most=MOST_KEY_PACKAGES)  # the body of an upload (http: devices)


# --- KeyPackages (DS draft, "Key Packages") ---------------------------------------------------------------------


@struct
class KeyPackageRequest:
    """Ask a provider for one KeyPackage of one of its users (DS draft, "Key Packages")."""

    user_id: UserId = wire(USER_ID)
    bearer_token: BearerToken = wire(BEARER_TOKEN)
    version: ProtocolVersion = wire(PROTOCOL_VERSION)
    cipher_suite: CipherSuite = wire(CIPHER_SUITE)


@struct
class KeyPackageResponse:
    """The KeyPackage that was handed out; each ordinary KeyPackage is handed out only once."""

    key_package: EncodedKeyPackage = wire(KEY_PACKAGE)


@struct
class KeyPackageBundleRequest:
    """Several requests, answered in one transaction."""

    requests: tuple[KeyPackageRequest, ...] = wire(vector(codec(KeyPackageRequest), most=MOST_BUNDLED))


class KeyPackageStatus(IntEnum):
    """The outcome of one request of a bundle."""

    OK = 0
    REFUSED = 1
    EXHAUSTED = 2


@struct
class KeyPackageResult:
    """The answer to one request of a bundle, in request order."""

    status: KeyPackageStatus = wire(UINT8.of(KeyPackageStatus))
    key_package: EncodedKeyPackage | None = select(
        "status",
        {
            KeyPackageStatus.OK: KEY_PACKAGE,
            KeyPackageStatus.REFUSED: NOTHING,
            KeyPackageStatus.EXHAUSTED: NOTHING,
        },
    )


@struct
class KeyPackageBundleResponse:
    """One result for each request, in order."""

    results: tuple[KeyPackageResult, ...] = wire(vector(codec(KeyPackageResult), most=MOST_BUNDLED))


@struct
class SiblingsRequest:
    """Ask the device's own provider for one KeyPackage of each of the user's other devices."""

    version: ProtocolVersion = wire(PROTOCOL_VERSION)
    cipher_suite: CipherSuite = wire(CIPHER_SUITE)


# --- sending (later revision of the DS draft, "Sending Messages") -----------------------------------------------


@struct
class WelcomeData:
    """A Welcome, and for each of its secrets the provider of the recipient."""

    welcome: MLSMessage = wire(MLS_MESSAGE)
    service_providers: tuple[ProviderId, ...] = wire(vector(PROVIDER_ID, most=MOST_JOINERS))


@struct
class CommitData:
    """Data sent with a commit: the key of the partition that it opens, and what joiners need."""

    next_partition_key: PartitionKey = wire(PARTITION_KEY)
    group_info: MLSMessage | None = wire(optional(MLS_MESSAGE))
    welcome_data: WelcomeData | None = wire(optional(codec(WelcomeData)))


@struct
class SendRequest:
    """A message for one partition; only a commit carries CommitData."""

    message: MLSMessage = wire(MLS_MESSAGE)
    partition_key: PartitionKey = wire(PARTITION_KEY)
    commit_data: CommitData | None = select(
        "message.content_type",
        {
            ContentType.APPLICATION: NOTHING,
            ContentType.PROPOSAL: NOTHING,
            ContentType.COMMIT: codec(CommitData),
        },
    )


@struct
class SendResponse:
    """Where and when a message was sequenced; a repeat gets the same answer."""

    counter: Counter = wire(COUNTER)
    accepted_at: int = wire(STORABLE)  # milliseconds since the epoch
    partition: MaskedPartitionKey = wire(MASKED_PARTITION_KEY)
    detached: int = wire(UINT8)  # 1: no known commit leads to this partition
    earlier_commits: tuple[MaskedPartitionKey, ...] = wire(vector(MASKED_PARTITION_KEY, most=MOST_MESSAGES))


class SendStatus(IntEnum):
    """Whether one message of a batch was accepted."""

    ACCEPTED = 0
    REFUSED = 1


@struct
class SendResult:
    """The answer to one message of a batch: a SendResponse, or the JSON of its problem (RFC 9457)."""

    status: SendStatus = wire(UINT8.of(SendStatus))
    outcome: SendResponse | bytes = select(
        "status", {SendStatus.ACCEPTED: codec(SendResponse), SendStatus.REFUSED: OPAQUE_V}
    )


SEND_REQUESTS: Final = vector(codec(SendRequest), most=MOST_SENDS)  # the body of /ds/v1/send-batch
SEND_RESULTS: Final = vector(codec(SendResult), most=MOST_SENDS)


def encode_send_results(outcomes: Iterable[SendResponse | bytes]) -> bytes:
    """Return `SendResult results<V>` for outcomes that are SendResponses or the JSON of problems."""
    out, write = bytearray(), codec(SendResponse).write
    for outcome in outcomes:
        if isinstance(outcome, SendResponse):
            out.append(SendStatus.ACCEPTED)
            write(outcome, out)
        else:
            out.append(SendStatus.REFUSED)
            out += OPAQUE_V.encode(outcome)
    return OPAQUE_V.encode(bytes(out))


# --- receiving --------------------------------------------------------------------------------------------------


@struct
class ReceiveRequest:
    """Ask for a partition's messages from `counter` on."""

    partition_key: PartitionKey = wire(PARTITION_KEY)
    counter: Counter = wire(COUNTER)


@struct
class CommitHint:
    """Data that a hub delivers with a commit: the partition that it opens and, if there is one, its GroupInfo."""

    next_partition_key: MaskedPartitionKey = wire(MASKED_PARTITION_KEY)
    group_info: MLSMessage | None = wire(optional(MLS_MESSAGE))


@struct
class Message:
    """One sequenced message."""

    message: MLSMessage = wire(MLS_MESSAGE)
    commit: CommitHint | None = select(
        "message.content_type",
        {ContentType.APPLICATION: NOTHING, ContentType.PROPOSAL: NOTHING, ContentType.COMMIT: codec(CommitHint)},
    )


@struct
class Epoch:
    """Messages of one partition, in the order they were sequenced."""

    messages: tuple[Message, ...] = wire(vector(codec(Message), most=MOST_MESSAGES))


@struct
class HintedEpoch:
    """Messages of a partition that the request did not name, from the first message on."""

    masked_partition_key: MaskedPartitionKey = wire(MASKED_PARTITION_KEY)
    epoch: Epoch = wire(codec(Epoch))


@struct
class ReceiveResponse:
    """The messages that were asked for, and hints; each epoch occurs once."""

    epoch: Epoch = wire(codec(Epoch))
    hints: tuple[HintedEpoch, ...] = wire(vector(codec(HintedEpoch), most=MOST_EPOCHS))


def encode_message(body: bytes, next_masked_key: MaskedPartitionKey | None, group_info: bytes | None) -> bytes:
    """Return an encoded `Message`; the stored octets of the MLSMessage are copied, not parsed again."""
    if next_masked_key is None:
        return body
    commit = body + varint.mls(len(next_masked_key)) + next_masked_key
    return commit + b"\0" if group_info is None else commit + b"\1" + group_info


def encode_epoch(messages: Iterable[bytes]) -> bytes:
    """Return an encoded `Epoch` made of encoded `Message`s."""
    return OPAQUE_V.encode(b"".join(messages))


def encode_receive_response(epoch: bytes, hints: Iterable[tuple[MaskedPartitionKey, bytes]]) -> bytes:
    """Return an encoded `ReceiveResponse` made of encoded `Epoch`s."""
    return epoch + OPAQUE_V.encode(b"".join(OPAQUE_V.encode(key) + hinted for key, hinted in hints))


@struct
class PositionsRequest:
    """Ask the device's own provider up to which counters it has these partitions."""

    partition_keys: tuple[PartitionKey, ...] = wire(vector(PARTITION_KEY, most=MOST_POSITIONS))


@struct
class Position:
    """Up to which counter the provider has a partition; if it cannot say, all fields are zero or empty."""

    known: int = wire(UINT8)  # 1: the provider has the partition
    first_counter: Counter = wire(POSITION_COUNTER)  # of the oldest message that is kept; without one, next_counter
    next_counter: Counter = wire(POSITION_COUNTER)
    terminated: int = wire(UINT8)  # 1: the branch was terminated
    successors: tuple[MaskedPartitionKey, ...] = wire(vector(MASKED_PARTITION_KEY, most=MOST_SUCCESSORS))


@struct
class PositionsResponse:
    """One position for each key, in order."""

    positions: tuple[Position, ...] = wire(vector(codec(Position), most=MOST_POSITIONS))


# --- Welcomes and joins -----------------------------------------------------------------------------------------


@struct
class WelcomeInitRequest:
    """Ask a provider which of these KeyPackages it accepts a Welcome for."""

    key_package_refs: tuple[KeyPackageRef, ...] = wire(vector(KEY_PACKAGE_REF, most=MOST_JOINERS))


@struct
class WelcomeInitResponse:
    """The KeyPackages of a WelcomeInitRequest that the provider accepts a Welcome for."""

    accepted: tuple[KeyPackageRef, ...] = wire(vector(KEY_PACKAGE_REF, most=MOST_JOINERS))


@struct
class WelcomeStatusRequest:
    """Ask a hub what became of the Welcomes that lead to a partition."""

    partition_key: PartitionKey = wire(PARTITION_KEY)


class WelcomeState(IntEnum):
    """What became of the Welcome for one KeyPackage (semantics: welcomes-and-leaving)."""

    MISSING = 0
    HELD = 1
    WAITING = 2
    DELIVERED = 3
    REFUSED = 4
    EXPIRED = 5
    CANCELLED = 6


@struct
class WelcomeStatus:
    """What became of the Welcome for one KeyPackage, and why."""

    key_package_ref: KeyPackageRef = wire(KEY_PACKAGE_REF)
    state: WelcomeState = wire(UINT8.of(WelcomeState))
    reason: bytes = wire(opaque(64))  # in ASCII: `not-accepted`, or the name of a problem; empty if there is none


@struct
class WelcomeStatusResponse:
    """The status of each KeyPackage that the Welcomes name or that the public commit adds."""

    statuses: tuple[WelcomeStatus, ...] = wire(vector(codec(WelcomeStatus), most=MOST_STATUSES))


@struct
class ExternalJoinRequest:
    """An external commit; the hub finds its partition (semantics: joining-from-outside)."""

    message: MLSMessage = wire(MLS_MESSAGE)
    commit_data: CommitData = wire(codec(CommitData))


@struct
class GroupInfoRequest:
    """Ask for a group's GroupInfo."""

    group_id: GroupId = wire(GROUP_ID)


@struct
class GroupInfoResponse:
    """A GroupInfo as its sender made it, with the tree that the hub computed if the GroupInfo contains none."""

    group_info: MLSMessage = wire(MLS_MESSAGE)
    ratchet_tree: RatchetTree | None = wire(optional(RATCHET_TREE))


@struct
class GroupInfoBundle:
    """A GroupInfo, and the pending SelfRemove proposals that an external commit must cover."""

    info: GroupInfoResponse = wire(codec(GroupInfoResponse))
    self_removes: tuple[MLSMessage, ...] = wire(vector(MLS_MESSAGE, most=MOST_SELF_REMOVES))


@struct
class ExternalProposalRequest:
    """An external proposal, for the named partition or else for the one whose GroupInfo `group-info` returns."""

    message: MLSMessage = wire(MLS_MESSAGE)
    partition: MaskedPartitionKey | None = wire(optional(MASKED_PARTITION_KEY))


@struct
class CreateGroupRequest:
    """Make this provider the hub of a group."""

    group_id: GroupId = wire(GROUP_ID)
    version: ProtocolVersion = wire(PROTOCOL_VERSION)
    cipher_suite: CipherSuite = wire(CIPHER_SUITE)
    partition_key: PartitionKey = wire(PARTITION_KEY)  # of the first epoch that messages are sent to
    group_info: MLSMessage | None = wire(optional(MLS_MESSAGE))
    ratchet_tree: RatchetTree | None = wire(optional(RATCHET_TREE))
    welcome_data: WelcomeData | None = wire(optional(codec(WelcomeData)))


# --- hub to follower --------------------------------------------------------------------------------------------


@struct
class PushedEpoch:
    """Messages of one partition, with their group, partition and counter."""

    group_id: GroupId = wire(GROUP_ID)
    masked_partition_key: MaskedPartitionKey = wire(MASKED_PARTITION_KEY)
    counter: Counter = wire(COUNTER)  # index of the first message of `epoch`
    opening: GroupInfoResponse | None = wire(optional(codec(GroupInfoResponse)))
    epoch: Epoch = wire(codec(Epoch))


def pushed_epoch_parts(
    group_id: GroupId,
    masked_partition_key: MaskedPartitionKey,
    counter: Counter,
    opening: GroupInfoResponse | None,
    messages: Sequence[bytes],
) -> list[bytes]:
    """Return the parts of an encoded `PushedEpoch`, for the caller to join in one step with the octets around them."""
    head = bytearray(OPAQUE_V.encode(group_id) + OPAQUE_V.encode(masked_partition_key))
    COUNTER.write(counter, head)
    optional(codec(GroupInfoResponse)).write(opening, head)
    head += varint.mls(sum(map(len, messages)))
    return [bytes(head), *messages]


@struct
class PushRequest:
    """Messages of many partitions, which may be of many groups."""

    epochs: tuple[PushedEpoch, ...] = wire(vector(codec(PushedEpoch), most=MOST_EPOCHS))


def encode_push_request(epochs: Iterable[Sequence[bytes]]) -> bytes:
    """Return the encoded `PushRequest` that has these epochs, each given as the parts of its encoding."""
    parts = [part for epoch in epochs for part in epoch]
    return b"".join([varint.mls(sum(map(len, parts))), *parts])


@struct
class PushResponse:
    """For each epoch the next counter to push, or `NO_LONGER_FOLLOWED`."""

    next_counters: tuple[Counter, ...] = wire(vector(NEXT_COUNTER, most=MOST_EPOCHS))


@struct
class ResumeRequest:
    """Ask the hub to push a partition again, from `counter` on."""

    group_id: GroupId = wire(GROUP_ID)
    masked_partition_key: MaskedPartitionKey = wire(MASKED_PARTITION_KEY)
    counter: Counter = wire(COUNTER)


# --- from a restored hub to its followers ---------------------------------------------------------------------------


@struct
class HeldGroupsRequest:
    """Ask a provider which groups of the asking hub it knows."""

    after: GroupId = wire(GROUP_ID)  # groups are in byte order of their ids; empty: from the first


@struct
class HeldGroupsResponse:
    """A page of group ids; ask for the next page after the last of them."""

    group_ids: tuple[GroupId, ...] = wire(vector(GROUP_ID, most=MOST_GROUP_IDS))


@struct
class KnownPartition:
    """A partition that the hub still knows, and the next counter that it would give there."""

    masked_partition_key: MaskedPartitionKey = wire(MASKED_PARTITION_KEY)
    counter: Counter = wire(COUNTER)


@struct
class RecoverRequest:
    """Ask a follower for the messages of a group that the hub no longer has."""

    group_id: GroupId = wire(GROUP_ID)
    known: tuple[KnownPartition, ...] = wire(vector(codec(KnownPartition), most=MOST_KNOWN_PARTITIONS))


@struct
class RecoverResponse:
    """A page of the messages that were asked for, as they were pushed. A page without epochs is the last."""

    version: ProtocolVersion = wire(PROTOCOL_VERSION)
    cipher_suite: CipherSuite = wire(CIPHER_SUITE)
    epochs: tuple[PushedEpoch, ...] = wire(vector(codec(PushedEpoch), most=MOST_EPOCHS))


# --- streams to devices -----------------------------------------------------------------------------------------


@struct
class InboxWelcome:
    """A Welcome that the device has not acknowledged, and the hub of its group."""

    welcome_id: int = wire(WELCOME_ID)
    hub: ProviderId = wire(PROVIDER_ID)
    welcome: MLSMessage = wire(MLS_MESSAGE)


INBOX_WELCOMES: Final = vector(codec(InboxWelcome), most=MOST_WELCOMES)


FRAME_ITEMS: Final = 4096  # keys, positions or Welcomes in one frame of a device


class FrameType(IntEnum):
    """The type of a frame."""

    PRESENT = 1
    WITHDRAW = 2
    SEND = 3
    ACK = 4
    RESULT = 5
    MESSAGES = 6
    WELCOME = 7
    STOCK = 8
    PROBLEM = 9
    HEARTBEAT = 10
    CAUGHT_UP = 11


@struct
class Present:
    """A device's positions in partitions of one hub: the device gets the messages from these positions on."""

    hub: ProviderId = wire(PROVIDER_ID)
    positions: tuple[ReceiveRequest, ...] = wire(vector(codec(ReceiveRequest), most=FRAME_ITEMS))


@struct
class Withdraw:
    """The keys of partitions whose messages a device no longer wants."""

    keys: tuple[PartitionKey, ...] = wire(vector(PARTITION_KEY, most=FRAME_ITEMS))


@struct
class Send:
    """Messages to one hub, in order."""

    hub: ProviderId = wire(PROVIDER_ID)
    requests: tuple[SendRequest, ...] = wire(SEND_REQUESTS)


@struct
class Ack:
    """Welcomes that the device has stored."""

    welcome_ids: tuple[int, ...] = wire(vector(WELCOME_ID, most=FRAME_ITEMS))


@struct
class Result:
    """The answers to the messages of a Send, in their order."""

    results: tuple[SendResult, ...] = wire(SEND_RESULTS)


@struct
class Messages:
    """Messages of a partition whose key the device presented."""

    hub: ProviderId = wire(PROVIDER_ID)
    epoch: PushedEpoch = wire(codec(PushedEpoch))


@struct
class Stock:
    """How many ordinary KeyPackages of the device are left in stock."""

    version: ProtocolVersion = wire(PROTOCOL_VERSION)
    cipher_suite: CipherSuite = wire(CIPHER_SUITE)
    left: int = wire(UINT32)


@struct
class Heartbeat:
    """A device asks whether the stream still works; the server answers with a Heartbeat."""


@struct
class CaughtUp:
    """A device asks to be told when it has everything; the answer names hubs whose messages may be incomplete."""

    missing: tuple[ProviderId, ...] = wire(vector(PROVIDER_ID, most=MOST_MISSING))


def encode_messages_frame(hub: ProviderId, pushed_epoch: Sequence[bytes]) -> bytes:
    """Return an encoded `Frame` of type `messages` made of the parts of a `PushedEpoch`."""
    return b"".join([_MESSAGES_HEAD, OPAQUE_V.encode(hub.encode()), *pushed_epoch])


_MESSAGES_HEAD: Final = bytes(4) + bytes([FrameType.MESSAGES])

FrameBody = Present | Withdraw | Send | Ack | Result | Messages | InboxWelcome | Stock | Heartbeat | CaughtUp | bytes


@struct
class Frame:
    """One WebSocket binary message; the device chooses `id`, and the server uses 0 in frames that it starts."""

    id: int = wire(UINT32)
    type: FrameType = wire(UINT8.of(FrameType))
    body: FrameBody = select(
        "type",
        {
            FrameType.PRESENT: codec(Present),
            FrameType.WITHDRAW: codec(Withdraw),
            FrameType.SEND: codec(Send),
            FrameType.ACK: codec(Ack),
            FrameType.RESULT: codec(Result),
            FrameType.MESSAGES: codec(Messages),
            FrameType.WELCOME: codec(InboxWelcome),
            FrameType.STOCK: codec(Stock),
            FrameType.PROBLEM: OPAQUE_V,  # the JSON of RFC 9457
            FrameType.HEARTBEAT: codec(Heartbeat),
            FrameType.CAUGHT_UP: codec(CaughtUp),
        },
    )
