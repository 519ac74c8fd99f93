"""What a claim of KeyPackages is between those who take part in it: tokens, the stock, the gateway."""

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
    """A token whose claims too often end in no Welcome."""

    token: TokenId
    open_claims: int
    banned: bool


@attrs.frozen
class LowStock:
    """A device is running out for this version and suite; with `left` 0 its last resort was handed out, or is next."""

    device: DeviceRow
    version: ProtocolVersion
    cipher_suite: CipherSuite
    left: int


@attrs.frozen
class Outcome:
    """What became of one request: a KeyPackage, or why there is none."""

    key_package: EncodedKeyPackage | None
    refusal: MimiError | None = None

    def result(self) -> KeyPackageResult:
        """Return it as an item of a bundle's answer."""
        if self.key_package is not None:
            return KeyPackageResult(KeyPackageStatus.OK, self.key_package)
        exhausted = isinstance(self.refusal, KeyPackagesExhausted)
        return KeyPackageResult(KeyPackageStatus.EXHAUSTED if exhausted else KeyPackageStatus.REFUSED, None)


@attrs.frozen
class ClaimedPackages:
    """What one transaction handed out, one outcome for each request in order, and who is to be told of it."""

    outcomes: tuple[Outcome, ...]
    low: tuple[LowStock, ...] = ()
    abuses: tuple[Abuse, ...] = ()

    @property
    def consumed(self) -> bool:
        """Tell whether anything was handed out; if not, nothing was written."""
        return any(outcome.key_package is not None for outcome in self.outcomes)


class TokenChecks(Protocol):
    """What a claim asks of tokens."""

    def check(self, tx: Tx, user_id: UserId, token: BearerToken, now: Milliseconds) -> TokenRow | MimiError:
        """Return the token if it may claim a KeyPackage of this user now, else the refusal. Writes nothing."""
        ...

    def charge(self, tx: Tx, token: TokenRow, now: Milliseconds) -> Abuse | None:
        """Count a claim; tell if it meets the abuse rule."""
        ...


class ClaimablePackages(Protocol):
    """What the gateway asks of the stock."""

    def claim_in(self, tx: Tx, requests: Sequence[KeyPackageRequest], now: Milliseconds) -> ClaimedPackages:
        """Hand out what these requests may have, within this transaction."""
        ...

    def announce(self, claimed: ClaimedPackages) -> None:
        """Tell whom it concerns, once the transaction is durable."""
        ...
