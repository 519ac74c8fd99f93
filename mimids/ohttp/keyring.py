"""The gateway's keys through time: when each is made, served, honoured and deleted.

All times are seconds since the epoch. A key's life:

    created_at                      + rotate                                            retire_at
    |  served to clients             |  grace: opens requests, is served no more         |  gone
                                                                    not_after |  margin  |

Its successor is made when `rotation_due_at` has come. A client may use a configuration until its
not_after and cache it no longer; the margin covers a request on its way and clocks that differ. If the
rotation comes late, the key is served on until not_after, and after that none is, rather than one that a
client could hold beyond its life.
"""

from __future__ import annotations

from typing import Final

import attrs

from mimids.ohttp.at_rest import OperatorKey, protect, unprotect
from mimids.ohttp.config import encode_keys, key_config
from mimids.ohttp.hpke import PrivateKey
from mimids.wire.codec import OPAQUE_V, UINT8, UINT64
from mimids.wire.declare import encode, struct, wire

MARGIN_SECONDS: Final = 600
MAX_AGE_SECONDS: Final = 86400  # a cache asks again within a day, so that a new key is taken up soon
KEY_IDS: Final = 256


class KeyIdsExhausted(Exception):
    """All 256 key identifiers belong to live keys."""


@attrs.frozen
class Schedule:
    """For how many seconds a key is served, and for how many more it still opens requests."""

    rotate: int
    grace: int

    def __attrs_post_init__(self) -> None:
        """Refuse what would leave clients without a key, or keys without an identifier."""
        if self.rotate <= 0 or self.grace <= MARGIN_SECONDS:
            raise ValueError(f"rotate must be positive, and grace longer than {MARGIN_SECONDS} s")
        if self.grace // self.rotate + 2 > KEY_IDS:
            raise ValueError("grace is so long, or rotate so short, that key identifiers would run out")


@attrs.frozen
class KeyRow:
    """One key; it is live until `retire_at`, and to be deleted then."""

    key_id: int
    private: PrivateKey
    created_at: int
    retire_at: int

    @property
    def not_after(self) -> int:
        """The last moment at which a client may encapsulate a request with this key."""
        return self.retire_at - MARGIN_SECONDS

    def stored(self, operator_key: OperatorKey | None, nonce: bytes) -> bytes:
        """Return the private key as its row holds it; `nonce` is 12 random octets."""
        return protect(self.private, _place(self.key_id, self.created_at, self.retire_at), operator_key, nonce)


def load_row(key_id: int, created_at: int, retire_at: int, stored: bytes, operator_key: OperatorKey | None) -> KeyRow:
    """Return the key of a stored row; raise `KeyUnavailable` if it cannot be read."""
    octets = unprotect(stored, _place(key_id, created_at, retire_at), operator_key)
    return KeyRow(key_id, PrivateKey(octets), created_at, retire_at)


@attrs.frozen
class Served:
    """An `application/ohttp-keys` answer: the body, what its signature says, and for how long a cache may keep it."""

    body: bytes
    not_after: int
    max_age: int


@attrs.frozen
class Keyring:
    """The keys of one gateway, whichever of them are live, in any order."""

    rows: tuple[KeyRow, ...]
    schedule: Schedule

    def live(self, now: int) -> dict[int, PrivateKey]:
        """Return the keys that open requests at `now`, by identifier."""
        return {row.key_id: row.private for row in self.rows if now < row.retire_at}

    def current(self, now: int) -> KeyRow | None:
        """Return the newest live key."""
        return max((row for row in self.rows if now < row.retire_at), key=lambda row: row.created_at, default=None)

    def outlived(self, now: int) -> tuple[KeyRow, ...]:
        """Return the keys to delete: what was sealed to them stays sealed."""
        return tuple(row for row in self.rows if row.retire_at <= now)

    def rotation_due_at(self, now: int) -> int:
        """Return when the next key is to be made: `now` or earlier if that is overdue."""
        current = self.current(now)
        if current is None:
            return now
        # The row may have been made under another schedule; its own retire_at holds.
        return min(current.created_at + self.schedule.rotate, current.retire_at - self.schedule.grace)

    def next_row(self, now: int, octets: bytes) -> KeyRow:
        """Return the key that succeeds the current one, made of 32 random octets; to be stored before it is served."""
        live, current = self.live(now), self.current(now)
        newest = max(self.rows, key=lambda row: row.created_at, default=None)
        first = 0 if newest is None else newest.key_id + 1
        free = (key_id % KEY_IDS for key_id in range(first, first + KEY_IDS) if key_id % KEY_IDS not in live)
        key_id = next(free, None)
        if key_id is None:
            raise KeyIdsExhausted("256 keys are live")
        created_at = now if current is None else max(now, current.created_at + 1)  # two in one second have an order
        return KeyRow(key_id, PrivateKey(octets), created_at, created_at + self.schedule.rotate + self.schedule.grace)

    def served(self, now: int) -> Served | None:
        """Return what clients are given at `now`: the current key only. None if there is none they could use."""
        current = self.current(now)
        if current is None or current.not_after < now:
            return None
        body = encode_keys((key_config(current.key_id, current.private),))
        return Served(body, current.not_after, min(MAX_AGE_SECONDS, current.not_after - now))


@struct
class _Place:
    label: bytes = wire(OPAQUE_V)
    key_id: int = wire(UINT8)
    created_at: int = wire(UINT64)
    retire_at: int = wire(UINT64)


def _place(key_id: int, created_at: int, retire_at: int) -> bytes:
    return encode(_Place(b"mimids ohttp key", key_id, created_at, retire_at))
