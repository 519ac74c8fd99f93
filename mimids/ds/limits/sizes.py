"""Limits on the sizes of a message, its GroupInfo and its Welcome (semantics: limits-and-retention)."""

from __future__ import annotations

from mimids.config import Limits
from mimids.errors import TooLarge
from mimids.mls.framing import MLSMessage
from mimids.wire.messages import CommitData


def check_sizes(limits: Limits, message: MLSMessage, data: CommitData | None) -> None:
    """Raise `TooLarge` if a message, its GroupInfo or its Welcome has more octets than its limit."""
    if len(message.encoded) > limits.message_bytes:
        raise TooLarge("message_bytes", len(message.encoded))
    if data is None:
        return
    if data.group_info is not None:
        _check("group_info_bytes", limits.group_info_bytes, data.group_info)
    if data.welcome_data is not None:
        _check("welcome_bytes", limits.welcome_bytes, data.welcome_data.welcome)


def _check(limit: str, allowed: int, message: MLSMessage) -> None:
    octets = len(message.encoded)
    if octets > allowed:
        raise TooLarge(limit, octets)
