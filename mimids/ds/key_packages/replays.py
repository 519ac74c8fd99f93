"""Stored answers, which are repeated when their request comes again, and the share of each user and token in the store.

An answer with a KeyPackage is stored in the transaction of its claim, until the Date of its request has left the
window. An answer whose KeyPackages are all ordinary ones is stored in its sealed form. The octets of these answers are
bounded by the uploads, because an ordinary KeyPackage is handed out once. A last resort is handed out any number of
times, so an answer with a last resort is not stored in its sealed form. Such an answer is sealed again from the nonce
and the time of the first sealing, which gives the same octets. Each KeyPackage of these answers is stored only once.

Shares: the rows of one user, the rows of one token and the octets of one user are bounded, so that the holder of a
token can fill only a small part of the store. The shares are counted in memory, as rates: each rate allows its share
within the time that an answer is kept. Everything here but `ReplayBounds` runs on the writer's thread.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import attrs

from mimids.ds.key_packages.claims import ClaimOutcome
from mimids.ds.limits.rates import Rate, Rates, take_all
from mimids.ds.lru import LeastRecentlyUsed
from mimids.errors import Busy, KeyPackagesExhausted, MimiError, RateLimited
from mimids.store import ohttp
from mimids.store.engine.transaction import Tx
from mimids.store.key_packages import Candidate
from mimids.store.ohttp import Answered, Resealing
from mimids.store.tokens import TokenRow
from mimids.values import Milliseconds
from mimids.wire.messages import EncodedKeyPackage, KeyPackageStatus

FORGOTTEN_AT_ONCE: Final = 5000  # more than are stored in a second
COUNT_INTERVAL_MILLISECONDS: Final = 1000  # between two counts of the stored answers
SHARE_LIMIT: Final = "replay_share"  # the name in the refusal of a user or token that has used up its share
RESEALED_ROW_OCTETS: Final = 256
SMALLEST_ANSWER_OCTETS: Final = 2048  # sealed answers are padded, to less than twice their size
PACKAGES_REMEMBERED: Final = 100_000
_ITEM: Final = struct.Struct(">BQ")  # status, and row of the KeyPackage or 0


@attrs.frozen
class ReplayBounds:
    """The bounds of the store: at most `rows` rows, each kept at most `kept_seconds`, and what follows from these."""

    rows: int
    kept_seconds: int

    @property
    def user_rows(self) -> int:
        """Return how many rows the KeyPackages of one user may have."""
        return max(self.rows // 50, min(self.rows, 100))

    @property
    def token_rows(self) -> int:
        """Return how many rows the claims with one token may have."""
        return max(self.rows // 100, min(self.rows, 100))

    @property
    def octets(self) -> int:
        """Return how many octets all rows together may have: 512 MB for 100,000 rows."""
        return self.rows * 5120

    @property
    def user_octets(self) -> int:
        """Return how many octets the rows of one user may have."""
        return max(self.octets // 32, min(self.octets, 1 << 20))

    def rates(self, limit: int) -> Rates:
        """Return rates that refill `limit` while an answer is kept, so at most twice `limit` is ever stored."""
        return Rates(Rate(SHARE_LIMIT, limit / self.kept_seconds, limit))


@attrs.frozen
class AnswerToKeep:
    """A sealed answer, with the nonce and the time with which it was sealed, to be stored until `keep_until`."""

    enc: bytes
    answered: Answered
    outcomes: tuple[ClaimOutcome, ...]
    nonce: bytes
    sealed_at: Milliseconds
    keep_until: Milliseconds


class ReplayStore:
    """Stores answers and finds them again."""

    def __init__(self, bounds: ReplayBounds) -> None:
        self._bounds = bounds
        self._user_rows = bounds.rates(bounds.user_rows)
        self._token_rows = bounds.rates(bounds.token_rows)
        self._user_octets = bounds.rates(bounds.user_octets)
        self._octets = bounds.rates(bounds.octets)
        self._shared: LeastRecentlyUsed[int, None] = LeastRecentlyUsed(PACKAGES_REMEMBERED)
        self._room, self._counted_at = 0, Milliseconds(0)

    @property
    def rates(self) -> tuple[Rates, ...]:
        """Return the rates of the shares of users and tokens, and of the octets of all answers together."""
        return (self._user_rows, self._token_rows, self._user_octets, self._octets)

    def make_room(self, tx: Tx, now: Milliseconds, *, answers: int) -> None:
        """Find out how many answers can be stored, before up to `answers` are stored in this transaction.

        Once a second, or when there seems to be too little room, expired answers are deleted and the rest are counted.
        In between, each new answer only reduces the room. A transaction that runs twice is counted twice, so the store
        may seem full too early but never too late.
        """
        if self._room < answers or abs(now - self._counted_at) >= COUNT_INTERVAL_MILLISECONDS:
            latest = Milliseconds(now + 2 * self._bounds.kept_seconds * 1000)  # a clock may have been set back a little
            ohttp.forget_answers(tx, now, limit=FORGOTTEN_AT_ONCE, latest=latest)
            self._room, self._counted_at = self._bounds.rows - ohttp.room_taken(tx), now

    def has_room(self, *, beside: int) -> bool:
        """Tell whether another answer can be stored, `beside` those of this transaction that are not stored yet."""
        return self._room > beside

    def count(self, token: TokenRow, candidate: Candidate, now: Milliseconds) -> MimiError | None:
        """Count a claim against the shares of its user and token; return the refusal if a share is used up."""
        octets = max(SMALLEST_ANSWER_OCTETS, 2 * len(candidate.body or b""))
        if candidate.last_resort and candidate.row in self._shared:
            octets = RESEALED_ROW_OCTETS
        used_up = take_all(
            (
                (self._octets, None, octets),
                (self._user_rows, token.user, 1),
                (self._token_rows, token.id, 1),
                (self._user_octets, token.user, octets),
            ),
            now,
        )
        if used_up is self._octets:
            return Busy("the gateway is full of kept answers; try again later", retry_after=self._bounds.kept_seconds)
        if used_up is not None:
            return RateLimited(SHARE_LIMIT, max(1, round(self._bounds.kept_seconds / self._bounds.token_rows)))
        if candidate.last_resort and candidate.row is not None:
            self._shared.put(candidate.row, None)
        return None

    def keep(self, tx: Tx, answers: Sequence[AnswerToKeep]) -> None:
        """Store sealed answers."""
        self._room -= len(answers)
        ordinary = [each for each in answers if not any(outcome.last_resort for outcome in each.outcomes)]
        if ordinary:
            ohttp.keep_answers(tx, [(each.enc, each.answered, each.keep_until) for each in ordinary])
        for each in answers if len(ordinary) < len(answers) else ():
            if any(outcome.last_resort for outcome in each.outcomes):
                self._keep_resealing(tx, each)

    def _keep_resealing(self, tx: Tx, answer: AnswerToKeep) -> None:
        items = bytearray()
        for outcome in answer.outcomes:
            row = 0
            if outcome.key_package is not None and outcome.row is not None:
                row = outcome.row
                ohttp.keep_package(tx, row, outcome.key_package, answer.keep_until)
            items += _ITEM.pack(outcome.result().status, row)
        again = Resealing(answer.nonce, answer.sealed_at, bytes(items))
        ohttp.keep_resealing(tx, answer.enc, answer.answered.digest, again, answer.keep_until)

    def outcomes(self, tx: Tx, resealing: Resealing) -> tuple[ClaimOutcome, ...]:
        """Return the outcomes of an answer that is sealed again."""
        found = []
        for status, row in _ITEM.iter_unpack(resealing.items):
            body = ohttp.kept_package(tx, row) if row else None
            if row and body is None:  # the device of the KeyPackage was removed
                found.append(ClaimOutcome(None, KeyPackagesExhausted()))
                continue
            package = None if body is None else EncodedKeyPackage(body)
            found.append(ClaimOutcome(package, status=KeyPackageStatus(status)))
        return tuple(found)
