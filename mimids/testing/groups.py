"""Groups without MLS: messages of the right format without cryptography, for tests of their delivery.

A Delivery Service cannot tell these PrivateMessages from real ones, because it has no group secrets. It does not know
the group's state either, so it checks nothing but sizes, epochs and partition keys.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

import attrs

from mimids.mls.code_points import ContentType, WireFormat
from mimids.mls.framing import MLSMessage, PrivateMessage
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import CommitData, CreateGroupRequest, Message, SendRequest

SUITE: Final = CipherSuite(1)
GROUP_ID_OCTETS: Final = 16
SENDER_DATA_OCTETS: Final = 28
REST_OCTETS: Final = 96  # the size of signature, lengths and tag in a real message

Random = Callable[[int], bytes]


@attrs.frozen
class PretendGroup:
    """A group in one epoch of one branch. Two commits from the same object make a fork.

    `random(n)` returns n octets; a seeded one makes the test repeatable.
    """

    hub: ProviderId
    group_id: GroupId
    epoch: int
    key: PartitionKey
    random: Random = attrs.field(default=secrets.token_bytes, repr=False, eq=False)

    @classmethod
    def at(cls, hub: str, *, random: Random = secrets.token_bytes) -> PretendGroup:
        """Return a group in its first epoch, to be created at the hub with `creation()`."""
        return cls(
            ProviderId(hub), GroupId(random(GROUP_ID_OCTETS)), 0, PartitionKey(random(PartitionKey.SIZE)), random
        )

    def creation(self) -> CreateGroupRequest:
        """Return the request that creates the group in this epoch."""
        return CreateGroupRequest(self.group_id, MLS10, SUITE, self.key, None, None, None)

    def message(self, content: bytes) -> SendRequest:
        """Return an application message; `content_of` returns its content."""
        return SendRequest(self._private(ContentType.APPLICATION, content), self.key, None)

    def commit(self, content: bytes = b"") -> tuple[SendRequest, PretendGroup]:
        """Return a commit, and the group in the next epoch."""
        following = attrs.evolve(self, epoch=self.epoch + 1, key=PartitionKey(self.random(PartitionKey.SIZE)))
        data = CommitData(following.key, None, None)
        return SendRequest(self._private(ContentType.COMMIT, content), self.key, data), following

    def _private(self, kind: ContentType, content: bytes) -> MLSMessage:
        sender_data = self.random(SENDER_DATA_OCTETS)  # makes all messages different
        ciphertext = content + self.random(REST_OCTETS)
        private = PrivateMessage(self.group_id, self.epoch, kind, b"", sender_data, ciphertext)
        return decode(MLSMessage, encode(MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, private)))


def content_of(message: Message | MLSMessage) -> bytes:
    """Return the content of a message of a `PretendGroup`; raise `TypeError` for any other message."""
    mls = message.message if isinstance(message, Message) else message
    if not isinstance(mls.message, PrivateMessage):
        raise TypeError("not a message of a PretendGroup")
    return mls.message.ciphertext[:-REST_OCTETS]
