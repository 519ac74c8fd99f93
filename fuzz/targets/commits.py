"""Check and apply of commits and proposals with signatures that fit (see fuzz.plays)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fuzz import recordings
from fuzz.plays import ITEMS, STEPS, Kind, Play, Step, perform
from fuzz.stages import clients, stages
from fuzz.target import Target
from fuzz.targets.structs import decoded
from mimids.mls.code_points import ComponentId, LeafNodeSource, PskType, SenderType
from mimids.mls.components import ParticipantListUpdate, UserRolePair
from mimids.mls.framing import FramedContent, MLSMessage, PublicMessage
from mimids.mls.proposals import (
    Add,
    AppEphemeral,
    Commit,
    ExternalInit,
    GroupContextExtensions,
    PreSharedKey,
    PreSharedKeyId,
    Proposal,
    ReInit,
    Remove,
    SelfRemove,
    Update,
    UpdatePath,
)
from mimids.wire.declare import codec, encode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, UserId
from tests.support.public_groups import SENDERS, component
from tests.support.signing import hpke_key, proposal

_MEMBER: Final = 1
_COMMITTER: Final = 2


def _run(octets: bytes) -> None:
    play = decoded(codec(Play), octets)
    if play is not None:
        perform(play)


def _seeds() -> Iterator[bytes]:
    for play in (*_made(), *_recorded()):
        yield encode(play)


def _made() -> Iterator[Play]:
    """Yield one play for each kind of proposal, by value and by reference, in each group that was made."""
    for number, group in enumerate(stages()):
        suite = group.suite
        ours = clients(suite)
        path = UpdatePath(ours[_COMMITTER + 1].leaf(LeafNodeSource.COMMIT), ())
        joining = UpdatePath(ours[29].leaf(LeafNodeSource.COMMIT), ())
        psk = PreSharedKeyId(PskType.EXTERNAL, b"psk", bytes(suite.hash_size))
        people = encode(ParticipantListUpdate((), (), (UserRolePair(UserId(b"new"), 0),)))
        bodies: list[Any] = [
            Add(ours[30].key_package()),
            Update(ours[_MEMBER + 1].leaf(LeafNodeSource.UPDATE)),
            Remove(_MEMBER),
            PreSharedKey(psk),
            ReInit(GroupId(b"new"), MLS10, CipherSuite(suite.code), ()),
            GroupContextExtensions((SENDERS,)),
            component(ComponentId.PARTICIPANT_LIST, people),
            component(0xFF00, None),
            AppEphemeral(ComponentId(0xFF07), b"now"),
            SelfRemove(),
            b"unknown",
        ]
        for body in bodies:
            sent = Step(Kind.PROPOSAL, _MEMBER, 0, (), (proposal(body),), None)
            yield Play(number, (sent, Step(Kind.COMMIT, _COMMITTER, 0, (0,), (), path)))
            yield Play(number, (Step(Kind.COMMIT, _COMMITTER, 0, (), (proposal(body),), path),))
        add = proposal(Add(ours[30].key_package()))
        init = proposal(ExternalInit(hpke_key(suite, 9)))
        yield Play(number, (Step(Kind.JOIN, 28, 0, (), (init,), joining), Step(Kind.COMMIT, 0, 0, (), (add,), None)))
        yield Play(number, (Step(Kind.OUTSIDE, 0, 0, (), (add,), None), Step(Kind.NEW_MEMBER, 0, 0, (), (add,), None)))


def _recorded() -> Iterator[Play]:
    """Yield the recorded epochs: their public proposals, and a commit that covers these."""
    places = {group.group_id: at for at, group in enumerate(stages())}
    steps: dict[tuple[bytes, int], list[Step]] = {}
    for message in recordings.messages():
        if not isinstance(message.message, PublicMessage):
            continue
        content = message.message.content
        stage = places.get(content.group_id, _suite_of(message))
        epoch = steps.setdefault((content.group_id, content.epoch), [])
        step = _step(content, len(epoch))
        if step is None:
            continue
        if step.kind in (Kind.COMMIT, Kind.JOIN):
            yield Play(stage, (*epoch[-STEPS + 1 :], step))
        else:
            epoch.append(step)


def _suite_of(message: MLSMessage) -> int:
    return len(message.encoded) % 7


def _step(content: FramedContent, before: int) -> Step | None:
    sender = content.sender.sender_type
    index = (content.sender.index or 0) % 256
    body = content.content
    if isinstance(body, Proposal):
        kinds = {SenderType.MEMBER: Kind.PROPOSAL, SenderType.EXTERNAL: Kind.OUTSIDE}
        return Step(kinds.get(sender, Kind.NEW_MEMBER), index, 0, (), (body,), None)
    if not isinstance(body, Commit):
        return None
    kind = Kind.COMMIT if sender is SenderType.MEMBER else Kind.JOIN
    values = tuple(each.value for each in body.proposals if isinstance(each.value, Proposal))
    covers = tuple(range(min(before, STEPS - 1))) if len(values) < len(body.proposals) else ()
    return Step(kind, index, 0, covers, values[:ITEMS], body.path)


TARGETS: Final = (Target(name="commits", run=_run, seeds=_seeds, shape=lambda _: (0, codec(Play)), most=8192, share=4),)
