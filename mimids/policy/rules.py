"""All policy rules in one table; to add a rule, change only this file (DS draft section 4; semantics: policy).

A rule is a small function from a `Case` to the facts that violate it, or None. A rule that lacks a fact returns None,
and no rule can force acceptance. Rules are independent: their order decides only which rule a refusal names.

There are three kinds of rules. A `MessageRule` gets the message. A `SenderRule` also gets the sender, a `Device` that
this provider authenticated. Sender rules do not apply to users of other providers, because only their provider is known
(`Follower`). A `ReaderRule` decides which messages are withheld from one of our devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Final

import attrs

from mimids.mls.code_points import ContentType, SenderType
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.mls.identity import user_of
from mimids.mls.knowledge import Derived, Knowledge, NotKnown, state_of
from mimids.mls.proposals import Add, Commit, Proposal, ProposalRef, Remove, SelfRemove
from mimids.mls.rules.proposal_list import Covered
from mimids.policy.room import Room, room_after, room_of
from mimids.policy.verdict import Certainty, Fact, Found, Refusal
from mimids.values import Device, Sender
from mimids.wire.ids import UserId

_DS: Final = "draft-mcmillion-mimi-delivery-service section 4"
_ROLES: Final = "draft-ietf-mimi-room-policy-03 section 8"
_CAPABILITIES: Final = "draft-ietf-mimi-room-policy-03 section 10.2"


@attrs.frozen
class Terms:
    """The hub operator's decisions on the users of a case: users banned from all groups, users muted in this group."""

    banned: frozenset[UserId] = frozenset()
    muted: frozenset[UserId] = frozenset()


NO_TERMS: Final = Terms()


@attrs.frozen
class Case:
    """A message, and what this server knows of the message's group; it does not depend on the sender.

    `here` is the state of the message's partition, `ahead` the state of the partition that a commit leads to. `covered`
    has the proposals that a public commit covers, or a reference for a proposal that was not seen.
    """

    message: MLSMessage
    here: Knowledge
    ahead: Knowledge | None = None
    covered: tuple[Covered | ProposalRef, ...] = ()
    terms: Terms = NO_TERMS

    @property
    def is_application(self) -> bool:
        """Return whether the message is an application message; even a PrivateMessage shows this."""
        return self.message.content_type is ContentType.APPLICATION

    @cached_property
    def added(self) -> tuple[UserId, ...]:
        """Return the users whom a public commit adds, by value or by reference, if their credentials are readable."""
        bodies = (each.proposal.body for each in self.covered if isinstance(each, Covered))
        users = (user_of(body.key_package.leaf_node.credential) for body in bodies if isinstance(body, Add))
        return tuple(user for user in users if user is not None)

    @cached_property
    def joining(self) -> UserId | None:
        """Return the user who joins by this external commit; None for other messages, or if the user is unknown."""
        public = self.message.message
        if not isinstance(public, PublicMessage) or not isinstance(public.content.content, Commit):
            return None
        path = public.content.content.path
        if path is None or public.content.sender.sender_type is not SenderType.NEW_MEMBER_COMMIT:
            return None
        return user_of(path.leaf_node.credential)

    def room_here(self) -> tuple[Room, Certainty] | None:
        """Return the room policy in the message's partition, None if the state is unknown."""
        group = state_of(self.here)
        return None if group is None else (room_of(group), _certainty(self.here))

    def room_ahead(self) -> tuple[Room, Certainty] | None:
        """Return the room policy after this commit, None if an unseen proposal could change it."""
        if self.ahead is not None and (group := state_of(self.ahead)) is not None:
            return room_of(group), _certainty(self.ahead)
        group = state_of(self.here)
        if group is None or not isinstance(self.message.message, PublicMessage):
            return None
        joins = self.message.message.content.sender.sender_type is SenderType.NEW_MEMBER_COMMIT
        room = room_after(group, self.covered, joins=joins)
        return None if room is None else (room, _certainty(self.here))


def _certainty(knowledge: Knowledge) -> Certainty:
    if isinstance(knowledge, NotKnown):
        raise TypeError("an unknown state is neither derived nor claimed")
    return Certainty.DERIVED if isinstance(knowledge, Derived) else Certainty.CLAIMED


# --- commits of any sender ----------------------------------------------------------------------------------------


def _group_bans_added_user(case: Case) -> Found:
    """Check the state after the commit: a commit may unban and add a user, but may not ban and add a user."""
    ahead = case.room_ahead() if case.added else None
    if ahead is None:
        return None
    room, certainty = ahead
    return next((_banned(user, room, certainty, "adds") for user in case.added if room.bans(user)), None)


def _group_bans_joiner(case: Case) -> Found:
    user = case.joining
    ahead = None if user is None else case.room_ahead()
    if user is None or ahead is None:
        return None
    room, certainty = ahead
    return _banned(user, room, certainty, "is an external commit of") if room.bans(user) else None


def _hub_bans_added_user(case: Case) -> Found:
    return next((_hub_banned(user, "adds") for user in case.added if user in case.terms.banned), None)


def _hub_bans_joiner(case: Case) -> Found:
    user = case.joining
    return None if user not in case.terms.banned or user is None else _hub_banned(user, "is an external commit of")


def _banned(user: UserId, room: Room, certainty: Certainty, does: str) -> tuple[Fact, ...]:
    return (
        Fact(f"the commit {does} {_shown(user)}", Certainty.SIGNED),
        Fact(f"after the commit, {_shown(user)} has {room.role_named(user)}", certainty),
    )


def _hub_banned(user: UserId, does: str) -> tuple[Fact, ...]:
    return (
        Fact(f"the commit {does} {_shown(user)}", Certainty.SIGNED),
        Fact(f"{_shown(user)} is banned from all groups of this hub", Certainty.TERMS),
    )


# --- senders: our own users ---------------------------------------------------------------------------------------


def _group_mutes_sender(case: Case, sender: Device) -> Found:
    here = case.room_here() if case.is_application else None
    if here is None or not here[0].mutes(sender.user_id):
        return None
    return (_own(sender), Fact(f"the sender has {here[0].role_named(sender.user_id)}, without canSendMessage", here[1]))


def _hub_mutes_sender(case: Case, sender: Device) -> Found:
    if not case.is_application or sender.user_id not in case.terms.muted:
        return None
    return (_own(sender), Fact("the hub muted the sender in this group", Certainty.TERMS))


def _group_bans_sender(case: Case, sender: Device) -> Found:
    here = case.room_here()
    if here is None or not here[0].bans(sender.user_id) or _may_be_leaving(case, sender.user_id):
        return None
    return (_own(sender), Fact(f"the sender has {here[0].role_named(sender.user_id)} in this fork", here[1]))


def _hub_bans_sender(case: Case, sender: Device) -> Found:
    if sender.user_id not in case.terms.banned or _may_be_leaving(case, sender.user_id):
        return None
    return (_own(sender), Fact("the sender is banned from all groups of this hub", Certainty.TERMS))


def _may_be_leaving(case: Case, user: UserId) -> bool:
    """Return whether the user leaves, or may be leaving, by this message; leaving is always allowed."""
    framed = case.message.message
    if not isinstance(framed, PublicMessage):
        return not case.is_application  # an encrypted handshake, which this server cannot read
    content = framed.content.content
    if not isinstance(content, Proposal) or not isinstance(content.body, Remove | SelfRemove):
        return False
    group = state_of(case.here)
    index = content.body.removed if isinstance(content.body, Remove) else framed.content.sender.index
    leaf = None if group is None or index is None else group.tree.leaf(index)
    owner = None if leaf is None else user_of(leaf.credential)
    return owner is None or owner == user


def _own(sender: Device) -> Fact:
    return Fact(f"the sender is {_shown(sender.user_id)}", Certainty.AUTHENTICATED)


def _shown(user: UserId) -> str:
    return user.decode("utf-8", "replace")


# --- readers: our own users ---------------------------------------------------------------------------------------


def _group_bans_reader(here: Knowledge, terms: Terms, reader: Device) -> Found:
    group = state_of(here)
    if group is None or not (room := room_of(group)).bans(reader.user_id):
        return None
    return (_reading(reader), Fact(f"the reader has {room.role_named(reader.user_id)} in this fork", _certainty(here)))


def _hub_bans_reader(here: Knowledge, terms: Terms, reader: Device) -> Found:
    if reader.user_id not in terms.banned:
        return None
    return (_reading(reader), Fact("the reader is banned from all groups of this hub", Certainty.TERMS))


def _reading(reader: Device) -> Fact:
    return Fact(f"the reader is {_shown(reader.user_id)}", Certainty.AUTHENTICATED)


# --- the table ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Need:
    """A fact that a rule needs, and the kinds of certainty that are enough for it."""

    text: str
    certain: tuple[Certainty, ...]


@attrs.frozen(kw_only=True)
class PolicyRule:
    """A row of the table: name, section of the draft, what it forbids, what it needs. `lasting`: see `Refusal`."""

    name: str
    section: str
    text: str
    needs: tuple[Need, ...]
    lasting: bool = False

    def refusal(self, facts: tuple[Fact, ...]) -> Refusal:
        """Return the refusal for these facts."""
        return Refusal(self.name, self.section, self.text, facts, self.lasting)


@attrs.frozen(kw_only=True)
class MessageRule(PolicyRule):
    """A rule on the content of a message."""

    check: Callable[[Case], Found]


@attrs.frozen(kw_only=True)
class SenderRule(PolicyRule):
    """A rule on the sender, for our own users."""

    check: Callable[[Case, Device], Found]


@attrs.frozen(kw_only=True)
class ReaderRule(PolicyRule):
    """A rule on the reader of application messages, for our own users."""

    check: Callable[[Knowledge, Terms, Device], Found]


_STATE: Final = (Certainty.DERIVED, Certainty.CLAIMED)
_READABLE: Final = Need("the users whom a public commit adds, or the user who joins by it", (Certainty.SIGNED,))
_AHEAD: Final = Need("that user's role after the commit, which no unseen proposal can change", _STATE)
_HERE: Final = Need("the user's role in the message's partition", _STATE)
_OURS: Final = Need("the user who sends, or reads", (Certainty.AUTHENTICATED,))
_BANS: Final = Need("the hub's bans", (Certainty.TERMS,))
_MUTES: Final = Need("the hub's mutes", (Certainty.TERMS,))

RULES: Final[tuple[MessageRule | SenderRule | ReaderRule, ...]] = (
    MessageRule(
        name="banned-user-added",
        section=_ROLES,
        text="the commit adds a user who is banned in the state after it",
        needs=(_READABLE, _AHEAD),
        check=_group_bans_added_user,
    ),
    MessageRule(
        name="banned-user-joins",
        section=_ROLES,
        text="the user who joins by this external commit is banned in the state after it",
        needs=(_READABLE, _AHEAD),
        check=_group_bans_joiner,
    ),
    MessageRule(
        name="hub-banned-user-added",
        section=_DS,
        text="the commit adds a user whom the hub banned",
        needs=(_READABLE, _BANS),
        check=_hub_bans_added_user,
    ),
    MessageRule(
        name="hub-banned-user-joins",
        section=_DS,
        text="the hub banned the user who joins by this external commit",
        needs=(_READABLE, _BANS),
        check=_hub_bans_joiner,
    ),
    SenderRule(
        name="banned-sender",
        section=_ROLES,
        text="the sender is banned in this fork, and may only leave",
        needs=(_OURS, _HERE),
        lasting=True,
        check=_group_bans_sender,
    ),
    SenderRule(
        name="hub-banned-sender",
        section=_DS,
        text="the hub banned the sender, who may only leave",
        needs=(_OURS, _BANS),
        check=_hub_bans_sender,
    ),
    SenderRule(
        name="muted-sender",
        section=_CAPABILITIES,
        text="the sender's role does not include canSendMessage",
        needs=(_OURS, _HERE),
        check=_group_mutes_sender,
    ),
    SenderRule(
        name="hub-muted-sender",
        section=_DS,
        text="the hub muted the sender in this group",
        needs=(_OURS, _MUTES),
        check=_hub_mutes_sender,
    ),
    ReaderRule(
        name="banned-reader",
        section=_ROLES,
        text="the reader is banned in this fork, and gets no application messages of it",
        needs=(_OURS, _HERE),
        check=_group_bans_reader,
    ),
    ReaderRule(
        name="hub-banned-reader",
        section=_DS,
        text="the hub banned the reader, who gets no application messages of its groups",
        needs=(_OURS, _BANS),
        check=_hub_bans_reader,
    ),
)

_MESSAGE_RULES: Final = tuple(rule for rule in RULES if isinstance(rule, MessageRule))
_SENDER_RULES: Final = tuple(rule for rule in RULES if isinstance(rule, SenderRule))
_READER_RULES: Final = tuple(rule for rule in RULES if isinstance(rule, ReaderRule))


def judge(case: Case, sender: Sender) -> Refusal | None:
    """Return the first refusal of a message, or None; None does not mean that the message is accepted."""
    return next(refusals(case, sender), None)


def refusals(case: Case, sender: Sender) -> Iterator[Refusal]:
    """Yield each refusal of a message, in the order of the table."""
    for rule in _MESSAGE_RULES:
        if found := rule.check(case):
            yield rule.refusal(found)
    if isinstance(sender, Device):
        for sender_rule in _SENDER_RULES:
            if found := sender_rule.check(case, sender):
                yield sender_rule.refusal(found)


def withheld(here: Knowledge, terms: Terms, reader: Device) -> Refusal | None:
    """Return why application messages of a partition in this state are withheld from a device, or None."""
    for rule in _READER_RULES:
        if found := rule.check(here, terms, reader):
            return rule.refusal(found)
    return None
