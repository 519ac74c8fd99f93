"""What a connection waits for, and how long its peer may be silent meanwhile."""

from __future__ import annotations

from enum import Enum, auto
from math import inf

from mimids.http.server.listener_state import ConnectionLimits


class Phase(Enum):
    """What a connection is waiting for."""

    HANDSHAKE = auto()
    IDLE = auto()  # for the next request
    HEAD = auto()  # for the rest of a head
    BODY = auto()  # for the rest of a body
    ANSWER = auto()  # for the app's answer
    STREAM = auto()  # for messages of either side of a WebSocket


def seconds_allowed(phase: Phase, before: Phase, left: float, received: int, limits: ConnectionLimits) -> float:
    """Return how long the peer may be silent now, after it sent `received` octets.

    `before` is the phase before these octets; `left` is the time that was left of that phase.
    """
    if phase is before and phase in (Phase.IDLE, Phase.HEAD):
        return left  # one deadline for empty lines and one for the head: sending them octet by octet gains no time
    if phase is Phase.IDLE:
        return limits.idle_seconds
    if phase is Phase.HEAD:
        return limits.head_seconds
    if phase is Phase.BODY:
        return body_seconds_allowed(left, received, limits)
    return limits.ping_seconds if phase is Phase.STREAM else inf


def body_seconds_allowed(left: float, received: int, limits: ConnectionLimits) -> float:
    """Return how long the peer may be silent in a body, after it sent `received` octets with `left` seconds to go."""
    return min(left + received / limits.body_bytes_per_second, limits.body_seconds)
