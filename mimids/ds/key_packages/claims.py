"""The results of a claim, and the protocols between its parts: tokens, the stock and the gateway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from mimids.errors import KeyPackagesExhausted, MimiError
from mimids.store.engine.transaction import Tx
from mimids.store.key_packages import Candidate
from mimids.store.tokens import TokenRow
from mimids.values import DeviceRow, Milliseconds, TokenId
from mimids.wire.ids import BearerToken, CipherSuite, ProtocolVersion, UserId
from mimids.wire.messages import EncodedKeyPackage, KeyPackageRequest, KeyPackageResult, KeyPackageStatus


@attrs.frozen
class Abuse:
    """A token with too many claims that were not followed by a Welcome."""

    token: TokenId
    open_claims: int
    banned: bool


@attrs.frozen
class LowStock:
    """A device has few KeyPackages left for a version and suite. If `left` is 0, at most its last resort is left."""

    device: DeviceRow
    version: ProtocolVersion
    cipher_suite: CipherSuite
    left: int


@attrs.frozen
class ClaimOutcome:
    """The answer to one request: a KeyPackage or a refusal; during the claim, `row` is the KeyPackage's row."""

    key_package: EncodedKeyPackage | None
    refusal: MimiError | None = None
    row: int | None = None
    last_resort: bool = False
    status: KeyPackageStatus | None = None  # only in a repeated answer

    def result(self) -> KeyPackageResult:
        """Return this outcome as an item of a bundle's answer."""
        if self.status is not None:
            return KeyPackageResult(self.status, self.key_package)
        if self.key_package is not None:
            return KeyPackageResult(KeyPackageStatus.OK, self.key_package)
        exhausted = isinstance(self.refusal, KeyPackagesExhausted)
        return KeyPackageResult(KeyPackageStatus.EXHAUSTED if exhausted else KeyPackageStatus.REFUSED, None)


@attrs.frozen
class ClaimedPackages:
    """What one transaction handed out: an outcome for each request, in order, and what to announce."""

    outcomes: tuple[ClaimOutcome, ...]
    low: tuple[LowStock, ...] = ()
    abuses: tuple[Abuse, ...] = ()

    @property
    def consumed(self) -> bool:
        """Tell whether a KeyPackage was handed out; if not, nothing was written."""
        return any(outcome.key_package is not None for outcome in self.outcomes)


class TokenChecks(Protocol):
    """The checks of tokens that a claim needs."""

    @property
    def watches(self) -> bool:
        """Tell whether the token of a claim is stored until the Welcome for the claimed KeyPackage arrives."""
        ...

    def check(self, tx: Tx, user_id: UserId, token: BearerToken, now: Milliseconds) -> TokenRow | MimiError:
        """Return the token if it may claim a KeyPackage of this user now, else the refusal. Writes nothing."""
        ...

    def charge(self, tx: Tx, token: TokenRow, now: Milliseconds) -> Abuse | None:
        """Count a claim; return the abuse if the token now meets the abuse rule."""
        ...


CountClaim = Callable[[TokenRow, Candidate, Milliseconds], MimiError | None]


class ClaimablePackages(Protocol):
    """The part of the stock that the gateway uses."""

    def look_ahead(self, tx: Tx, requests: Sequence[KeyPackageRequest]) -> None:
        """Read the rows that `claim_within` will need (`Store.write`, `ahead`)."""
        ...

    def claim_within(
        self,
        tx: Tx,
        requests: Sequence[KeyPackageRequest],
        now: Milliseconds,
        *,
        count: CountClaim | None = None,
    ) -> ClaimedPackages:
        """Hand out the KeyPackages that these requests may have, within a transaction.

        `count` counts a claim; it returns None, or a refusal if there are too many claims.
        """
        ...

    def announce(self, claimed: ClaimedPackages) -> None:
        """Announce low stock and abuse, once the transaction is durable."""
        ...
