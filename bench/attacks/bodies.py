"""The worst bodies that we can construct: those that cost the server most for each octet, by structure.

Each function returns bodies by name. A body is a function of a number, so that no request repeats an earlier one unless
the repeat is what is measured.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import attrs

from bench.attacks.groups import MEMBERS, Groups, KnownGroup, crowd_of, key
from mimids.mls.code_points import (
    AppDataUpdateOperation,
    ComponentId,
    ContentType,
    LeafNodeSource,
    SenderType,
    WireFormat,
)
from mimids.mls.components import ParticipantListUpdate, UserRolePair
from mimids.mls.framing import MLSMessage, PrivateMessage, Sender
from mimids.mls.leaf_node import Lifetime
from mimids.mls.proposals import Add, AppDataUpdate, Commit, Remove
from mimids.mls.suites import SUITES
from mimids.wire import varint
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, CipherSuite, Counter, GroupId, PartitionKey, UserId
from mimids.wire.messages import (
    SEND_REQUESTS,
    CommitData,
    CreateGroupRequest,
    Epoch,
    ExternalJoinRequest,
    ExternalProposalRequest,
    GroupInfoRequest,
    HeldGroupsRequest,
    Message,
    PositionsRequest,
    PushedEpoch,
    PushRequest,
    RatchetTree,
    ReceiveRequest,
    ResumeRequest,
    SendRequest,
    WelcomeStatusRequest,
)
from tests.support.signing import Client, Room, by_reference, by_value, fresh_key, proposal, ref_of

Body = Callable[[int], bytes]
Bodies = Mapping[str, Body]

SUITE: Final = CipherSuite(1)
ELLIPTIC: Final = (1, 2, 4, 5, 7)  # a suite for each signature scheme


def vector(items: bytes) -> bytes:
    return varint.mls(len(items)) + items


def message(group: bytes, kind: ContentType = ContentType.APPLICATION, *, epoch: int = 0) -> MLSMessage:
    """Return the shortest private message that is not refused; it differs from all others."""
    private = PrivateMessage(GroupId(group), epoch, kind, b"", secrets.token_bytes(28), bytes(20))
    return MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, private)


def creations() -> Bodies:
    """GroupInfos with trees whose every signature is right, junk trees, and the shortest creation."""

    def of_suite(suite: int, members: int = MEMBERS, **changed: Any) -> Body:
        def make(number: int) -> bytes:
            room = attrs.evolve(crowd_of(suite, members), group_id=GroupId(secrets.token_bytes(8)))
            info = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info(**changed))
            return encode(CreateGroupRequest(room.group_id, MLS10, room.suite.code, key(), info, None, None))

        return make

    def with_tree(tree: bytes) -> Body:
        def make(number: int) -> bytes:
            room = attrs.evolve(Room.create(Client.of(1)), group_id=GroupId(secrets.token_bytes(8)))
            info = MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info(tree=False))
            return encode(CreateGroupRequest(room.group_id, MLS10, SUITE, key(), info, RatchetTree(vector(tree)), None))

        return make

    def without_state(number: int) -> bytes:
        return encode(CreateGroupRequest(GroupId(secrets.token_bytes(8)), MLS10, SUITE, key(), None, None, None))

    leaf = b"\1\1" + encode(Client.of(1).leaf(LeafNodeSource.KEY_PACKAGE))
    return {
        **{f"{MEMBERS} members, {SUITES[suite].scheme}": of_suite(suite) for suite in ELLIPTIC},
        "100,000 blank nodes": with_tree(leaf + bytes(100_000)),
        "1,000 times one leaf": with_tree(leaf + (b"\0" + leaf) * 999),
        "2,000 parents of nothing": with_tree(leaf + b"\1\2\0\0\0" * 2_000),
        "unmerged leaves": with_tree(leaf + b"\1\2" + vector(bytes(32)) + b"\0" + vector(bytes(4) * 20_000)),
        "without a state": without_state,
        "10 members": of_suite(5, 10),
    }


def key_packages() -> Bodies:
    def signed(suite: int, *, junk: bool = False) -> Body:
        client, now = Client.of(1, suite=suite), int(time.time())
        leaf = client.leaf(LeafNodeSource.KEY_PACKAGE, origin=Lifetime(now - 3600, now + 86_400))

        def make(number: int) -> bytes:
            made = [client.key_package(leaf, init_key=fresh_key(client.suite)) for _ in range(20)]
            made = (
                [attrs.evolve(cast("Any", each), signature=secrets.token_bytes(64)) for each in made] if junk else made
            )
            return vector(b"".join(map(encode, made)))

        return make

    one = encode(Client.of(1).key_package())
    return {
        **{f"signed, {SUITES[suite].scheme}": signed(suite) for suite in ELLIPTIC},
        "junk signatures, P-521": signed(5, junk=True),
        "1,000 times one": lambda number: vector(one * 1_000),
    }


# Longer than 40 lines: one entry for each kind of message.
def sends(group: KnownGroup) -> Mapping[str, Callable[[int], SendRequest]]:
    """Single messages for the known group and for unknown ones."""
    room = group.room
    member = Sender(SenderType.MEMBER, 0)
    signer = room.clients[0].signer
    others = [by_value(Remove(index)) for index in range(1, MEMBERS)]
    client = Client.of(201)
    adds = [by_value(Add(client.key_package())) for _ in range(50)]
    users = (UserId(b"mimi://a.example/u/%d" % number) for number in range(2_000))
    updates = (encode(ParticipantListUpdate((), (), (UserRolePair(user, 2),))) for user in users)
    participants = [
        by_value(AppDataUpdate(ComponentId.PARTICIPANT_LIST, AppDataUpdateOperation.UPDATE, each)) for each in updates
    ]
    known_ref = by_reference(ref_of(room.propose(0, b"unsent"), room.suite))

    def of(content: Callable[[], MLSMessage], data: Callable[[], CommitData] | None = None) -> Any:
        return lambda number: SendRequest(content(), group.key, data() if data else None)

    def next_key() -> CommitData:
        return CommitData(key(), None, None)

    def committing(*items: Any, junk: bool = False) -> Any:
        def content() -> MLSMessage:
            changed = {"authenticated_data": secrets.token_bytes(8)}
            made = room.send(member, signer, Commit(tuple(items), None), tag=bytes(32), **changed)
            if junk:
                made = attrs.evolve(made, message=attrs.evolve(cast("Any", made.message), signature=bytes(64)))
            return made

        return of(content, next_key)

    def removing(count: int, **changes: Any) -> Any:
        """Return a commit that is right but for the parent hash, which is checked last."""

        def content() -> MLSMessage:
            made = room.commit(0, *others[:count])[0].message
            found = cast("Any", made).content.content
            path = attrs.evolve(found.path, nodes=found.path.nodes[:-1]) if changes else found.path
            changed = {"authenticated_data": secrets.token_bytes(8)}
            return room.send(member, signer, Commit(found.proposals, path), tag=bytes(32), **changed)

        return of(content, next_key)

    return {
        "message, unknown partition": lambda number: SendRequest(message(room.group_id), key(), None),
        "message": of(lambda: message(room.group_id, epoch=room.epoch)),
        "proposal": of(lambda: room.propose(0, b"custom", authenticated_data=secrets.token_bytes(8))),
        "proposal, junk signature": junk_proposal(group),
        "add": of(lambda: room.propose(0, Add(client.key_package()), authenticated_data=secrets.token_bytes(8))),
        "commit, 1,000 references": committing(*[by_reference(secrets.token_bytes(1)) for _ in range(1_000)]),  # type: ignore[arg-type]
        "commit, junk signature": committing(*[known_ref] * 1_000, junk=True),
        "commit, 199 removes without a path": committing(*others),
        "commit, 190 removes": removing(190),
        "commit, 190 removes, path too short": removing(190, short=True),
        "commit, 10 removes, path too short": removing(10, short=True),
        "commit, 50 adds of one client": committing(*adds),
        "commit, 2,000 new participants": committing(*participants),
        "commit of a group info": of(
            lambda: message(room.group_id, ContentType.COMMIT, epoch=room.epoch),
            lambda: CommitData(key(), MLSMessage(MLS10, WireFormat.GROUP_INFO, room.info()), None),
        ),
    }


def junk_proposal(group: KnownGroup) -> Callable[[int], SendRequest]:
    """Return proposals whose signature fits in no branch; the signature itself is well-formed."""
    room, sender = group.room, Sender(SenderType.MEMBER, 0)
    signer = Client.of(9, suite=room.suite.code).signer

    def make(number: int) -> SendRequest:
        changed = {"authenticated_data": secrets.token_bytes(8)}
        return SendRequest(room.send(sender, signer, proposal(b"custom"), **changed), group.key, None)

    return make


def batches(group: KnownGroup, branched: KnownGroup) -> Bodies:
    def repeated(one: Callable[[int], SendRequest], count: int) -> Body:
        return lambda number: SEND_REQUESTS.encode(tuple(one(number) for _ in range(count)))

    def copies(one: Callable[[int], SendRequest], count: int) -> Body:
        return lambda number: SEND_REQUESTS.encode((one(number),) * count)

    single = sends(group)
    return {
        "1,024 messages, unknown partitions": repeated(single["message, unknown partition"], 1024),
        "1,024 messages": repeated(single["message"], 1024),
        "1,024 copies of a message": copies(single["message"], 1024),
        "10,000 copies of a message": copies(single["message"], 10_000),
        "100 proposals": repeated(single["proposal"], 100),
        "1,024 proposals, junk signatures": repeated(single["proposal, junk signature"], 1024),
        "1,024 copies of a proposal": copies(single["proposal"], 1024),
        "100 commits with 10 removes, path too short": repeated(single["commit, 10 removes, path too short"], 100),
        "100 proposals, junk signatures, 16 branches": repeated(junk_proposal(branched), 100),
        "30 copies of a commit with 190 removes": copies(single["commit, 190 removes, path too short"], 30),
    }


def joins(groups: Groups) -> Bodies:
    def join(group: KnownGroup, *, junk: bool) -> Body:
        stranger = Client.of(202, suite=group.room.suite.code)

        def make(number: int) -> bytes:
            made = group.room.commit(stranger)[0]
            content = cast("Any", made.message)
            changed = attrs.evolve(content, signature=secrets.token_bytes(64)) if junk else content
            return encode(ExternalJoinRequest(attrs.evolve(made, message=changed), CommitData(key(), None, None)))

        return make

    return {
        "signed, without an ExternalInit": join(groups.known, junk=False),
        "junk signature": join(groups.known, junk=True),
        "junk signature, 16 branches": join(groups.branched, junk=True),
    }


def proposes(groups: Groups) -> Bodies:
    def propose(signer: Client, stranger: Client, group: KnownGroup, group_id: GroupId | None = None) -> Body:
        room = group.room

        def make(number: int) -> bytes:
            made = room.propose(
                Sender(SenderType.NEW_MEMBER_PROPOSAL, None),
                Add(stranger.key_package()),
                by=signer.signer,
                group_id=group_id or room.group_id,
            )
            return encode(ExternalProposalRequest(made, None))

        return make

    stranger = Client.of(203)
    return {
        "signed": propose(stranger, stranger, groups.known),
        "junk signature": propose(Client.of(9), stranger, groups.known),
        "unknown group": propose(stranger, stranger, groups.known, GroupId(b"unknown")),
        "junk signature, P-521": propose(Client.of(9, suite=5), Client.of(203, suite=5), groups.branched),
    }


def group_infos(groups: Sequence[KnownGroup]) -> Bodies:
    names = ("many members", "sparse tree")
    known = {
        name: lambda number, group=group: encode(GroupInfoRequest(group.room.group_id))
        for name, group in zip(names, groups, strict=True)
    }
    return {**known, "unknown group": lambda number: encode(GroupInfoRequest(GroupId(secrets.token_bytes(4))))}


def receives(groups: Groups) -> Bodies:
    return {
        "unknown partition": lambda number: encode(ReceiveRequest(key(), Counter(0))),
        "a commit's branches": lambda number: encode(ReceiveRequest(groups.branched.key, Counter(0))),
        "4 MiB of small messages": lambda number: encode(ReceiveRequest(groups.long.key, Counter(0))),
        "no messages": lambda number: encode(ReceiveRequest(groups.long.key, Counter(1 << 30))),
    }


def positions(groups: Groups) -> Bodies:
    def asking(count: int, *known: PartitionKey) -> Body:
        return lambda number: encode(PositionsRequest((*known, *(key() for _ in range(count)))))

    return {
        "256 unknown partitions": asking(256),
        "one partition 256 times": asking(0, *(groups.branched.key,) * 256),
        "one partition": asking(0, groups.branched.key),
    }


def welcome_statuses(groups: Groups) -> Bodies:
    return {
        "a commit's partition": lambda number: encode(WelcomeStatusRequest(groups.branched.key)),
        "unknown partition": lambda number: encode(WelcomeStatusRequest(key())),
    }


def pushes() -> Bodies:
    """Epochs of groups that nobody here follows, and the smallest items that decode."""

    def epoch(group: bytes, messages: tuple[Message, ...] = (), mask: bytes = b"", counter: int = 0) -> PushedEpoch:
        masked = mask or secrets.token_bytes(32)
        return PushedEpoch(GroupId(group), cast("Any", masked), Counter(counter), None, Epoch(messages))

    def many(number: int) -> bytes:
        return encode(PushRequest(tuple(epoch(b"g") for _ in range(1024))))

    def with_messages(count: int) -> Body:
        def make(number: int) -> bytes:
            return encode(PushRequest(tuple(epoch(b"g", (Message(message(b"g"), None),)) for _ in range(count))))

        return make

    def long_epoch(number: int) -> bytes:
        found = tuple(Message(message(b"g"), None) for _ in range(10_000))
        return encode(PushRequest((epoch(b"g", found),)))

    return {
        "1,024 empty epochs": many,
        "1,024 epochs of one message": with_messages(1024),
        "one epoch": with_messages(1),
        "10,000 messages of one epoch": long_epoch,
        "1,024 groups": lambda number: encode(
            PushRequest(tuple(epoch(secrets.token_bytes(8), (Message(message(b"g"), None),)) for _ in range(1024)))
        ),
    }


def recoveries(group: KnownGroup) -> Mapping[str, Bodies]:
    def known(count: int, group_id: bytes = b"g") -> Body:
        items = b"".join(vector(secrets.token_bytes(32)) + bytes(4) for _ in range(count))
        return lambda number: vector(group_id) + vector(items)

    def resume(number: int) -> bytes:
        return encode(ResumeRequest(group.room.group_id, cast("Any", secrets.token_bytes(32)), Counter(0)))

    return {
        "resume": {"unknown partition": resume},
        "recover": {"20,000 partitions": known(20_000), "no partition": known(0)},
        "recover-groups": {"none": lambda number: encode(HeldGroupsRequest(GroupId(secrets.token_bytes(8))))},
    }


def welcome_inits() -> Bodies:
    return {
        "4,096 references": lambda number: vector(b"".join(vector(secrets.token_bytes(16)) for _ in range(4096))),
        "4,096 empty references": lambda number: vector(bytes(4096)),
        "one reference": lambda number: vector(vector(secrets.token_bytes(32))),
    }


def welcomes() -> Bodies:
    head = MLS10.to_bytes(2, "big") + WireFormat.WELCOME.to_bytes(2, "big") + SUITE.to_bytes(2, "big")

    def of(count: int, octets: int) -> Body:
        def make(number: int) -> bytes:
            joiners = b"".join(vector(secrets.token_bytes(octets)) + vector(b"") + vector(b"") for _ in range(count))
            return head + vector(joiners) + vector(b"")

        return make

    return {"4,096 joiners": of(4096, 8), "20,000 joiners": of(20_000, 1), "one joiner": of(1, 32)}
