"""Policy within a transaction: the facts of a case from the store, and a refusal as the problem that a sender sees.

What is decided stands in `mimids.policy.rules`; nothing is decided here. A provider judges by the terms of the hub of
the group: its own where it is the hub, else those that it accepted (semantics: terms-and-reports).
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.ds.groups.states import Judged, States
from mimids.errors import MimiError, PolicyRefused
from mimids.mls.code_points import SenderType
from mimids.mls.framing import MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.identity import user_id
from mimids.mls.knowledge import Knowledge, NotKnown, state_of
from mimids.mls.proposals import Commit, Proposal
from mimids.mls.rules.proposal_list import Covered
from mimids.policy.rules import NO_TERMS, RULES, Case, Terms, judge, withheld
from mimids.policy.verdict import Refusal
from mimids.store import arrangements, bans
from mimids.store.bans import EVERY_GROUP
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Device, Follower, Milliseconds, Sender
from mimids.wire.ids import GroupId, UserId

_LASTING = frozenset(rule.name for rule in RULES if rule.lasting)


def terms_of(tx: Tx, hub: int, users: Iterable[UserId], group_id: GroupId, now: Milliseconds, *, ours: bool) -> Terms:
    """Return what the operator of a hub decided of these users; `ours` says that we are the hub."""
    asked = frozenset(users)
    if not asked:
        return NO_TERMS
    if ours:
        return Terms(bans.banned_users(tx, asked, now), bans.muted_users(tx, asked, group_id, now))
    return Terms(arrangements.banned_by(tx, hub, asked), arrangements.muted_by(tx, hub, asked, group_id))


class GroupPolicy:
    """The rules of one transaction; what was read of a sender once is not read again."""

    def __init__(self, tx: Tx, states: States, now: Milliseconds, *, ours: bool) -> None:
        self._tx = tx
        self._states = states
        self._now = now
        self._ours = ours
        self._senders: dict[tuple[UserId, int], Terms] = {}

    def check(
        self, group: Group, partition: Partition, judged: Judged, ahead: Knowledge | None, sender: Sender
    ) -> None:
        """Raise `PolicyRefused` where a rule is broken for certain; `ahead` is where a commit leads."""
        if isinstance(sender, Follower) and isinstance(judged.message.message, PrivateMessage):
            return  # neither the sender nor the content is known: no rule could speak
        covered = self._states.covered(self._tx, partition, judged)
        case = Case(judged.message, judged.judgement.knowledge, ahead, covered)
        terms = self._terms(case, group, sender)
        if terms != NO_TERMS:
            case = attrs.evolve(case, terms=terms)
        refusal = judge(case, sender)
        if refusal is not None:
            raise refused(refusal)

    def check_unseen(self, hub: int, message: MLSMessage, sender: Device) -> None:
        """Raise `PolicyRefused` where a hub's terms alone refuse a message of whose partition nothing is known."""
        case = Case(message, NotKnown(), covered=_by_value(message))
        users = {sender.user_id, *case.added, *([] if case.joining is None else [case.joining])}
        terms = terms_of(self._tx, hub, users, message.group_id or GroupId(b""), self._now, ours=self._ours)
        refusal = judge(attrs.evolve(case, terms=terms), sender)
        if refusal is not None:
            raise refused(refusal)

    def check_reader(self, hub: int, reader: Device) -> None:
        """Raise `PolicyRefused` where a hub banned a device's user from all its groups.

        (semantics: terms-and-reports)
        """
        terms = terms_of(self._tx, hub, [reader.user_id], EVERY_GROUP, self._now, ours=self._ours)
        refusal = withheld(NotKnown(), terms, reader)
        if refusal is not None:
            raise refused(refusal)

    def withheld(self, group: Group, partition: Partition, reader: Device) -> Refusal | None:
        """Return why a device of ours gets no application messages of a partition, or None."""
        here = self._states.knowledge(self._tx, group, partition)
        return withheld(here, self._sender_terms(group, reader.user_id), reader)

    def _terms(self, case: Case, group: Group, sender: Sender) -> Terms:
        users = set(case.added)
        if case.joining is not None:
            users.add(case.joining)
        own = self._sender_terms(group, sender.user_id) if isinstance(sender, Device) else NO_TERMS
        if not users:
            return own
        others = terms_of(self._tx, group.hub, users, group.group_id, self._now, ours=self._ours)
        return Terms(own.banned | others.banned, own.muted)

    def _sender_terms(self, group: Group, user: UserId) -> Terms:
        key = (user, group.id)
        found = self._senders.get(key)
        if found is None:
            found = terms_of(self._tx, group.hub, [user], group.group_id, self._now, ours=self._ours)
            self._senders[key] = found
        return found


def _by_value(message: MLSMessage) -> tuple[Covered, ...]:
    public = message.message
    if not isinstance(public, PublicMessage) or not isinstance(public.content.content, Commit):
        return ()
    values = (each.value for each in public.content.content.proposals)
    return tuple(Covered(value, public.content.sender) for value in values if isinstance(value, Proposal))


def refused(refusal: Refusal) -> PolicyRefused:
    """Return the problem that a refusal is; what was read may be shown to whoever sent the message."""
    read = [str(fact) for fact in refusal.facts]
    return PolicyRefused(refusal.detail, rule=refusal.rule, section=refusal.section, read=read)


def is_lasting(error: MimiError, here: Knowledge, public: PublicMessage, sender: Sender) -> bool:
    """Tell whether policy refused a proposal for what it is: then a commit must not cover it.

    That takes a proposal that is the sender's own by its leaf: one that somebody else made may yet come from them.
    """
    if not isinstance(error, PolicyRefused) or error.members.get("rule") not in _LASTING:
        return False
    group, author = state_of(here), public.content.sender
    if group is None or author.sender_type is not SenderType.MEMBER or author.index is None:
        return False
    leaf = group.tree.leaf(author.index)
    return leaf is not None and isinstance(sender, Device) and user_id(leaf.credential) == sender.user_id
