"""The KeyPackages of our devices, each handed out once (semantics: key-packages).

A KeyPackage is *in stock* from its upload on. A claim removes an ordinary KeyPackage permanently, and is answered only
after that transaction. A last resort stays in stock. The reference and the init key are stored beyond the KeyPackage's
lifetime, so that nobody can upload the same KeyPackage again and have it handed out twice. The reference of a claimed
KeyPackage says to which device a Welcome goes. Nothing is retried here: if the answer to a claim is lost, the gateway
repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs
import trio

from mimids.ds.key_packages.claiming import ClaimsOfTransaction, look_ahead
from mimids.ds.key_packages.claims import Abuse, ClaimedPackages, ClaimOutcome, CountClaim, LowStock, TokenChecks
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.ports import Clock, Reserve, no_reserve
from mimids.errors import KeyPackagesExhausted, MimiError, TooMany, Unauthenticated
from mimids.mls.faults import Fault, FaultError
from mimids.mls.identity import misspelled, user_of
from mimids.mls.key_package import KeyPackage, KeyPackageIn
from mimids.store import accounts, key_packages, ohttp, provider_keys, tokens
from mimids.store.engine.locks import user_lock
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.key_packages import Candidate, NewKeyPackage, StockRow
from mimids.values import DAY_MILLISECONDS, Device, DeviceRow, Milliseconds, UserRow
from mimids.wire.declare import decode
from mimids.wire.ids import CipherSuite, ProtocolVersion, UserId
from mimids.wire.messages import EncodedKeyPackage, KeyPackageRequest, KeyPackageResult

FORGET_AFTER_DAYS: Final = 90  # a Welcome may come long after the end of the lifetime
ENDED_TOKEN_DAYS: Final = 30  # how long lists show a token after its end
UPLOAD_PACKAGES: Final = 1000  # in one upload: about a second of the writer and of a core
VALIDATED_TOGETHER: Final = 50  # about 25 ms of a thread
SIBLINGS_AT_ONCE: Final = 256  # devices in one answer: first those with a KeyPackage, of these the least recently asked
SWEPT_AT_ONCE: Final = 500  # rows of each table in one transaction
UPLOADS_AT_ONCE: Final = 2  # threads that verify signatures
USERS_REMEMBERED: Final = 10_000

_UPLOADED: Final = "uploaded before"


@attrs.frozen
class RefusedPackage:
    """A KeyPackage that was not stored; `reason` names the rule and its source."""

    index: int
    reason: str


@attrs.frozen
class UploadResult:
    """The result of an upload, and the device's stock after it."""

    accepted: int
    refused: tuple[RefusedPackage, ...]
    stock: tuple[StockRow, ...]


@attrs.frozen(kw_only=True)
class StockRules:
    """The limits of the stock; `low_stock` and `device_packages` are for each device, version and suite."""

    max_lifetime_seconds: int
    low_stock: int = 10
    device_packages: int = 500
    package_octets: int = 65_536


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
        """`on_low` and `on_abuse` are called after the commit, in a Trio task; they must not raise or wait."""
        self._store = store
        self._clock = clock
        self._tokens = tokens
        self._rules = rules
        self._on_low = on_low
        self._on_abuse = on_abuse
        self._verifiers = trio.CapacityLimiter(UPLOADS_AT_ONCE)
        self._users: LeastRecentlyUsed[UserId, UserRow] = LeastRecentlyUsed(USERS_REMEMBERED)  # on the writer's thread

    def change_rules(self, rules: StockRules) -> None:
        """Use other limits from now on; stored KeyPackages stay."""
        self._rules = rules

    # --- our own devices ----------------------------------------------------------------------------------------

    async def upload(
        self, device: Device, packages: Sequence[EncodedKeyPackage], *, replace: bool = False
    ) -> UploadResult:
        """Store KeyPackages; with `replace`, drop the rest of the device's stock in the same transaction.

        KeyPackages that break a rule are refused, and all others are stored. A KeyPackage that was uploaded before is
        refused; if it is in stock, it stays there, even with `replace`. So repeating an upload changes nothing. Raises
        `TooMany`, and `Unauthenticated` if the device was removed meanwhile.
        """
        if len(packages) > UPLOAD_PACKAGES:
            raise TooMany("upload_packages", len(packages))
        now = self._clock.now()
        validated: list[KeyPackage | str] = []
        for start in range(
            0, len(packages), VALIDATED_TOGETHER
        ):  # so that uploads of other devices take turns with this upload
            validated += await trio.to_thread.run_sync(
                partial(self._validate_all, packages[start : start + VALIDATED_TOGETHER], device.user_id, now),
                limiter=self._verifiers,
            )

        def store_all(tx: Tx) -> UploadResult | Unauthenticated:
            standing = accounts.standing_of(tx, device.row)
            if standing is None or not standing.admits(device.token_digest):
                return Unauthenticated()  # the device was removed, suspended or given a new token meanwhile
            if replace:
                keep = [_find_same(tx, each) for each in validated if isinstance(each, KeyPackage)]
                key_packages.drop_stock_but(tx, device.row, {row for row in keep if row is not None})
            room: dict[tuple[ProtocolVersion, CipherSuite], int] = {}
            refused = []
            for index, package in enumerate(validated):
                reason = package if isinstance(package, str) else self._store_one(tx, device.row, package, room, now)
                if reason is not None:
                    refused.append(RefusedPackage(index, reason))
            stored = [each for each in validated if isinstance(each, KeyPackage)]
            provider_keys.add_of_device(tx, device.row, {each.wire.leaf_node.signature_key for each in stored})
            stock = tuple(key_packages.stock_of(tx, device.row, now))
            return UploadResult(len(validated) - len(refused), tuple(refused), stock)

        return await self._store.write_or_refuse(store_all, locks=frozenset((user_lock(device.user_id),)))

    async def drop(self, device: Device) -> int:
        """Drop a device's unclaimed stock with its last resorts; return how many KeyPackages were dropped."""
        return await self._store.write(lambda tx: key_packages.drop_stock(tx, device.row))

    async def stock(self, device: Device) -> tuple[StockRow, ...]:
        """Return how many KeyPackages a device has left, for each version and suite that it has or was asked for."""
        now = self._clock.now()
        return tuple(await self._store.read(lambda tx: key_packages.stock_of(tx, device.row, now)))

    def is_low(self, row: StockRow) -> bool:
        """Tell whether the device should upload more."""
        return row.left < self._rules.low_stock

    def _validate_all(
        self, packages: Sequence[EncodedKeyPackage], user: UserId, now: Milliseconds
    ) -> list[KeyPackage | str]:
        return [self._validate(each, user, now) for each in packages]

    def _validate(self, encoded: EncodedKeyPackage, user: UserId, now: Milliseconds) -> KeyPackage | str:
        """Return the KeyPackage if it is valid and this user's, else the rule that it breaks. Takes about 0.5 ms."""
        if len(encoded) > self._rules.package_octets:
            return "larger than key_package_bytes allows"
        arrived = decode(KeyPackageIn, encoded)
        try:
            package = arrived.validate(now // 1000, max_lifetime_s=self._rules.max_lifetime_seconds)
        except FaultError as error:
            return str(error.fault)
        credential = arrived.leaf_node.credential
        if user_of(credential) != user:
            return str(Fault("the credential is not this user's", "RFC 9420 section 5.3.1"))
        misspelt = misspelled(credential)
        if misspelt is not None:
            return f"the credential's user id: {misspelt}"
        return package

    def _store_one(
        self,
        tx: Tx,
        device: DeviceRow,
        package: KeyPackage,
        room: dict[tuple[ProtocolVersion, CipherSuite], int],
        now: Milliseconds,
    ) -> str | None:
        """Store a KeyPackage, or return why it is refused; `room` caches how many more ordinary ones are allowed."""
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

    # --- claims -------------------------------------------------------------------------------------------------

    async def claim(self, requests: Sequence[KeyPackageRequest]) -> tuple[ClaimOutcome, ...]:
        """Hand out the KeyPackages that these requests may have, in one durable transaction."""
        locks = frozenset(user_lock(each.user_id) for each in requests)
        claimed = await self._store.write(
            lambda tx: self.claim_within(tx, requests, self._clock.now()),
            locks=locks,
            ahead=lambda tx: self.look_ahead(tx, requests),
        )
        self.announce(claimed)
        return claimed.outcomes

    async def claim_siblings(
        self, device: Device, version: ProtocolVersion, suite: CipherSuite, *, reserve: Reserve = no_reserve
    ) -> tuple[KeyPackageResult, ...]:
        """Hand out a KeyPackage of each other device of the user, in one durable transaction.

        There is one result for each device; it is `EXHAUSTED` if the device has no such KeyPackage. `reserve` is called
        first, with the octets of the largest answer. Raises what `reserve` raises, `KeyPackagesExhausted` if no other
        device has such a KeyPackage, and `Unauthenticated` if the requesting device was removed or suspended meanwhile.
        """
        others = await self._store.read(lambda tx: key_packages.count_siblings(tx, device.row))
        await reserve(min(others, SIBLINGS_AT_ONCE) * self._rules.package_octets)
        claimed = await self._store.write_or_refuse(
            lambda tx: self._claim_siblings(tx, device, version, suite, self._clock.now()),
            locks=frozenset((user_lock(device.user_id),)),
        )
        self.announce(claimed)
        return tuple(outcome.result() for outcome in claimed.outcomes)

    def _claim_siblings(
        self, tx: Tx, device: Device, version: ProtocolVersion, suite: CipherSuite, now: Milliseconds
    ) -> ClaimedPackages | MimiError:
        standing = accounts.standing_of(tx, device.row)
        user = accounts.find_user(tx, device.user_id)
        if standing is None or user is None or not standing.admits(device.token_digest):
            return Unauthenticated()
        devices = key_packages.candidates(tx, user, version, suite, now, count_to=self._rules.low_stock + 1)
        turn = 1 + max(each.turn for each in devices)
        others = [each for each in devices if each.device != device.row]
        others.sort(key=lambda each: (each.row is None, each.turn))
        outcomes: list[ClaimOutcome] = []
        low: list[LowStock] = []
        handed_out: list[Candidate] = []
        for each in others[:SIBLINGS_AT_ONCE]:
            if each.row is None or each.body is None:
                outcomes.append(ClaimOutcome(None, KeyPackagesExhausted()))
                continue
            handed_out.append(each)
            if (left := max(0, each.left - 1)) < self._rules.low_stock:
                low.append(LowStock(each.device, version, suite, left))
            outcomes.append(ClaimOutcome(EncodedKeyPackage(each.body), row=each.row))
        key_packages.take_out(tx, [each.row for each in handed_out if each.row is not None and not each.last_resort])
        key_packages.note_claims(tx, [(each.row, None, turn) for each in handed_out if each.row is not None], now)
        claimed = ClaimedPackages(tuple(outcomes), tuple(low))
        return claimed if claimed.consumed else KeyPackagesExhausted()

    def look_ahead(self, tx: Tx, requests: Sequence[KeyPackageRequest]) -> None:
        """Read the rows that the claims of one request will need (`Store.write`, `ahead`), for remembered users."""
        now = self._clock.now()
        for each in requests:
            look_ahead(tx, self._tokens, self._users.peek(each.user_id), each, now, self._rules.low_stock)

    def begin_claims(self, tx: Tx, now: Milliseconds, *, requests: int = 1) -> ClaimsOfTransaction:
        """Begin the claims of a transaction, for this many requests, each for one KeyPackage or for a bundle."""
        return ClaimsOfTransaction(tx, now, self._tokens, self._users, self._rules.low_stock, requests)

    def claim_within(
        self,
        tx: Tx,
        requests: Sequence[KeyPackageRequest],
        now: Milliseconds,
        *,
        count: CountClaim | None = None,
    ) -> ClaimedPackages:
        """Hand out the KeyPackages that these requests may have, within a transaction. Raises no `MimiError`."""
        claims = self.begin_claims(tx, now)
        claimed = claims.claim(requests, count)
        claims.write()
        return claimed

    def announce(self, claimed: ClaimedPackages) -> None:
        """Announce low stock and abuse, once the claim is durable."""
        for low in claimed.low:
            if self._on_low is not None:
                self._on_low(low)
        for abuse in claimed.abuses:
            if self._on_abuse is not None:
                self._on_abuse(abuse)


def _find_same(tx: Tx, package: KeyPackage) -> int | None:
    known = key_packages.find_known(tx, package.ref, package.wire.init_key)
    return known.id if known is not None and known.ref == package.ref else None


def sweep(tx: Tx, now: Milliseconds, *, abuse_window_seconds: int, limit: int = SWEPT_AT_ONCE) -> int:
    """Delete expired stock, old references, ended tokens and expired answers, up to `limit` of each.

    Returns the largest number of rows that were deleted from one table: if it is `limit`, there may be more to delete.
    """
    unlink_before = Milliseconds(now - abuse_window_seconds * 1000)
    _, found = key_packages.sweep(
        tx,
        now,
        forget_before=Milliseconds(now - FORGET_AFTER_DAYS * DAY_MILLISECONDS),
        unlink_before=unlink_before,
        limit=limit,
    )
    found = max(found, tokens.forget_claims(tx, now, before=unlink_before, limit=limit))
    ended = tokens.sweep(tx, Milliseconds(now - ENDED_TOKEN_DAYS * DAY_MILLISECONDS), limit=limit)
    return max(found, ended, ohttp.forget_answers(tx, now, limit=limit))
