"""The key package services on a real store, without HTTP: stock, tokens and gateway, with a stopped clock."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from mimids.ds.devices.accounts import add_device, add_user
from mimids.ds.key_packages.claims import Abuse, LowStock
from mimids.ds.key_packages.gateway import Gateway, GatewayBounds
from mimids.ds.key_packages.gateway_keys import OhttpKeys
from mimids.ds.key_packages.stock import KeyPackageStock, StockRules
from mimids.ds.key_packages.tokens import AbuseRule, Tokens, TokenTerms, issue
from mimids.ds.limits.rates import Rate
from mimids.http.api.problems import document
from mimids.mls.code_points import ExtensionType
from mimids.mls.leaf_node import Extension, HpkePublicKey, LeafNode, Lifetime
from mimids.ohttp import bhttp
from mimids.ohttp.client import Opener, encapsulate
from mimids.ohttp.config import decode_keys
from mimids.ohttp.hpke import Aead
from mimids.ohttp.keyring import Schedule
from mimids.ohttp.padding import pad_request
from mimids.store import accounts, seen_time
from mimids.store.engine.access import migrate, open_store
from mimids.store.engine.batch import Faults
from mimids.store.engine.locks import Locks
from mimids.store.engine.sqlite import connect
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Ahead, Tx
from mimids.store.seen_time import SeenTime
from mimids.testing.clock import MovableClock
from mimids.values import Device, TokenId
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, BearerToken, CipherSuite, ProtocolVersion, ProviderId, UserId, local_user_id
from mimids.wire.messages import EncodedKeyPackage, KeyPackageBundleRequest, KeyPackageRequest
from tests.support.doubles import SpyLog, stopped_clock
from tests.support.mls_makers import DAY, NOW, Signer, key_package, leaf_node, replace

T = TypeVar("T")

PROVIDER = ProviderId("b.example")
SUITE = CipherSuite(1)
SCHEDULE = Schedule(30 * DAY, 7 * DAY)
UNLIMITED = Rate("no_limit", 0, 0)


def requests_per_minute(count: int) -> Rate:
    """Return the rate of a device's requests, for `CallerRates`."""
    return Rate("device_requests_per_minute", count / 60, count)


_signer = Signer.of(1)


def a_leaf(user_id: UserId, **changed: Any) -> LeafNode:
    """Return a leaf whose lifetime ends 100 days after NOW."""
    lifetime = Lifetime(NOW - DAY, NOW + 100 * DAY)
    return leaf_node(_signer, user_id, **{"origin": lifetime, **changed})


def packages(
    user_id: UserId, count: int, *, last_resort: bool = False, expires: int | None = None
) -> list[EncodedKeyPackage]:
    """Return different KeyPackages of a user; `expires` is their not_after in seconds."""
    changed: dict[str, Any] = {}
    own: tuple[Extension, ...] = ()
    if last_resort:
        last = ExtensionType.LAST_RESORT_KEY_PACKAGE
        own = (Extension(last, b""),)
        base = a_leaf(user_id).capabilities
        changed["capabilities"] = replace(base, extensions=(last,))
    if expires is not None:
        changed["origin"] = Lifetime(NOW - DAY, expires)
    leaf = a_leaf(user_id, **changed)
    return [
        EncodedKeyPackage(
            key_package(_signer, leaf, init_key=HpkePublicKey(secrets.token_bytes(32)), extensions=own).encoded
        )
        for _ in range(count)
    ]


class _Within(Store):
    """A store whose writes are all part of one given transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    async def write(self, work: Callable[[Tx], T], *, locks: Locks | None = None, ahead: Ahead | None = None) -> T:
        return work(self._tx)


@attrs.define(kw_only=True)
class Rig:
    """The running services."""

    path: Path
    store: Store
    clock: MovableClock
    key_packages: KeyPackageStock
    gateway: Gateway
    keys: OhttpKeys
    jobs: trio.Nursery
    low: list[LowStock]
    abuses: list[Abuse]
    log: SpyLog

    async def device(self, name: str = "phone", user: str = "bob") -> Device:
        """Add a device, and its user if needed."""
        user_id = local_user_id(PROVIDER, user)

        def add(tx: Tx) -> Device:
            if accounts.find_user(tx, user_id) is None:
                add_user(tx, PROVIDER, user, self.clock.now(), reuse=True)
            row = add_device(tx, PROVIDER, user, name, self.clock.now()).row
            return Device(PROVIDER, user_id, row, name)

        return await self.store.write(add)

    async def token(self, user: str = "bob", scheme: str = "shared", **terms: Any) -> BearerToken:
        return (await self.issue(user, scheme, **terms))[1]

    async def issue(self, user: str = "bob", scheme: str = "shared", **terms: Any) -> tuple[TokenId, BearerToken]:
        def work(tx: Tx) -> tuple[TokenId, BearerToken]:
            row = accounts.find_user(tx, local_user_id(PROVIDER, user))
            assert row is not None
            issued = issue(tx, row, TokenTerms(scheme, **terms), self.clock.now())
            return issued.id, issued.bearer_token

        return await self.store.write(work)

    async def stocked(self, count: int, *, last_resort: bool = False, user: str = "bob") -> BearerToken:
        """Add a device with this many KeyPackages; return a token for them."""
        device = await self.device(user=user)
        done = await self.key_packages.upload(device, packages(device.user_id, count))
        assert done.accepted == count
        if last_resort:
            await self.key_packages.upload(device, packages(device.user_id, 1, last_resort=True))
        return await self.token(user)

    def encapsulate(
        self,
        content: bytes,
        *,
        method: str = "POST",
        path: str = "/key-packages",
        fields: bhttp.Fields | None = None,
        aead: Aead = Aead.AES_128_GCM,
        indeterminate: bool = False,
        late: int = 0,
        config: bytes | None = None,
    ) -> tuple[bytes, Opener]:
        """Return an encapsulated request, and the opener of its response; `late` shifts its Date, in seconds."""
        if fields is None:
            fields = ((b"content-type", b"application/mimi-ds"), (b"date", self.http_date(late)))
        request = bhttp.Request(method, "https", PROVIDER, path, fields, content)
        return self.seal(bhttp.encode_request(request, indeterminate=indeterminate), aead=aead, config=config)

    def http_date(self, late: int = 0) -> bytes:
        return formatdate(self.clock.now() // 1000 + late, usegmt=True).encode()

    def seal(
        self, request: bytes, *, aead: Aead = Aead.AES_128_GCM, config: bytes | None = None
    ) -> tuple[bytes, Opener]:
        """Return a request encapsulated for `config`, or else for the current key."""
        (key,) = decode_keys(config or self.keys.served().body)
        sealed = encapsulate(key, pad_request(request), secrets.token_bytes(32), aead=aead)
        return sealed.message, sealed.opener

    async def fetch(self, request: KeyPackageRequest, *, late: int = 0) -> bhttp.Response:
        """Request one KeyPackage through the gateway."""
        message, opener = self.encapsulate(encode(request), late=late)
        return bhttp.decode_response(opener.open(await self.gateway.answer(message)))

    async def decide(self, content: bytes, tx: Tx) -> None:
        """Have the gateway answer a request within `tx`, a transaction that is not the store's."""
        await self.another_gateway(_Within(tx)).answer(self.encapsulate(content)[0])

    def another_gateway(self, store: Store) -> Gateway:
        """Return a gateway with the same keys and stock, as after a restart, that answers at once."""
        bounds = GatewayBounds(rate=UNLIMITED, step_seconds=0)
        return Gateway(store, self.clock, self.keys.live, self.keys.look, self.key_packages, document, bounds)

    async def see_time(self) -> None:
        """Store the believed time, as a sweep does."""
        seen = SeenTime(self.clock.now(), self.clock.running(), self.clock.boot())
        await self.store.write(lambda tx: seen_time.save(tx, seen))

    async def left(self) -> int:
        """Return the number of KeyPackages in stock, including last resorts."""
        return int(await self.store.read(lambda tx: tx.all("SELECT count(*) FROM key_packages")[0][0]))


def ask(token: BearerToken, user: str = "bob", suite: int = SUITE, version: int = MLS10) -> KeyPackageRequest:
    return KeyPackageRequest(local_user_id(PROVIDER, user), token, ProtocolVersion(version), CipherSuite(suite))


def bundle(*requests: KeyPackageRequest) -> bytes:
    return encode(KeyPackageBundleRequest(tuple(requests)))


def problem_type(response: bhttp.Response) -> tuple[int, str]:
    """Return status and problem type of a refusal."""
    return response.status, json.loads(response.content)["type"].removeprefix("urn:mimids:problem:")


# Longer than 40 lines: it makes each service, in the order in which they need each other.
@asynccontextmanager
async def running(
    path: Path,
    clock: MovableClock | None = None,
    *,
    rules: StockRules | None = None,
    bounds: GatewayBounds | None = None,
    abuse: AbuseRule | None = None,
    faults: Faults | None = None,
    schedule: Schedule = SCHEDULE,
) -> AsyncIterator[Rig]:
    """Run the services on a database file, which is made if it does not exist."""
    migrate(path)
    clock = clock or stopped_clock(NOW)
    low: list[LowStock] = []
    abuses: list[Abuse] = []
    async with open_store(path, faults=faults) as store, trio.open_nursery() as jobs:
        await jobs.start(store.run)
        key_packages = KeyPackageStock(
            store,
            clock,
            Tokens(abuse or AbuseRule()),
            rules or StockRules(max_lifetime_seconds=366 * DAY, device_packages=2000),
            on_low=low.append,
            on_abuse=abuses.append,
        )
        keys = OhttpKeys(store, clock, PROVIDER, schedule, None)
        await jobs.start(keys.run)
        bounds, log = bounds or GatewayBounds(rate=UNLIMITED, step_seconds=0), SpyLog()
        gateway = Gateway(store, clock, keys.live, keys.look, key_packages, document, bounds, log.telemetry.bound_hit)
        if bounds.step_seconds:
            await jobs.start(gateway.run)
        yield Rig(
            log=log,
            path=path,
            store=store,
            clock=clock,
            key_packages=key_packages,
            gateway=gateway,
            keys=keys,
            jobs=jobs,
            low=low,
            abuses=abuses,
        )
        jobs.cancel_scope.cancel()


@contextmanager
def traced(path: Path) -> Iterator[tuple[Tx, list[str]]]:
    """Give a transaction, rolled back at the end, and the list of the statements it has run."""
    statements: list[str] = []
    with closing(connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.set_trace_callback(statements.append)
        try:
            yield Tx(connection), statements
        finally:
            connection.set_trace_callback(None)
            connection.execute("ROLLBACK")
