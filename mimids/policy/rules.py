"""Every rule of policy, in one table; adding one touches this file alone (DS draft section 4; semantics: policy).

A rule is a small function from a `Case` to the facts that break it, or None: a rule that lacks a fact is silent, and a
rule cannot say more than no. Rules do not know each other, so their order decides nothing but which one is named.

There are three kinds by what they are given. A `MessageRule` sees the message. A `SenderRule` sees the sender too, as
a `Device`: somebody whom this provider itself authenticated. Of another provider's users only the provider is known
(`Follower`), and `judge` has nothing that it could hand to a sender rule for them. A `ReaderRule` says what a device of
ours is not given to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Final

import attrs

from mimids.mls.code_points import ContentType, SenderType
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.mls.identity import user_id
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
    """What the hub's operator decided, for the users that a case concerns: banned everywhere, muted in this group."""

    banned: frozenset[UserId] = frozenset()
    muted: frozenset[UserId] = frozenset()


NO_TERMS: Final = Terms()


@attrs.frozen
class Case:
    """What any DS may know of a message, whoever brings it.

    `here` is the state of the partition that it indicates, `ahead` that of the partition a commit leads to, `covered`
    what a public commit covers, with bare references where the proposal was not seen.
    """

    message: MLSMessage
    here: Knowledge
    ahead: Knowledge | None = None
    covered: tuple[Covered | ProposalRef, ...] = ()
    terms: Terms = NO_TERMS

    @property
    def is_application(self) -> bool:
        """Tell whether it is an application message, which even an encrypted one shows."""
        return self.message.content_type is ContentType.APPLICATION

    @cached_property
    def added(self) -> tuple[UserId, ...]:
        """Return the users whom a public commit adds, by value or by reference, as far as it can be read."""
        bodies = (each.proposal.body for each in self.covered if isinstance(each, Covered))
        users = (user_id(body.key_package.leaf_node.credential) for body in bodies if isinstance(body, Add))
        return tuple(user for user in users if user is not None)

    @cached_property
    def joining(self) -> UserId | None:
        """Return the user who joins by this external commit."""
        public = self.message.message
        if not isinstance(public, PublicMessage) or not isinstance(public.content.content, Commit):
            return None
        path = public.content.content.path
        if path is None or public.content.sender.sender_type is not SenderType.NEW_MEMBER_COMMIT:
            return None
        return user_id(path.leaf_node.credential)

    def room_here(self) -> tuple[Room, Certainty] | None:
        """Return the policy in force where the message was sent."""
        group = state_of(self.here)
        return None if group is None else (room_of(group), _certainty(self.here))

    def room_ahead(self) -> tuple[Room, Certainty] | None:
        """Return the policy in force after this commit, as far as nothing unseen could change it."""
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
        raise TypeError("nothing is certain of a state that is not known")
    return Certainty.DERIVED if isinstance(knowledge, Derived) else Certainty.CLAIMED


# --- commits, whoever sends them ----------------------------------------------------------------------------------


def _adds_whom_the_group_bans(case: Case) -> Found:
    """Judge by the state that the commit leads to: unban and add in one commit pass, ban and add do not."""
    ahead = case.room_ahead() if case.added else None
    if ahead is None:
        return None
    room, certainty = ahead
    return next((_banned(user, room, certainty, "adds") for user in case.added if room.bans(user)), None)


def _joins_whom_the_group_bans(case: Case) -> Found:
    user = case.joining
    ahead = None if user is None else case.room_ahead()
    if user is None or ahead is None:
        return None
    room, certainty = ahead
    return _banned(user, room, certainty, "is an external commit of") if room.bans(user) else None


def _adds_whom_the_hub_bans(case: Case) -> Found:
    return next((_hub_banned(user, "adds") for user in case.added if user in case.terms.banned), None)


def _joins_whom_the_hub_bans(case: Case) -> Found:
    user = case.joining
    return None if user not in case.terms.banned or user is None else _hub_banned(user, "is an external commit of")


def _banned(user: UserId, room: Room, certainty: Certainty, does: str) -> tuple[Fact, ...]:
    return (
        Fact(f"the commit {does} {_shown(user)}", Certainty.SIGNED),
        Fact(f"after it, {_shown(user)} has {room.role_named(user)}", certainty),
    )


def _hub_banned(user: UserId, does: str) -> tuple[Fact, ...]:
    return (
        Fact(f"the commit {does} {_shown(user)}", Certainty.SIGNED),
        Fact(f"{_shown(user)} is banned from all groups of this hub", Certainty.TERMS),
    )


# --- senders whom this provider authenticates ---------------------------------------------------------------------


def _mutes_in_the_group(case: Case, sender: Device) -> Found:
    here = case.room_here() if case.is_application else None
    if here is None or not here[0].mutes(sender.user_id):
        return None
    return (_own(sender), Fact(f"it has {here[0].role_named(sender.user_id)}, without canSendMessage", here[1]))


def _mutes_at_the_hub(case: Case, sender: Device) -> Found:
    if not case.is_application or sender.user_id not in case.terms.muted:
        return None
    return (_own(sender), Fact("the hub muted it in this group", Certainty.TERMS))


def _bans_in_the_group(case: Case, sender: Device) -> Found:
    here = case.room_here()
    if here is None or not here[0].bans(sender.user_id) or _may_be_leaving(case, sender.user_id):
        return None
    return (_own(sender), Fact(f"it has {here[0].role_named(sender.user_id)} in this fork", here[1]))


def _bans_at_the_hub(case: Case, sender: Device) -> Found:
    if sender.user_id not in case.terms.banned or _may_be_leaving(case, sender.user_id):
        return None
    return (_own(sender), Fact("it is banned from all groups of this hub", Certainty.TERMS))


def _may_be_leaving(case: Case, user: UserId) -> bool:
    """Tell whether a message is the user's leaving, or could be: leaving always works."""
    framed = case.message.message
    if not isinstance(framed, PublicMessage):
        return not case.is_application  # a handshake that nobody here can read
    content = framed.content.content
    if not isinstance(content, Proposal) or not isinstance(content.body, Remove | SelfRemove):
        return False
    group = state_of(case.here)
    index = content.body.removed if isinstance(content.body, Remove) else framed.content.sender.index
    leaf = None if group is None or index is None else group.tree.leaf(index)
    owner = None if leaf is None else user_id(leaf.credential)
    return owner is None or owner == user


def _own(sender: Device) -> Fact:
    return Fact(f"the sender is {_shown(sender.user_id)}", Certainty.AUTHENTICATED)


def _shown(user: UserId) -> str:
    return user.decode("utf-8", "replace")


# --- readers whom this provider authenticates ---------------------------------------------------------------------


def _withheld_in_the_group(here: Knowledge, terms: Terms, reader: Device) -> Found:
    group = state_of(here)
    if group is None or not (room := room_of(group)).bans(reader.user_id):
        return None
    return (_reading(reader), Fact(f"it has {room.role_named(reader.user_id)} in this fork", _certainty(here)))


def _withheld_at_the_hub(here: Knowledge, terms: Terms, reader: Device) -> Found:
    if reader.user_id not in terms.banned:
        return None
    return (_reading(reader), Fact("it is banned from all groups of this hub", Certainty.TERMS))


def _reading(reader: Device) -> Fact:
    return Fact(f"the reader is {_shown(reader.user_id)}", Certainty.AUTHENTICATED)


# --- the table ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Need:
    """What a rule must know, and what can make that certain: any of these."""

    text: str
    certain: tuple[Certainty, ...]


@attrs.frozen(kw_only=True)
class PolicyRule:
    """A row: its name, where it stands, what it demands, what it must know. `lasting`: see `Refusal`."""

    name: str
    section: str
    text: str
    needs: tuple[Need, ...]
    lasting: bool = False

    def refusal(self, facts: tuple[Fact, ...]) -> Refusal:
        """Return the refusal that these facts are."""
        return Refusal(self.name, self.section, self.text, facts, self.lasting)


@attrs.frozen(kw_only=True)
class MessageRule(PolicyRule):
    """A rule about what a message says."""

    check: Callable[[Case], Found]


@attrs.frozen(kw_only=True)
class SenderRule(PolicyRule):
    """A rule about who sends: one of our own users."""

    check: Callable[[Case, Device], Found]


@attrs.frozen(kw_only=True)
class ReaderRule(PolicyRule):
    """A rule about who reads application messages: one of our own users."""

    check: Callable[[Knowledge, Terms, Device], Found]


_STATE: Final = (Certainty.DERIVED, Certainty.CLAIMED)
_READABLE: Final = Need("whom a public commit adds, or whose external commit it is", (Certainty.SIGNED,))
_AHEAD: Final = Need("their role after it, whatever of the commit was not seen", _STATE)
_HERE: Final = Need("their role in the message's partition", _STATE)
_OURS: Final = Need("who sends, or reads", (Certainty.AUTHENTICATED,))
_BANS: Final = Need("the hub's bans", (Certainty.TERMS,))
_MUTES: Final = Need("the hub's mutes", (Certainty.TERMS,))

RULES: Final[tuple[MessageRule | SenderRule | ReaderRule, ...]] = (
    MessageRule(
        name="banned-user-added",
        section=_ROLES,
        text="the commit adds a user who is banned in the state that it leads to",
        needs=(_READABLE, _AHEAD),
        check=_adds_whom_the_group_bans,
    ),
    MessageRule(
        name="banned-user-joins",
        section=_ROLES,
        text="the external commit is of a user who is banned in the state that it leads to",
        needs=(_READABLE, _AHEAD),
        check=_joins_whom_the_group_bans,
    ),
    MessageRule(
        name="hub-banned-user-added",
        section=_DS,
        text="the commit adds a user whom the hub banned",
        needs=(_READABLE, _BANS),
        check=_adds_whom_the_hub_bans,
    ),
    MessageRule(
        name="hub-banned-user-joins",
        section=_DS,
        text="the external commit is of a user whom the hub banned",
        needs=(_READABLE, _BANS),
        check=_joins_whom_the_hub_bans,
    ),
    SenderRule(
        name="banned-sender",
        section=_ROLES,
        text="the sender is banned in this fork, and may only leave",
        needs=(_OURS, _HERE),
        lasting=True,
        check=_bans_in_the_group,
    ),
    SenderRule(
        name="hub-banned-sender",
        section=_DS,
        text="the hub banned the sender, who may only leave",
        needs=(_OURS, _BANS),
        check=_bans_at_the_hub,
    ),
    SenderRule(
        name="muted-sender",
        section=_CAPABILITIES,
        text="the sender's role is without canSendMessage",
        needs=(_OURS, _HERE),
        check=_mutes_in_the_group,
    ),
    SenderRule(
        name="hub-muted-sender",
        section=_DS,
        text="the hub muted the sender in this group",
        needs=(_OURS, _MUTES),
        check=_mutes_at_the_hub,
    ),
    ReaderRule(
        name="banned-reader",
        section=_ROLES,
        text="the reader is banned in this fork, and gets no application messages of it",
        needs=(_OURS, _HERE),
        check=_withheld_in_the_group,
    ),
    ReaderRule(
        name="hub-banned-reader",
        section=_DS,
        text="the hub banned the reader, who gets no application messages of its groups",
        needs=(_OURS, _BANS),
        check=_withheld_at_the_hub,
    ),
)

_MESSAGE_RULES: Final = tuple(rule for rule in RULES if isinstance(rule, MessageRule))
_SENDER_RULES: Final = tuple(rule for rule in RULES if isinstance(rule, SenderRule))
_READER_RULES: Final = tuple(rule for rule in RULES if isinstance(rule, ReaderRule))


def judge(case: Case, sender: Sender) -> Refusal | None:
    """Return why a message is refused, or None: then policy has nothing to say, which is not a yes."""
    return next(refusals(case, sender), None)


def refusals(case: Case, sender: Sender) -> Iterator[Refusal]:
    """Yield every refusal, in the order of the table."""
    for rule in _MESSAGE_RULES:
        if found := rule.check(case):
            yield rule.refusal(found)
    if isinstance(sender, Device):
        for about_sender in _SENDER_RULES:
            if found := about_sender.check(case, sender):
                yield about_sender.refusal(found)


def withheld(here: Knowledge, terms: Terms, reader: Device) -> Refusal | None:
    """Return why a device gets no application messages of a partition in this state, or None."""
    for rule in _READER_RULES:
        if found := rule.check(here, terms, reader):
            return rule.refusal(found)
    return None
