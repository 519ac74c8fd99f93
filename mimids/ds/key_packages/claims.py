"""The results of a claim, and the protocols between its parts: tokens, the stock and the gateway."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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


@attrs.frozen
class ChargedToken:
    """A token after a claim; whether it meets the abuse rule, and the abuse if this claim is to be announced."""

    row: TokenRow
    is_abused: bool
    abuse: Abuse | None


class TokenChecks(Protocol):
    """The checks of tokens that a claim needs."""

    @property
    def watches(self) -> bool:
        """Tell whether the token of a claim is stored until the Welcome for the claimed KeyPackage arrives."""
        ...

    def find(self, tx: Tx, user_id: UserId, token: BearerToken) -> TokenRow | None:
        """Return a user's token; None if there is none, or if the user is suspended. Runs one statement."""
        ...

    def check(self, found: TokenRow | None, now: Milliseconds) -> TokenRow | MimiError:
        """Return the token that `find` returned if it may claim a KeyPackage of its user now, else the refusal."""
        ...

    def charge(self, token: TokenRow, now: Milliseconds) -> ChargedToken:
        """Return a token after one more claim. Writes nothing."""
        ...

    def write(self, tx: Tx, charged: Collection[ChargedToken], now: Milliseconds) -> None:
        """Store tokens after their last claim in a transaction."""
        ...


CountClaim = Callable[[TokenRow, Candidate, Milliseconds], MimiError | None]


class Claims(Protocol):
    """The claims of one transaction; see `claiming.ClaimsOfTransaction`."""

    def claim(self, requests: Sequence[KeyPackageRequest], count: CountClaim | None = None) -> ClaimedPackages:
        """Hand out the KeyPackages that these requests may have. Raises no `MimiError`.

        `count` counts a claim; it returns None, or a refusal if there are too many claims.
        """
        ...

    def write(self) -> None:
        """Write what the claims have changed; until then, nothing of it is in the database."""
        ...


class ClaimablePackages(Protocol):
    """The part of the stock that the gateway uses."""

    def look_ahead(self, tx: Tx, requests: Sequence[KeyPackageRequest]) -> None:
        """Read the rows that the claims of one request will need (`Store.write`, `ahead`)."""
        ...

    def begin_claims(self, tx: Tx, now: Milliseconds, *, requests: int = 1) -> Claims:
        """Begin the claims of a transaction, for this many requests, each for one KeyPackage or for a bundle."""
        ...

    def announce(self, claimed: ClaimedPackages) -> None:
        """Announce low stock and abuse, once the transaction is durable."""
        ...
