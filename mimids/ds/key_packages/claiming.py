"""Claims of KeyPackages within one transaction, which may be those of several requests.

A row that several claims need is read once, and then changed here. `ClaimsOfTransaction.write` writes what has changed
at the end, with one statement for each table. So a claim costs less, the more claims a transaction has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import attrs

from mimids.ds.key_packages.claims import (
    Abuse,
    ChargedToken,
    ClaimedPackages,
    ClaimOutcome,
    CountClaim,
    LowStock,
    TokenChecks,
)
from mimids.ds.lru import LeastRecentlyUsed
from mimids.errors import KeyPackagesExhausted, MimiError
from mimids.store import key_packages
from mimids.store.engine.transaction import Tx
from mimids.store.key_packages import Candidate
from mimids.store.tokens import TokenRow
from mimids.values import DeviceRow, Milliseconds, TokenId, UserRow
from mimids.wire.ids import BearerToken, CipherSuite, ProtocolVersion, UserId
from mimids.wire.messages import EncodedKeyPackage, KeyPackageRequest

READ_TOGETHER: Final = 4  # KeyPackages of a device that are read when its first one was handed out

Kind = tuple[UserRow, ProtocolVersion, CipherSuite]
Spare = tuple[int, int, bytes]  # row, 1 for a last resort, body


def look_ahead(
    tx: Tx, tokens: TokenChecks, user: UserRow | None, request: KeyPackageRequest, now: Milliseconds, low_stock: int
) -> None:
    """Make the reads of a claim, if it is the first one of its transaction; `user` is None if it is not known yet."""
    tokens.find(tx, request.user_id, request.bearer_token)
    if user is not None:
        key_packages.candidates(tx, user, request.version, request.cipher_suite, now, count_to=low_stock + 1)


class _Stock:
    """The KeyPackages of one kind that the devices of a user can hand out in this transaction."""

    def __init__(self, kind: Kind, candidates: list[Candidate]) -> None:
        self._candidates = candidates
        self._kind = kind
        self._spare: dict[DeviceRow, list[Spare]] = {}  # what a device hands out after its candidate, in reverse order
        self._used: dict[DeviceRow, int] = {}  # the rows of candidates that were handed out, and have no successor yet

    def candidates_but(self, already: set[DeviceRow], tx: Tx, now: Milliseconds) -> list[Candidate]:
        """Return the candidates of the devices that are not in `already`."""
        for index, each in enumerate(self._candidates if self._used else ()):
            if each.device in self._used and each.device not in already:
                row, last_resort, body = self._next(each.device, self._used.pop(each.device), tx, now)
                self._candidates[index] = each._replace(row=row, last_resort=last_resort, body=body)
        return [each for each in self._candidates if each.device not in already]

    def _next(self, device: DeviceRow, used: int, tx: Tx, now: Milliseconds) -> Spare | tuple[None, None, None]:
        spare = self._spare.get(device)
        if not spare:
            _, version, suite = self._kind
            found = key_packages.following(tx, device, version, suite, now, after=used, limit=READ_TOGETHER)
            spare = self._spare[device] = found[::-1]
        return spare.pop() if spare else (None, None, None)

    def hand_out(self, chosen: Candidate) -> int:
        """Record that the KeyPackage of `chosen` is handed out; return the turn of this claim."""
        turn = 1 + max(each.turn for each in self._candidates)
        if not chosen.last_resort and chosen.row is not None:
            self._used[chosen.device] = chosen.row
        index = self._candidates.index(chosen)
        self._candidates[index] = chosen._replace(turn=turn, left=max(0, chosen.left - 1))
        return turn


@attrs.define(eq=False)
class ClaimsOfTransaction:
    """The claims of one transaction. It is used on the writer's thread, within the transaction."""

    _tx: Tx
    _now: Milliseconds
    _token_checks: TokenChecks
    _users: LeastRecentlyUsed[UserId, UserRow]
    _low_stock: int
    _requests: int  # of the transaction; none of them gets two KeyPackages of one device
    _tokens: dict[tuple[UserId, BearerToken], TokenRow | None] = attrs.field(factory=dict)
    _charged: dict[TokenId, ChargedToken] = attrs.field(factory=dict)
    _stocks: dict[Kind, _Stock] = attrs.field(factory=dict)
    _taken: list[int] = attrs.field(factory=list)
    _noted: list[tuple[int, TokenId | None, int]] = attrs.field(factory=list)

    def claim(self, requests: Sequence[KeyPackageRequest], count: CountClaim | None = None) -> ClaimedPackages:
        """Hand out the KeyPackages that these requests may have. Raises no `MimiError`.

        Requests for the same user, version and suite are answered from distinct devices. `count` counts a claim; it
        returns None, or a refusal if there are too many claims.
        """
        answered: defaultdict[Kind, set[DeviceRow]] = defaultdict(set)
        low: list[LowStock] = []
        abuses: list[Abuse] = []
        outcomes = [self._claim(request, answered, count, low, abuses) for request in requests]
        return ClaimedPackages(tuple(outcomes), tuple(low), tuple(abuses))

    def _claim(
        self,
        request: KeyPackageRequest,
        answered: defaultdict[Kind, set[DeviceRow]],
        count: CountClaim | None,
        low: list[LowStock],
        abuses: list[Abuse],
    ) -> ClaimOutcome:
        token = self._token(request)
        if isinstance(token, MimiError):
            return ClaimOutcome(None, token)
        self._users.put(request.user_id, token.user)
        kind = token.user, request.version, request.cipher_suite
        stock, already = self._stock(kind), answered[kind]
        chosen = _choose(stock.candidates_but(already, self._tx, self._now))
        if chosen is None or chosen.row is None or chosen.body is None:
            return ClaimOutcome(None, KeyPackagesExhausted())
        if count is not None and (refusal := count(token, chosen, self._now)) is not None:
            return ClaimOutcome(None, refusal)
        already.add(chosen.device)
        if not chosen.last_resort:
            self._taken.append(chosen.row)
        watched = token.id if self._token_checks.watches else None
        self._noted.append((chosen.row, watched, stock.hand_out(chosen)))
        left = max(0, chosen.left - 1)
        if left < self._low_stock:
            low.append(LowStock(chosen.device, request.version, request.cipher_suite, left))
        charged = self._charged[token.id] = self._token_checks.charge(token, self._now)
        self._tokens[request.user_id, request.bearer_token] = charged.row
        if charged.abuse is not None:
            abuses.append(charged.abuse)
        return ClaimOutcome(EncodedKeyPackage(chosen.body), row=chosen.row, last_resort=bool(chosen.last_resort))

    def _token(self, request: KeyPackageRequest) -> TokenRow | MimiError:
        """Return the token of a request, or why it may not claim anything."""
        key = request.user_id, request.bearer_token
        try:
            found = self._tokens[key]
        except KeyError:
            found = self._tokens[key] = self._token_checks.find(self._tx, *key)
        return self._token_checks.check(found, self._now)

    def _stock(self, kind: Kind) -> _Stock:
        stock = self._stocks.get(kind)
        if stock is None:
            count_to = self._low_stock + self._requests  # so that the counts stay right, whatever they are lowered by
            found = key_packages.candidates(self._tx, *kind, self._now, count_to=count_to)
            stock = self._stocks[kind] = _Stock(kind, found)
        return stock

    def write(self) -> None:
        """Write what the claims have changed; until then, nothing of it is in the database."""
        if self._noted:
            key_packages.take_out(self._tx, self._taken)
            key_packages.note_claims(self._tx, self._noted, self._now)
            self._token_checks.write(self._tx, self._charged.values(), self._now)


def _choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the next candidate: ordinary KeyPackages before last resorts, then the device asked least recently."""
    available = [each for each in candidates if each.row is not None]
    return min(available, key=lambda each: (each.last_resort, each.turn, each.device), default=None)
