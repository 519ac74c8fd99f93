"""Policy within a transaction: reads the facts of a case from the store, and turns a refusal into a problem.

All decisions are made in `mimids.policy.rules`. A provider applies the terms of the group's hub: its own terms if it is
the hub itself, otherwise the accepted terms of the hub (semantics: policy, terms-and-reports).
"""

from __future__ import annotations

import attrs

from mimids.ds.groups.judging import Judged, covered_by
from mimids.ds.groups.restrictions import RestrictionSource
from mimids.ds.groups.states import States
from mimids.errors import MimiError, PolicyRefused
from mimids.mls.code_points import SenderType
from mimids.mls.framing import MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.identity import user_of
from mimids.mls.knowledge import Knowledge, NotKnown, state_of
from mimids.mls.proposals import Commit, Proposal
from mimids.mls.rules.proposal_list import Covered
from mimids.policy.rules import NO_TERMS, RULES, Case, Terms, judge, withheld
from mimids.policy.verdict import Refusal
from mimids.store.bans import EVERY_GROUP
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Device, Follower, Milliseconds, Sender
from mimids.wire.ids import GroupId, UserId

_LASTING = frozenset(rule.name for rule in RULES if rule.lasting)


class GroupPolicy:
    """Checks messages against policy within one transaction; the terms of a sender are read once.

    `source` is where the terms of the group's hub are read.
    """

    def __init__(self, tx: Tx, states: States, now: Milliseconds, source: RestrictionSource) -> None:
        self._tx = tx
        self._states = states
        self._now = now
        self._source = source
        self._senders: dict[tuple[UserId, int], Terms] = {}

    def check(
        self, group: Group, partition: Partition, judged: Judged, ahead: Knowledge | None, sender: Sender
    ) -> None:
        """Raise `PolicyRefused` if a message certainly breaks a rule.

        `ahead` is what is known of the partition that a commit opens; None for other messages.
        """
        if isinstance(sender, Follower) and isinstance(judged.message.message, PrivateMessage):
            return  # neither the sender nor the content is known, so no rule can refuse
        covered = covered_by(self._tx, partition, judged)
        case = Case(judged.message, judged.judgement.knowledge, ahead, covered)
        terms = self._terms(case, group, sender)
        if terms != NO_TERMS:
            case = attrs.evolve(case, terms=terms)
        refusal = judge(case, sender)
        if refusal is not None:
            raise refused(refusal)

    def check_unseen(self, hub: int, message: MLSMessage, sender: Device) -> None:
        """Raise `PolicyRefused` if the hub's terms refuse a message; used if nothing is known of the partition."""
        case = Case(message, NotKnown(), covered=_by_value(message))
        users = {sender.user_id, *case.added, *([] if case.joining is None else [case.joining])}
        terms = self._source.terms_of(self._tx, hub, users, message.group_id or GroupId(b""), self._now)
        refusal = judge(attrs.evolve(case, terms=terms), sender)
        if refusal is not None:
            raise refused(refusal)

    def check_reader(self, hub: int, reader: Device) -> None:
        """Raise `PolicyRefused` if a hub banned the reader from all its groups (semantics: terms-and-reports)."""
        terms = self._source.terms_of(self._tx, hub, {reader.user_id}, EVERY_GROUP, self._now)
        refusal = withheld(NotKnown(), terms, reader)
        if refusal is not None:
            raise refused(refusal)

    def withheld(self, group: Group, partition: Partition, reader: Device) -> Refusal | None:
        """Return why one of our devices gets no application messages of a partition; None if the device gets them."""
        here = self._states.knowledge(self._tx, group, partition)
        return withheld(here, self._sender_terms(group, reader.user_id), reader)

    def _terms(self, case: Case, group: Group, sender: Sender) -> Terms:
        users = set(case.added)
        if case.joining is not None:
            users.add(case.joining)
        own = self._sender_terms(group, sender.user_id) if isinstance(sender, Device) else NO_TERMS
        if not users:
            return own
        others = self._source.terms_of(self._tx, group.hub, users, group.group_id, self._now)
        return Terms(own.banned | others.banned, own.muted)

    def _sender_terms(self, group: Group, user: UserId) -> Terms:
        key = (user, group.id)
        found = self._senders.get(key)
        if found is None:
            found = self._source.terms_of(self._tx, group.hub, {user}, group.group_id, self._now)
            self._senders[key] = found
        return found


def _by_value(message: MLSMessage) -> tuple[Covered, ...]:
    public = message.message
    if not isinstance(public, PublicMessage) or not isinstance(public.content.content, Commit):
        return ()
    values = (each.value for each in public.content.content.proposals)
    return tuple(Covered(value, public.content.sender) for value in values if isinstance(value, Proposal))


def refused(refusal: Refusal) -> PolicyRefused:
    """Return the error for a refusal; it shows the sender the facts that the decision was based on."""
    read = [str(fact) for fact in refusal.facts]
    return PolicyRefused(refusal.detail, rule=refusal.rule, section=refusal.section, read=read)


def is_lasting(error: MimiError, here: Knowledge, public: PublicMessage, sender: Sender) -> bool:
    """Tell whether policy refused a proposal for its content, so that a commit must not cover it.

    Returns False if the sender did not sign the proposal, because policy may allow the proposal when its signer sends
    it.
    """
    if not isinstance(error, PolicyRefused) or error.members.get("rule") not in _LASTING:
        return False
    group, author = state_of(here), public.content.sender
    if group is None or author.sender_type is not SenderType.MEMBER or author.index is None:
        return False
    leaf = group.tree.leaf(author.index)
    return leaf is not None and isinstance(sender, Device) and user_of(leaf.credential) == sender.user_id
