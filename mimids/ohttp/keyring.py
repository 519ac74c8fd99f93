"""Rotation of the gateway's keys: when each key is made, served to clients, still accepted, and deleted.

All times are seconds since the epoch. The lifetime of a key:

    created_at                      + rotate                                            retire_at
    |  served to clients             |  grace: decrypts requests, no longer served       |  deleted
                                                                    not_after |  margin  |

The next key is served from `rotation_due_at` on. It is stored STORED_AHEAD_SECONDS earlier, so that all processes of
the provider know it before a client may use it. A client may use and cache a key configuration until its not_after. The
margin after not_after allows for requests under way and for clocks that differ. If the rotation is late, the key is
served until not_after. After that no key is served, since a client could use the key beyond its lifetime.

A client refuses two key sets whose not_after are close together (`keys_signature.APART_SECONDS`), so if two keys are
made soon after one another, their not_after are set far enough apart.

A clock may jump. A key that was made while the clock was ahead has a created_at in the future. It gets new times,
because otherwise it would be served for too long.
"""

from __future__ import annotations

from typing import Final

import attrs

from mimids.ohttp.at_rest import OperatorKey, protect, unprotect
from mimids.ohttp.config import encode_keys, key_config
from mimids.ohttp.hpke import PrivateKey
from mimids.ohttp.keys_signature import APART_SECONDS
from mimids.wire.codec import OPAQUE_V, UINT8, UINT64
from mimids.wire.declare import encode, struct, wire

MARGIN_SECONDS: Final = 600
AHEAD_SECONDS: Final = 3600  # a created_at this far in the future shows that the clock was ahead when the key was made
STORED_AHEAD_SECONDS: Final = 300  # from storing a key to serving it; every process reads it much sooner
TOGETHER_SECONDS: Final = 60  # keys that are made together are dated a second apart, and the last one is served
MAX_AGE_SECONDS: Final = 86400  # caches ask again within a day, so that clients use a new key soon
KEY_IDS: Final = 256


class KeyIdsExhausted(Exception):
    """All 256 key identifiers are used by live keys."""


@attrs.frozen
class Schedule:
    """For how many seconds a key is served, and for how many seconds afterwards it still decrypts requests."""

    rotate: int
    grace: int

    def __attrs_post_init__(self) -> None:
        """Raise `ValueError` if clients would be left without a key, or if key identifiers would run out."""
        if self.rotate <= 0 or self.grace <= MARGIN_SECONDS:
            raise ValueError(f"rotate must be positive, and grace must be longer than {MARGIN_SECONDS} s")
        if self.grace // self.rotate + 2 > KEY_IDS:
            raise ValueError("key identifiers would run out: lower `grace`, or raise `rotate`")


@attrs.frozen
class KeyRow:
    """One key; it is live until `retire_at`, and must then be deleted."""

    key_id: int
    private: PrivateKey
    created_at: int
    retire_at: int

    @property
    def not_after(self) -> int:
        """The last moment at which a client may encapsulate a request with this key."""
        return self.retire_at - MARGIN_SECONDS

    def stored(self, operator_key: OperatorKey | None, nonce: bytes) -> bytes:
        """Return the private key in its stored form; `nonce` is 12 random octets."""
        return protect(self.private, _place(self.key_id, self.created_at, self.retire_at), operator_key, nonce)


def load_row(key_id: int, created_at: int, retire_at: int, stored: bytes, operator_key: OperatorKey | None) -> KeyRow:
    """Return the key of a stored row; raise `KeyUnavailable` if it cannot be read."""
    octets = unprotect(stored, _place(key_id, created_at, retire_at), operator_key)
    return KeyRow(key_id, PrivateKey(octets), created_at, retire_at)


@attrs.frozen
class Served:
    """An `application/ohttp-keys` answer: its body, the not_after that is signed, and the max-age for caches."""

    body: bytes
    not_after: int
    max_age: int


@attrs.frozen
class Keyring:
    """The stored keys of one gateway, live or not, in any order."""

    rows: tuple[KeyRow, ...]
    schedule: Schedule

    def live(self, now: int) -> dict[int, PrivateKey]:
        """Return the keys that decrypt requests at `now`, by identifier."""
        return {row.key_id: row.private for row in self.rows if now < row.retire_at}

    def newest(self, now: int) -> KeyRow | None:
        """Return the newest live key, served or not; None if no key is live."""
        return max((row for row in self.rows if now < row.retire_at), key=lambda row: row.created_at, default=None)

    def current(self, now: int) -> KeyRow | None:
        """Return the key that is served: the newest live key that was not stored ahead; None if no key is live."""
        return self.without(self.stored_ahead(now)).newest(now) or self.newest(now)

    def stored_ahead(self, now: int) -> tuple[KeyRow, ...]:
        """Return the keys that are not served yet."""
        return tuple(row for row in self.rows if row.created_at > now + TOGETHER_SECONDS)

    def without(self, rows: tuple[KeyRow, ...]) -> Keyring:
        """Return a keyring without these keys."""
        return attrs.evolve(self, rows=tuple(row for row in self.rows if row not in rows))

    def outlived(self, now: int) -> tuple[KeyRow, ...]:
        """Return the keys to delete; requests that were encrypted to them can then never be decrypted."""
        return tuple(row for row in self.rows if row.retire_at <= now)

    def rotation_due_at(self, now: int) -> int:
        """Return when the next key that is not stored yet must be served: `now` or earlier if it is due."""
        newest = self.newest(now)
        if newest is None:
            return now
        # The row may have been made under another schedule, so its own retire_at counts.
        return min(newest.created_at + self.schedule.rotate, newest.retire_at - self.schedule.grace)

    def storing_due_at(self, now: int) -> int:
        """Return when the next key must be made and stored, which is some time before it is served."""
        return self.rotation_due_at(now) - min(STORED_AHEAD_SECONDS, self.schedule.rotate // 2)

    def next_row(self, now: int, octets: bytes, *, skipped: int = 0) -> KeyRow:
        """Return the next key, made of 32 random octets and to be served from `now` on; store it before that time.

        Leave out `skipped` identifiers after the newest key's: they may have been given to keys that are not in `rows`.
        """
        live, current = self.live(now), self.current(now)
        newest = max(self.rows, key=lambda row: row.created_at, default=None)
        first = skipped + (0 if newest is None else newest.key_id + 1)
        free = (key_id % KEY_IDS for key_id in range(first, first + KEY_IDS) if key_id % KEY_IDS not in live)
        key_id = next(free, None)
        if key_id is None:
            raise KeyIdsExhausted("all 256 key identifiers are used by live keys")
        # Two keys of one second are ordered, too.
        created_at = now if current is None else max(now, current.created_at + 1)
        retire_at = self._retire_at(created_at, self.rows)
        if skipped:  # keys that are not in `rows` may have been made up to now
            retire_at += self._apart
        return KeyRow(key_id, PrivateKey(octets), created_at, retire_at)

    def misdated(self, now: int) -> tuple[KeyRow, ...]:
        """Return the keys that were made while the clock was ahead."""
        return tuple(row for row in self.rows if row.created_at > now + AHEAD_SECONDS)

    def dated_again(self, row: KeyRow, now: int) -> KeyRow:
        """Return a misdated key with the times of a key that is made now, so that it retires in time."""
        others = tuple(each for each in self.rows if each.created_at <= now + AHEAD_SECONDS)
        return KeyRow(row.key_id, row.private, now, self._retire_at(now, others))

    @property
    def _apart(self) -> int:
        return min(APART_SECONDS, self.schedule.rotate)

    def _retire_at(self, created_at: int, others: tuple[KeyRow, ...]) -> int:
        """Return when a key retires: after the time of the schedule, but not close to when another key retires."""
        retire_at = created_at + self.schedule.rotate + self.schedule.grace
        for other in sorted(each.retire_at for each in others):
            if abs(retire_at - other) < self._apart:
                retire_at = other + self._apart
        return retire_at

    def served(self, now: int) -> Served | None:
        """Return the answer for clients at `now`, with the current key only; None if no key can be served."""
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
