"""KeyPackages: taken from our devices, each handed out once (semantics: key-packages).

A KeyPackage is *in stock* from its upload on. A claim takes the ordinary one out for good, in the transaction that the
answer waits for; a last resort stays. Reference and init key are remembered beyond the lifetime, so that none comes
in, and thereby goes out, twice; a claimed reference leads a Welcome to its device. All of it survives a restart,
nothing is retried here: a claim whose answer got lost is the gateway's to give again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import attrs
import trio

from mimids.ds.key_packages.claims import Abuse, ClaimedPackages, LowStock, Outcome, TokenChecks
from mimids.ds.ports import Clock
from mimids.errors import KeyPackagesExhausted, MimiError, TooMany, Unauthenticated
from mimids.mls.faults import Fault, Invalid
from mimids.mls.identity import user_id
from mimids.mls.key_package import KeyPackage, KeyPackageIn
from mimids.store import accounts, key_packages, ohttp, tokens
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.key_packages import Candidate, NewKeyPackage, StockRow
from mimids.values import Device, DeviceRow, Milliseconds, UserRow
from mimids.wire.declare import decode
from mimids.wire.ids import CipherSuite, ProtocolVersion, UserId
from mimids.wire.messages import EncodedKeyPackage, KeyPackageRequest

DAY_MILLISECONDS: Final = 86_400_000
FORGET_AFTER_DAYS: Final = 90  # a Welcome may come long after the lifetime: its group counts the days, not we
ENDED_TOKEN_DAYS: Final = 30  # how long lists still show it
UPLOAD_PACKAGES: Final = 1000  # in one upload: a second or so of the writer's and a core's time
UPLOADS_AT_ONCE: Final = 2  # threads that verify signatures

_UPLOADED: Final = "uploaded before"


@attrs.frozen
class RefusedPackage:
    """A KeyPackage that was not taken; `reason` names the rule and where it stands."""

    index: int
    reason: str


@attrs.frozen
class UploadResult:
    """What became of an upload, and the device's stock after it."""

    accepted: int
    refused: tuple[RefusedPackage, ...]
    stock: tuple[StockRow, ...]


@attrs.frozen(kw_only=True)
class StockRules:
    """What is taken and kept; numbers are for each device, version and suite."""

    max_lifetime_seconds: int
    low_stock: int = 10
    device_packages: int = 500
    package_octets: int = 65_536
    bundle_requests: int = 64


class KeyPackageStock:
    """The stock of all our devices."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        tokens: TokenChecks,
        rules: StockRules,
        *,
        on_low: Callable[[LowStock], None] | None = None,
        on_abuse: Callable[[Abuse], None] | None = None,
    ) -> None:
        """`on_low` and `on_abuse` are called after the commit, in a trio task; they must not raise or wait."""
        self._store = store
        self._clock = clock
        self._tokens = tokens
        self._rules = rules
        self._on_low = on_low
        self._on_abuse = on_abuse
        self._verifying = trio.CapacityLimiter(UPLOADS_AT_ONCE)

    # --- our own devices ----------------------------------------------------------------------------------------

    async def upload(
        self, device: Device, packages: Sequence[EncodedKeyPackage], *, replace: bool = False
    ) -> UploadResult:
        """Take KeyPackages into stock; with `replace` whatever else the device has there is dropped with it.

        Each that breaks a rule is refused by itself. One that was uploaded before is refused, and stays in stock
        where it is there, with `replace` too: repeating an upload changes nothing. Raises `TooMany`, and
        `Unauthenticated` if the device was removed meanwhile.
        """
        if len(packages) > UPLOAD_PACKAGES:
            raise TooMany("upload_packages", len(packages))
        now = self._clock.now()
        judged = await trio.to_thread.run_sync(
            lambda: [self._judge(each, device.user_id, now) for each in packages], limiter=self._verifying
        )

        def take_in(tx: Tx) -> UploadResult:
            if not accounts.device_exists(tx, device.row):
                raise Unauthenticated
            if replace:
                keep = [_find_same(tx, each) for each in judged if isinstance(each, KeyPackage)]
                key_packages.drop_stock_but(tx, device.row, {row for row in keep if row is not None})
            room: dict[tuple[ProtocolVersion, CipherSuite], int] = {}
            refused = []
            for index, package in enumerate(judged):
                reason = package if isinstance(package, str) else self._take_in(tx, device.row, package, room, now)
                if reason is not None:
                    refused.append(RefusedPackage(index, reason))
            stock = tuple(key_packages.stock_of(tx, device.row, now))
            return UploadResult(len(judged) - len(refused), tuple(refused), stock)

        return await self._store.write(take_in)

    async def drop(self, device: Device) -> int:
        """Drop a device's unclaimed stock, last resorts too; return how many."""
        return await self._store.write(lambda tx: key_packages.drop_stock(tx, device.row))

    async def stock(self, device: Device) -> tuple[StockRow, ...]:
        """Return what a device has left, for each version and suite that it has stock for or was asked for."""
        now = self._clock.now()
        return tuple(await self._store.read(lambda tx: key_packages.stock_of(tx, device.row, now)))

    def is_low(self, row: StockRow) -> bool:
        """Tell whether the device should upload more."""
        return row.left < self._rules.low_stock

    def _judge(self, encoded: EncodedKeyPackage, user: UserId, now: Milliseconds) -> KeyPackage | str:
        """Return the KeyPackage if it is sound and this user's, else the rule that it breaks. Takes about 0.5 ms."""
        if len(encoded) > self._rules.package_octets:
            return "larger than key_package_bytes allows"
        arrived = decode(KeyPackageIn, encoded)
        try:
            package = arrived.validate(now // 1000, max_lifetime_s=self._rules.max_lifetime_seconds)
        except Invalid as error:
            return str(error.fault)
        if user_id(arrived.leaf_node.credential) != user:
            return str(Fault("the credential is not this user's", "RFC 9420 section 5.3.1"))
        return package

    def _take_in(
        self,
        tx: Tx,
        device: DeviceRow,
        package: KeyPackage,
        room: dict[tuple[ProtocolVersion, CipherSuite], int],
        now: Milliseconds,
    ) -> str | None:
        """Put one into stock, or return why not; `room` is how many more ordinary ones fit, where that is known."""
        arrived = package.wire
        known = key_packages.find_known(tx, package.ref, arrived.init_key)
        if known is not None:
            same = known.ref == package.ref
            return _UPLOADED if same else str(Fault("its init key was uploaded before", "RFC 9420 section 10"))
        if not package.last_resort:
            queue, most = (arrived.version, arrived.cipher_suite), self._rules.device_packages
            if queue not in room:
                room[queue] = most - key_packages.count_ordinary(tx, device, *queue, now, at_most=most)
            if not room[queue]:
                return "more than device_packages allows"
            room[queue] -= 1
        key_packages.insert(
            tx,
            NewKeyPackage(
                device=device,
                version=arrived.version,
                cipher_suite=arrived.cipher_suite,
                ref=package.ref,
                init_key=arrived.init_key,
                last_resort=package.last_resort,
                expires_at=Milliseconds((package.not_after + 1) * 1000),
                body=package.encoded,
            ),
        )
        return None

    # --- whoever has a token ------------------------------------------------------------------------------------

    async def claim(self, requests: Sequence[KeyPackageRequest]) -> tuple[Outcome, ...]:
        """Hand out what these requests may have, in one durable transaction; raise `TooMany`."""
        claimed = await self._store.write(lambda tx: self.claim_in(tx, requests, self._clock.now()))
        self.announce(claimed)
        return claimed.outcomes

    def claim_in(self, tx: Tx, requests: Sequence[KeyPackageRequest], now: Milliseconds) -> ClaimedPackages:
        """Hand out what these requests may have; a part of whatever transaction it stands in. Raises nothing.

        Requests for the same user, version and suite are answered by distinct devices.
        """
        answered: defaultdict[tuple[UserRow, ProtocolVersion, CipherSuite], set[DeviceRow]] = defaultdict(set)
        outcomes: list[Outcome] = []
        low: list[LowStock] = []
        abuses: list[Abuse] = []
        enough = self._rules.low_stock
        for request in requests:
            token = self._tokens.check(tx, request.user_id, request.bearer_token, now)
            if isinstance(token, MimiError):
                outcomes.append(Outcome(None, token))
                continue
            version, suite = request.version, request.cipher_suite
            already = answered[token.user, version, suite]
            devices = key_packages.candidates(tx, token.user, version, suite, now, count_to=enough + 1)
            chosen = _choose([each for each in devices if each.device not in already])
            if chosen is None or chosen.row is None or chosen.body is None:
                outcomes.append(Outcome(None, KeyPackagesExhausted()))
                continue
            already.add(chosen.device)
            if not chosen.last_resort:
                key_packages.take_out(tx, chosen.row)
            key_packages.note_claim(tx, chosen.row, token.id, 1 + max(each.turn for each in devices), now)
            abuse = self._tokens.charge(tx, token, now)
            if abuse is not None:
                abuses.append(abuse)
            left = max(0, chosen.left - 1)
            if left < enough:
                low.append(LowStock(chosen.device, version, suite, left))
            outcomes.append(Outcome(EncodedKeyPackage(chosen.body)))
        return ClaimedPackages(tuple(outcomes), tuple(low), tuple(abuses))

    def announce(self, claimed: ClaimedPackages) -> None:
        """Tell whom it concerns of low stock and abuse, once the claim is durable."""
        for low in claimed.low:
            if self._on_low is not None:
                self._on_low(low)
        for abuse in claimed.abuses:
            if self._on_abuse is not None:
                self._on_abuse(abuse)


def _choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return whose turn it is: ordinary KeyPackages before any last resort, then the device asked least recently."""
    able = [each for each in candidates if each.row is not None]
    return min(able, key=lambda each: (each.last_resort, each.turn, each.device), default=None)


def _find_same(tx: Tx, package: KeyPackage) -> int | None:
    known = key_packages.find_known(tx, package.ref, package.wire.init_key)
    return known.id if known is not None and known.ref == package.ref else None


def sweep(tx: Tx, now: Milliseconds, *, abuse_window_seconds: int) -> int:
    """Drop what is over: expired stock (returned: how much), forgotten references, ended tokens, old replays."""
    dropped = key_packages.sweep(
        tx,
        now,
        forget_before=Milliseconds(now - FORGET_AFTER_DAYS * DAY_MILLISECONDS),
        unlink_before=Milliseconds(now - abuse_window_seconds * 1000),
    )
    tokens.sweep(tx, Milliseconds(now - ENDED_TOKEN_DAYS * DAY_MILLISECONDS))
    ohttp.forget_answers(tx, now)
    return dropped
