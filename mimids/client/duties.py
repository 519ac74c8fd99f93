"""What the drafts require of clients, because a Delivery Service cannot do it for them. Nothing here does any I/O.

- Ignore a commit whose next_partition_key or GroupInfo is not the expected one: `check_commit`.
- Send a Remove or SelfRemove again if a commit was sequenced before it: `Departure`.
- Never rejoin automatically when a branch is terminated: `BranchTerminated` is raised, and nothing in this package
  joins a group by itself.
- Ignore messages that violate the group's policy as if they were cryptographically invalid, and commit pending
  proposals before sending application data (RFC 9420 section 12.4). Only a client can do these two things.
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
    """A commit that members have to ignore (DS draft, "Receiving Messages"): stay in the current epoch."""


@attrs.frozen
class Expected:
    """What the client's own MLS library computes from a commit, before merging it.

    `group_context` is the encoded GroupContext of the new epoch, and `confirmation_tag` is the commit's confirmation
    tag. `signer` and `signature_key` are the leaf index and signature key of the committer in the new epoch.
    `group_info` says whether the group's commits come with a GroupInfo.
    """

    partition_key: PartitionKey
    group_context: bytes
    confirmation_tag: bytes
    signer: int
    signature_key: bytes
    group_info: Literal["needed", "allowed", "forbidden"] = "allowed"


def check_commit(commit: Message, expected: Expected) -> None:
    """Raise `UnexpectedCommit` unless the partition key and GroupInfo sent with a commit belong to its new epoch.

    The hub cannot forge a commit. But the hub or the committer could send it with another partition key, or with the
    GroupInfo of another epoch, and so lead members or joiners into another branch.
    """
    if commit.commit is None:
        raise UnexpectedCommit("the message is not a commit")
    if commit.commit.next_partition_key not in expected.partition_key.masks():
        raise UnexpectedCommit("the commit does not name the partition of its new epoch")
    sent = commit.commit.group_info
    if sent is None:
        if expected.group_info == "needed":
            raise UnexpectedCommit("the commit comes without a GroupInfo, which this group requires")
        return
    if expected.group_info == "forbidden":
        raise UnexpectedCommit("the commit comes with a GroupInfo, which this group forbids")
    _check_group_info(sent, expected)


def _check_group_info(sent: MLSMessage, expected: Expected) -> None:
    info = sent.message
    if not isinstance(info, GroupInfo):
        raise UnexpectedCommit("the commit comes with an object that is not a GroupInfo")
    if encode(info.group_context) != expected.group_context:
        raise UnexpectedCommit("the GroupInfo is of another epoch")
    if not compare_digest(info.confirmation_tag, expected.confirmation_tag):
        raise UnexpectedCommit("the GroupInfo does not have the confirmation tag of the commit")
    suite = suite_of(info.group_context.cipher_suite)
    if info.signer != expected.signer:
        raise UnexpectedCommit("the GroupInfo is not signed by the committer")
    if suite is None or not info.verifies(suite, expected.signature_key):
        raise UnexpectedCommit("the signature of the GroupInfo does not verify")


class Departure:
    """Sends a Remove or SelfRemove again until it is sequenced before a commit (DS draft, "Self-Remove").

    Send `request`, then call leave, and keep receiving the epoch. Give the messages to `look`; it returns what has to
    be sent again, if anything:

        departure = Departure(proposal)
        await stream.send(hub, departure.request)
        async for event in stream:
            if isinstance(event, Arrived):
                again = departure.look(event.messages, propose_in_next_epoch)
                if again is not None:
                    await stream.send(hub, again)
                elif departure.done:
                    break

    A commit that is sequenced before the proposal ends the proposal's epoch. Unless that commit removed us, `propose`
    makes the proposal again in the new epoch, and the client receives that epoch from then on. Once the proposal is
    sequenced before any commit, nothing more is needed: the next commit has to cover it (RFC 9420 section 12.4).
    """

    def __init__(self, request: SendRequest) -> None:
        self.request = request
        self.done = False

    def look(self, messages: Sequence[Message], propose: Callable[[Message], SendRequest | None]) -> SendRequest | None:
        """Look at messages of the epoch, in their order; return a proposal to send now, or None.

        `propose` gets a commit that was sequenced before the proposal, and returns the proposal for the new epoch. It
        returns None if the commit has to be ignored, or if we are not a member in the new epoch.
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
