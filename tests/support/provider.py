"""A provider within the test's process: its certificates, its configuration, and its running jobs."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio
import trustme

from mimids import app
from mimids.assembly import make_services
from mimids.config import Config, parse
from mimids.ds.clock import SystemClock
from mimids.ds.devices import accounts
from mimids.ds.ports import Clock
from mimids.ds.services import Services
from mimids.http.api.endpoints import AnyEndpoint
from mimids.http.server.connection import ASGIApp
from mimids.listeners import make_app
from mimids.store import accounts as store_accounts
from mimids.store.engine.access import migrate, open_store, read_here
from mimids.store.engine.transaction import Tx
from mimids.telemetry import Telemetry
from mimids.wire.ids import local_user_id
from tests.support.doubles import FakePeers, FakePushServices, SpyLog
from tests.support.tables import every_row

HOST = "127.0.0.1"
READERS = 2  # connections to the database


@attrs.frozen
class Authority:
    """A throw-away certificate authority with its files in `directory`."""

    directory: Path
    ca: trustme.CA = attrs.field(factory=trustme.CA)

    @property
    def trust(self) -> Path:
        path = self.directory / "ca.pem"
        if not path.exists():
            self.ca.cert_pem.write_to_path(path)
        return path

    def certify(self, *names: str) -> tuple[Path, Path]:
        """Issue a certificate for these names and return its chain and key; a second call replaces the files."""
        certificate = self.ca.issue_cert(*names)
        chain, key = self.directory / f"{names[0]}.pem", self.directory / f"{names[0]}.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(key)
        return chain, key

    def client_context(self, *names: str) -> ssl.SSLContext:
        """Return a client context that trusts this authority, and presents a certificate for `names` if given."""
        context = ssl.create_default_context(cafile=str(self.trust))
        if names:
            chain, key = self.certify(*names)
            context.load_cert_chain(chain, key)
        return context

    def config(self, provider: str = "a.example", **sections: Mapping[str, Any]) -> Config:
        """Return a configuration with free ports, certificates and a migrated database."""
        chain, key = self.certify(provider)
        table: dict[str, Any] = {
            "provider": provider,
            "data_dir": str(self.directory / provider),
            "listen": {"public": f"{HOST}:0", "client": f"{HOST}:0", "operator": f"{HOST}:0"},
            "tls": {"certificate": str(chain), "private_key": str(key), "trust": str(self.trust)},
        }
        for name, section in sections.items():
            table[name] = {**table.get(name, {}), **section}
        config = parse(table, self.directory)
        config.data_dir.mkdir(exist_ok=True)
        migrate(config.place)
        return config


@asynccontextmanager
async def running(
    config: Config,
    *,
    clock: Clock | None = None,
    telemetry: Telemetry | None = None,
    load_config: Callable[[], Config] | None = None,
) -> AsyncIterator[app.ServingProvider]:
    """Run a whole provider for the block, and drain it at the end."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        run = partial(app.run, config, clock=clock, telemetry=telemetry, stop=stop, load_config=load_config)
        bound = await nursery.start(run)
        yield bound
        stop.set()


@attrs.frozen
class Assembled:
    """A provider without listeners: its services on a real store, with other providers in memory."""

    config: Config
    services: Services
    peers: FakePeers
    log: SpyLog
    push_services: FakePushServices = attrs.field(factory=FakePushServices)

    def app(self, endpoints: Iterable[AnyEndpoint], **options: Any) -> ASGIApp:
        return make_app(self.services, endpoints, **options)

    async def add_device(self, user: str = "alice", name: str = "phone") -> str:
        """Add a device, and its user if needed; return the token of the device."""
        provider, now = self.config.provider, self.services.clock.now()

        def add(tx: Tx) -> str:
            if store_accounts.find_user(tx, local_user_id(provider, user)) is None:
                accounts.add_user(tx, provider, user, now)
            return accounts.add_device(tx, provider, user, name, now).token

        return await self.services.store.write(add)

    def dump(self) -> str:
        """Return the whole database as text, octets in hexadecimal digits."""
        with read_here(self.config.place) as tx:
            rows = [(name, row) for name, found in every_row(tx).items() for row in found]
        return "\n".join(
            f"{name} {[each.hex() if isinstance(each, bytes) else each for each in row]}" for name, row in rows
        )


@asynccontextmanager
async def assembled(config: Config, *, clock: Clock | None = None, is_member: bool = True) -> AsyncIterator[Assembled]:
    """Run the services of a provider for the block, with three jobs: the store, the processes and the OHTTP keys.

    Unless it `is_member`, other processes of the provider tell it nothing, and it does not run their jobs.
    """
    log, peers = SpyLog(config.provider), FakePeers()
    async with open_store(config.place, readers=READERS) as store, trio.open_nursery() as jobs:
        pushes = FakePushServices()
        services = make_services(config, clock or SystemClock(), log.telemetry, store, peers, push_services=pushes)
        await jobs.start(store.run)
        if is_member:
            await jobs.start(services.processes.run)
        await jobs.start(services.ohttp_keys.run)
        yield Assembled(config, services, peers, log, pushes)
        jobs.cancel_scope.cancel()
