"""Plays: messages of one group, signed by its members, that are checked and applied one after the other.

An input says who sends what; the play makes a message of it, with signatures, hashes and ciphertext counts that fit,
except for what `Broken` names. So mutations get past the signatures. `tests.support.signing.Room`, a second and simpler
implementation of group changes, says what state a valid commit must lead to.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any, Final

import attrs

from fuzz.signers import SEEDS, signed_key_package, signed_leaf, signer_of, with_fields
from fuzz.stages import begin_keys, clients, room_of, stages
from mimids.mls.code_points import ProposalOrRefType, SenderType
from mimids.mls.framing import MLS_MESSAGE, MLSMessage, PublicMessage, Sender
from mimids.mls.group_info import GroupInfo
from mimids.mls.knowledge import Claimed, Derived, Knowledge, NotKnown, judge, next_knowledge
from mimids.mls.leaf_node import LeafNode
from mimids.mls.proposals import Add, AppDataUpdate, Proposal, ProposalOrRef, ProposalRef, Update, UpdatePath
from mimids.mls.public_group import PublicGroup, Valid, Verdict
from mimids.mls.rules.checks import check, covered_proposals, record, signature_fits
from mimids.mls.rules.proposal_list import Covered
from mimids.mls.rules.verdict import Invalid, RuleError
from mimids.policy.rules import Case, refusals
from mimids.values import Device, DeviceRow, Follower
from mimids.wire.codec import UINT8, UINT16, optional, vector
from mimids.wire.declare import codec, struct, wire
from mimids.wire.ids import GroupId, ProviderId, UserId
from tests.support.public_groups import OUTSIDER, snapshot
from tests.support.signing import Client, Room, by_reference, public, ref_of

STEPS: Final = 6
ITEMS: Final = 8


class Kind(IntEnum):
    """Who sends what."""

    PROPOSAL = 0
    COMMIT = 1
    JOIN = 2  # an external commit
    OUTSIDE = 3  # a proposal of an external sender
    NEW_MEMBER = 4  # a proposal to add oneself


class Broken(IntFlag):
    """What a step does not make right."""

    EPOCH = 1
    GROUP = 2
    LEAF_SIGNATURES = 4
    PACKAGE_SIGNATURES = 8
    SIGNATURE = 16
    TAGS = 32
    PATH_NODES = 64
    PATH_LEAF = 128
    INFO = 256  # a GroupInfo comes with the commit, and is not that of the state after it
    KEYS = 512  # leaves keep keys that are not ours
    TREE = 1024  # the GroupInfo has no ratchet tree
    CREDENTIAL = 2048  # a new leaf does not keep the credential of the one that it replaces


@struct
class Step:
    """One message."""

    kind: Kind = wire(UINT8.of(Kind))
    sender: int = wire(UINT8)  # a leaf index, an index of external senders, or the seed of a new client
    broken: int = wire(UINT16)  # of `Broken`
    earlier: tuple[int, ...] = wire(vector(UINT8, most=ITEMS))  # proposals of this epoch that a commit covers
    proposals: tuple[Proposal, ...] = wire(vector(codec(Proposal), most=ITEMS))
    path: UpdatePath | None = wire(optional(codec(UpdatePath)))


@struct
class Play:
    """A group to begin with, and the messages."""

    stage: int = wire(UINT8)
    steps: tuple[Step, ...] = wire(vector(codec(Step), most=STEPS))


_USER: Final = UserId(b"mimi://a.example/u/user2")
_SENDERS: Final = (Device(ProviderId("a.example"), _USER, DeviceRow(1), "1"), Follower(ProviderId("b.example")))
_OUTSIDE: Final = (Client.of(71), OUTSIDER)  # as in tests.support.public_groups.SENDERS


@attrs.define
class _Stage:
    """The group between two steps, and the proposals of its epoch."""

    group: PublicGroup
    room: Room
    sent: list[MLSMessage] = attrs.field(factory=list)

    def perform(self, step: Step) -> Verdict | None:
        """Check a step's message and go on to the state after it; None if nobody can send the message."""
        made = self._message(step)
        if made is None:
            return None
        message = MLS_MESSAGE.decode(_damaged(made[0], step.broken).encoded)
        verdict = check(self.group, message)
        self._watch(message, verdict)
        if isinstance(verdict, Valid) and verdict.next is not None:
            self._advance(step, message, verdict.next, made[1])
        elif made[1] is None:
            self.sent.append(message)
            self.group = record(self.group, message, verdict)
        return verdict

    def _watch(self, message: MLSMessage, verdict: Verdict) -> None:
        """Check what must hold of any verdict: the state is unchanged, and less knowledge refuses no more."""
        group = self.group
        if isinstance(verdict, Valid):
            assert isinstance(message.message, PublicMessage)
            if message.message.content.sender.sender_type in (SenderType.MEMBER, SenderType.NEW_MEMBER_COMMIT):
                assert signature_fits(group, message)
        for before in (NotKnown(group.epoch, group.group_id, group.suite), NotKnown(), Claimed(group)):
            found = judge(before, message)
            assert not (isinstance(found.verdict, Invalid) and isinstance(verdict, Valid)), found.verdict
            str(found.verdict)
        case = Case(message, Derived(group), covered=covered_proposals(group, message))
        for sender in _SENDERS:
            list(refusals(case, sender))

    def _advance(self, step: Step, message: MLSMessage, following: PublicGroup, after: Room | None) -> None:
        """Go on to the state that a commit leads to, after a comparison with the room after it."""
        assert after is not None
        covered = [each.proposal.body for each in covered_proposals(self.group, message) if isinstance(each, Covered)]
        exact = not step.broken & (Broken.PATH_NODES | Broken.PATH_LEAF)
        alike = exact and not any(isinstance(body, AppDataUpdate) for body in covered)  # a room knows no components
        assert not exact or following.tree.encode() == after.tree.encode()
        assert not alike or following.context == after.context()
        if after.clients:
            self._claim(step, message, after, alike=alike)
        self.group = attrs.evolve(following, reinitialized=False)
        self.room, self.sent = room_of(self.group), []

    def _claim(self, step: Step, message: MLSMessage, after: Room, *, alike: bool) -> None:
        """Send the GroupInfo of the state after a commit with it."""
        info = after.info(signer=min(after.clients), tree=not step.broken & Broken.TREE)
        if step.broken & Broken.INFO:
            info = with_fields(info, confirmation_tag=info.confirmation_tag[::-1])
        followed = _knowledge(Derived(self.group), message, info)
        assert not alike or step.broken & Broken.INFO or isinstance(followed, Derived)
        _knowledge(NotKnown(self.group.epoch, self.group.group_id, self.group.suite), message, info)

    def _message(self, step: Step) -> tuple[MLSMessage, Room | None] | None:
        proposals = tuple(self._adopted(each, step) for each in step.proposals)
        if step.kind in (Kind.COMMIT, Kind.JOIN):
            return self._commit(step, proposals)
        if not proposals:
            return None
        member = self.room.clients.get(step.sender)
        if step.kind is Kind.OUTSIDE:
            sender, by = Sender(SenderType.EXTERNAL, step.sender), _OUTSIDE[step.sender % 2].signer
        elif step.kind is Kind.NEW_MEMBER:
            body = proposals[0].body
            key = body.key_package.leaf_node.signature_key if isinstance(body, Add) else b""
            sender, by = (
                Sender(SenderType.NEW_MEMBER_PROPOSAL, None),
                signer_of(self.room.suite, key) or _OUTSIDE[0].signer,
            )
        elif member is not None:
            sender, by = Sender(SenderType.MEMBER, step.sender), member.signer
        else:
            return None
        if by.suite.scheme != self.room.suite.scheme:
            return None
        return self.room.propose(sender, proposals[0], by=by), None

    def _commit(self, step: Step, proposals: tuple[Proposal, ...]) -> tuple[MLSMessage, Room] | None:
        items = [self._reference(number) for number in step.earlier]
        items += [ProposalOrRef(ProposalOrRefType.PROPOSAL, each) for each in proposals]
        ours = clients(self.room.suite)
        committer = step.sender if step.kind is Kind.COMMIT else ours[SEEDS[step.sender % len(SEEDS)]]
        given = step.path

        def change(path: UpdatePath) -> UpdatePath:
            if given is not None and step.broken & Broken.PATH_NODES:
                path = with_fields(path, nodes=given.nodes)
            if given is not None and step.broken & Broken.PATH_LEAF:
                path = with_fields(path, leaf_node=self._adopted_leaf(given.leaf_node, step))
            return path

        leaf = {}
        if given is not None:
            successor = self._successor(given.leaf_node, step)
            leaf = {name: getattr(successor, name) for name in ("credential", "capabilities", "extensions")}
        try:
            return self.room.commit(committer, *items, path=given is not None, change_leaf=leaf, change_path=change)
        except (AssertionError, IndexError, KeyError):  # a room cannot make every commit that breaks a rule
            return None

    def _reference(self, number: int) -> ProposalOrRef:
        if number < len(self.sent):
            return by_reference(ref_of(self.sent[number], self.room.suite))
        return by_reference(ProposalRef(bytes([number]) * self.room.suite.hash_size))

    def _adopted(self, proposal: Proposal, step: Step) -> Proposal:
        """Return a proposal whose leaf or KeyPackage has a key of ours, and is signed with it."""
        body = proposal.body
        if isinstance(body, Update):
            return with_fields(proposal, body=Update(self._adopted_leaf(body.leaf_node, step)))
        if not isinstance(body, Add):
            return proposal
        package = with_fields(body.key_package, leaf_node=self._with_our_key(body.key_package.leaf_node, step))
        signs = not step.broken & Broken.PACKAGE_SIGNATURES
        return with_fields(proposal, body=Add(signed_key_package(package) if signs else package))

    def _adopted_leaf(self, leaf: LeafNode, step: Step) -> LeafNode:
        leaf = self._successor(self._with_our_key(leaf, step), step)
        if step.broken & Broken.LEAF_SIGNATURES:
            return leaf
        return signed_leaf(self.room.suite, leaf, self.room.group_id, step.sender)

    def _successor(self, leaf: LeafNode, step: Step) -> LeafNode:
        """Return a leaf with the credential of the sender's current one."""
        before = self.group.tree.leaf(step.sender)
        if before is None or step.kind is Kind.JOIN or step.broken & Broken.CREDENTIAL:
            return leaf
        return with_fields(leaf, credential=before.credential)

    def _with_our_key(self, leaf: LeafNode, step: Step) -> LeafNode:
        if step.broken & Broken.KEYS or signer_of(self.room.suite, leaf.signature_key) is not None:
            return leaf
        member = self.room.clients.get(step.sender) if step.kind is Kind.PROPOSAL else None
        seed = SEEDS[sum(leaf.signature_key) % len(SEEDS)]
        return with_fields(leaf, signature_key=(member or clients(self.room.suite)[seed]).signer.public)


def _knowledge(before: Knowledge, message: MLSMessage, info: GroupInfo) -> Knowledge | None:
    """Return what is known after a commit and the GroupInfo that comes with it; None if they are refused."""
    try:
        return next_knowledge(judge(before, message), message, info)
    except RuleError as error:
        str(error.invalid)
        return None


def _damaged(message: MLSMessage, broken: int) -> MLSMessage:
    """Return a message with what `broken` names made wrong in its frame."""
    framed: Any = message.message
    if broken & Broken.EPOCH:
        framed = with_fields(framed, content=with_fields(framed.content, epoch=framed.epoch ^ 1))
    if broken & Broken.GROUP:
        framed = with_fields(framed, content=with_fields(framed.content, group_id=GroupId(b"another")))
    if broken & Broken.SIGNATURE:
        framed = with_fields(framed, signature=framed.signature[::-1])
    if broken & Broken.TAGS and framed.membership_tag is not None:
        framed = with_fields(framed, membership_tag=framed.membership_tag[1:])
    return public(framed)


def perform(play: Play) -> list[Verdict]:
    """Play it and return the verdicts; raise `AssertionError` where a verdict or a state is not what it must be."""
    begin_keys()
    group = stages()[play.stage % len(stages())]
    before = snapshot(group)
    stage = _Stage(group, room_of(group))
    verdicts = [verdict for verdict in map(stage.perform, play.steps) if verdict is not None]
    assert snapshot(group) == before
    return verdicts
