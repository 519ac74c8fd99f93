"""The results of a claim, and the protocols between its parts: tokens, the stock and the gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from mimids.errors import KeyPackagesExhausted, MimiError
from mimids.store.engine.transaction import Tx
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
    """A device has few KeyPackages left for a version and suite; with `left` 0 only its last resort, if it has one."""

    device: DeviceRow
    version: ProtocolVersion
    cipher_suite: CipherSuite
    left: int


@attrs.frozen
class ClaimOutcome:
    """The answer to one request: a KeyPackage or a refusal."""

    key_package: EncodedKeyPackage | None
    refusal: MimiError | None = None

    def result(self) -> KeyPackageResult:
        """Return the item of a bundle's answer."""
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
    """What a claim needs of tokens."""

    def check(self, tx: Tx, user_id: UserId, token: BearerToken, now: Milliseconds) -> TokenRow | MimiError:
        """Return the token if it may claim a KeyPackage of this user now, else the refusal. Writes nothing."""
        ...

    def charge(self, tx: Tx, token: TokenRow, now: Milliseconds) -> Abuse | None:
        """Count a claim; return the abuse if the token now meets the abuse rule."""
        ...


class ClaimablePackages(Protocol):
    """What the gateway needs of the stock."""

    def claim_within(self, tx: Tx, requests: Sequence[KeyPackageRequest], now: Milliseconds) -> ClaimedPackages:
        """Hand out the KeyPackages that these requests may have, within a transaction."""
        ...

    def announce(self, claimed: ClaimedPackages) -> None:
        """Announce low stock and abuse, once the transaction is durable."""
        ...
