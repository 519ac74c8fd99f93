"""What the drafts leave to clients, since no Delivery Service can do it for them. Nothing here waits or opens anything.

- Ignore a commit whose next_partition_key or GroupInfo is not what one expects: `check_commit`.
- Send a Remove or SelfRemove again that was not sequenced before the next commit: `Departure`.
- Never rejoin by oneself when a branch is terminated: `BranchTerminated` says so, and nothing in this package joins
  unless it is told to.
- Ignore what violates the group's policy, as if it were cryptographically invalid; commit pending proposals before
  application data (RFC 9420 section 12.4). Only a client can see both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hmac import compare_digest
from typing import Literal

import attrs

from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.suites import suite_of
from mimids.wire.declare import encode
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import Message, SendRequest


class UnexpectedCommit(Exception):
    """A commit that members ignore (DS draft, "Receiving Messages"): stay in the epoch, and do not follow it."""


@attrs.frozen
class Expected:
    """What one's own MLS library makes of a commit, before it is merged.

    `group_context` is the GroupContext of the epoch that it leads to, encoded; `confirmation_tag` the commit's.
    `signer` and `signature_key` are leaf and signature key of the committer in that epoch. Whether a GroupInfo belongs
    with it is for the group to say.
    """

    partition_key: PartitionKey
    group_context: bytes
    confirmation_tag: bytes
    signer: int
    signature_key: bytes
    group_info: Literal["needed", "allowed", "forbidden"] = "allowed"


def check_commit(commit: Message, expected: Expected) -> None:
    """Raise `UnexpectedCommit` unless what the hub sent with a commit is what it leads to.

    The hub cannot forge a commit, but it could name another partition with it, or a GroupInfo of another epoch, and so
    lead members or joiners away. What it sent with the commit was the committer's word at best.
    """
    if commit.commit is None:
        raise UnexpectedCommit("no commit")
    if commit.commit.next_partition_key not in expected.partition_key.masks():
        raise UnexpectedCommit("it opens another partition than its epoch's")
    sent = commit.commit.group_info
    if sent is None:
        if expected.group_info == "needed":
            raise UnexpectedCommit("its GroupInfo is missing")
        return
    if expected.group_info == "forbidden":
        raise UnexpectedCommit("a GroupInfo comes with it, and this group publishes none")
    _check_group_info(sent, expected)


def _check_group_info(sent: MLSMessage, expected: Expected) -> None:
    info = sent.message
    if not isinstance(info, GroupInfo):
        raise UnexpectedCommit("what comes with it is no GroupInfo")
    if encode(info.group_context) != expected.group_context:
        raise UnexpectedCommit("its GroupInfo is of another epoch")
    if not compare_digest(info.confirmation_tag, expected.confirmation_tag):
        raise UnexpectedCommit("its GroupInfo has another confirmation tag")
    suite = suite_of(info.group_context.cipher_suite)
    if info.signer != expected.signer:
        raise UnexpectedCommit("its GroupInfo is signed by another member")
    if suite is None or not info.verifies(suite, expected.signature_key):
        raise UnexpectedCommit("the signature of its GroupInfo does not verify")


class Departure:
    """Follows one's own Remove or SelfRemove until it is sequenced before a commit (DS draft, "Self-Remove").

    Send `request`, then the leave call, and go on receiving the epoch. Give every message to `look`; it returns what to
    send again, if anything:

        departure = Departure(proposal)
        await stream.send(hub, departure.request)
        async for event in stream:
            if isinstance(event, Arrived):
                again = departure.look(event.messages, propose_in_next_epoch)
                if again is not None:
                    await stream.send(hub, again)
                elif departure.done:
                    break

    A commit that came first ends the proposal's epoch. Unless it removed us all the same, the proposal is made anew in
    the epoch that it leads to, by `propose`; from there on that epoch is to be received. A proposal that was in time is
    done: the next commit has to cover it (RFC 9420 section 12.4), and a member cannot make it.
    """

    def __init__(self, request: SendRequest) -> None:
        self.request = request
        self.done = False

    def look(self, messages: Sequence[Message], propose: Callable[[Message], SendRequest | None]) -> SendRequest | None:
        """Look at messages of the epoch, in their order; return a proposal that is to be sent now.

        `propose` is given a commit that was sequenced first, and returns the proposal in the epoch that it leads to;
        None means that there is nothing to propose: the commit is to be ignored, or we are no member there.
        """
        if self.done:
            return None
        ours = self.request.message.encoded
        for message in messages:
            if message.message.encoded == ours:
                self.done = True
                return None
            if message.message.content_type is ContentType.COMMIT:
                again = propose(message)
                if again is not None:
                    self.request = again
                    return again
        return None
