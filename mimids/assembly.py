"""A provider put together from its configuration: services, tables and listeners. Nothing runs yet, nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import attrs
import trio

from mimids.config import Config
from mimids.ds.backoff import Backoff
from mimids.ds.commands import Context
from mimids.ds.devices.accounts import DeviceTokens
from mimids.ds.devices.follower_policy import FollowerPolicy
from mimids.ds.devices.gate import Gate
from mimids.ds.devices.hub_router import HubRouter
from mimids.ds.devices.own_hub import OwnHub
from mimids.ds.devices.remote_hub import RemoteHub
from mimids.ds.devices.streams import Streams
from mimids.ds.following.cursors import Cursors
from mimids.ds.following.delivery import Delivery
from mimids.ds.following.following import Following
from mimids.ds.following.incoming_welcomes import IncomingWelcomes
from mimids.ds.following.outgoing_welcomes import OutgoingWelcomes
from mimids.ds.following.recovery_answers import RecoveryAnswers
from mimids.ds.following.recovery_as_follower import RecoveryAsFollower
from mimids.ds.following.recovery_as_hub import RecoveryAsHub
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.judging import MlsJudge
from mimids.ds.groups.recent import Recent
from mimids.ds.groups.states import States
from mimids.ds.key_packages.claims import Abuse, LowStock
from mimids.ds.key_packages.gateway import Gateway, GatewayBounds
from mimids.ds.key_packages.gateway_keys import OhttpKeys
from mimids.ds.key_packages.relay import OwnGateway, Relay, RelayBounds
from mimids.ds.key_packages.stock import KeyPackageStock, StockRules
from mimids.ds.key_packages.tokens import AbuseRule, Tokens
from mimids.ds.limits.budgets import Budgets
from mimids.ds.limits.rates import KeptRates, ProviderRates, Rate, Rates, UserRates
from mimids.ds.notifier import Notifier, stock_topic
from mimids.ds.ports import Clock, Peers, PeerTransport
from mimids.ds.services import Services
from mimids.ds.terms.accepted import AcceptedTerms
from mimids.ds.terms.banned_providers import BannedProviders
from mimids.ds.terms.evidence import EvidenceReplay
from mimids.ds.terms.offered import OfferedTerms
from mimids.ds.terms.peers import PeersUnderTerms
from mimids.ds.terms.reports import Reports
from mimids.http.api.admission import Authenticator
from mimids.http.api.asgi import application
from mimids.http.api.devices import DEVICES
from mimids.http.api.endpoints import AnyEndpoint, Listener
from mimids.http.api.operator import HOSTS, OPERATOR
from mimids.http.api.operator_socket import OPERATOR_SOCKET
from mimids.http.api.problems import document
from mimids.http.api.providers import PROVIDERS
from mimids.http.api.public import PUBLIC
from mimids.http.api.table import Admit, Table
from mimids.http.console.endpoints import CONSOLE
from mimids.http.header_names import ARRANGEMENT
from mimids.http.peers.calls import HttpPeers
from mimids.http.server.connection import ASGIApp, ConnectionLimits
from mimids.http.server.listener import Bind
from mimids.http.server.tls import Pair, ServerTls, Trust
from mimids.ohttp.keyring import Schedule
from mimids.store.accounts import device_exists
from mimids.store.engine.store import Store
from mimids.telemetry import Telemetry
from mimids.values import Caller, Device, Follower
from mimids.wire.ids import ProviderId

DAY_SECONDS: Final = 86_400
SOCKET: Final = "operator-socket"
PROXY_MODE: Final = 0o660  # of the client listener's Unix socket: a proxy is another user, of the server's group


@attrs.frozen
class ListenerSpec:
    """A listener that is to be opened: where, and what answers there."""

    bind: Bind
    app: ASGIApp


@attrs.frozen
class AssembledProvider:
    """All of a provider; `drain` is set at shutdown."""

    services: Services
    listeners: Mapping[str, ListenerSpec]
    peers: HttpPeers
    drain: trio.Event = attrs.field(factory=trio.Event)

    async def reload_certificates(self) -> None:
        """Take up renewed files; raise `CertificateFileError`, with the old ones in use where it stands."""
        for spec in self.listeners.values():
            if spec.bind.tls is not None:
                spec.bind.tls.reload()
        await self.peers.reload()


def assemble(config: Config, clock: Clock, telemetry: Telemetry, store: Store, peers: HttpPeers) -> AssembledProvider:
    """Put a provider together; raise `CertificateFileError` or `ConfigError` where a file does not do."""
    services = make_services(config, clock, telemetry, store, peers)
    watched: dict[str, Callable[[], attrs.AttrsInstance]] = {
        "store": store.statistics,
        "peers": peers.statistics,
        "gateway": services.gateway.statistics,
        "relay": services.relay.statistics,
        "delivery": services.delivery.statistics,
        "following": services.following.statistics,
        "recovery": services.recovery_as_hub.statistics,
        "streams": services.streams.statistics,
    }
    for name, statistics in watched.items():
        telemetry.watch(name, statistics)
    return AssembledProvider(services, _listener_specs(services), peers)


def make_services(
    config: Config, clock: Clock, telemetry: Telemetry, store: Store, transport: PeerTransport
) -> Services:
    """Make the services of a provider, each with its part of the configuration."""
    provider, limits = config.provider, config.limits
    notifier, mls, recent = Notifier(), MlsJudge(States()), Recent()
    banned = BannedProviders(store, clock)
    offered_terms = OfferedTerms(config, store, clock, banned)
    accepted_terms = AcceptedTerms(config, store, clock, transport, notifier)
    peers: Peers = PeersUnderTerms(transport, accepted_terms, banned)
    user_rates, provider_rates = UserRates(limits, clock), ProviderRates(limits, clock)
    budgets = Budgets(limits, clock)
    gate = Gate(clock, user_rates, budgets)
    hub = LocalHub(config, store, clock, mls, notifier, recent=recent, rates=provider_rates, budgets=budgets)
    ohttp_keys = OhttpKeys(
        store,
        clock,
        provider,
        Schedule(config.ohttp.rotate_days * DAY_SECONDS, config.ohttp.grace_days * DAY_SECONDS),
        Context.of(config, clock.now()).operator_key,
    )
    tokens = config.tokens
    key_packages = KeyPackageStock(
        store,
        clock,
        Tokens(AbuseRule(tokens.abuse, tokens.abuse_claims, tokens.abuse_window_hours * 3600)),
        StockRules(
            max_lifetime_seconds=config.key_packages.max_lifetime_days * DAY_SECONDS,
            low_stock=config.key_packages.low_stock_packages,
            device_packages=config.key_packages.device_packages,
            package_octets=limits.key_package_bytes,
        ),
        on_low=partial(_tell_of_low_stock, telemetry, notifier),
        on_abuse=partial(_tell_of_abuse, telemetry),
    )
    gateway = Gateway(
        store,
        clock,
        ohttp_keys.live,
        key_packages,
        document,
        GatewayBounds(
            window_seconds=config.ohttp.replay_window_seconds,
            replay_rows=config.ohttp.replay_max_rows,
            bundle_requests=config.ohttp.bundle_max_requests,
            rate=Rate("gateway_requests_per_second", limits.gateway_requests_per_second, limits.gateway_requests_burst),
        ),
    )
    new_providers = limits.device_new_providers_per_day
    relay = Relay(
        peers,
        clock,
        OwnGateway(provider=provider, answer=gateway.answer, keys=ohttp_keys.served),
        partial(config.federation.allows, us=provider),
        RelayBounds(
            octets=limits.ohttp_bytes,
            seconds=config.federation.answer_seconds,
            fetches=Rate(
                "device_fetches_per_minute", limits.device_fetches_per_minute / 60, limits.device_fetches_burst
            ),
            new_providers=Rate("device_new_providers_per_day", new_providers / DAY_SECONDS, new_providers),
        ),
    )
    backoff = Backoff(config.delivery.backoff_first_seconds, config.delivery.backoff_cap_seconds)
    reports = Reports(config, store, clock, peers, notifier, EvidenceReplay(provider, clock, mls))
    following = Following(
        config, store, clock, peers, mls, notifier, contradicted=partial(_tell_of_contradiction, telemetry, reports)
    )
    cursors = Cursors(store, clock)
    hub_router = HubRouter(
        OwnHub(provider=provider, hub=hub, gate=gate, cursors=cursors, problem=document),
        partial(
            RemoteHub,
            following=following,
            peers=peers,
            gate=gate,
            policy=FollowerPolicy(store, clock, mls, accepted_terms),
            accepted=accepted_terms,
            cursors=cursors,
            problem=document,
        ),
    )
    incoming_welcomes = IncomingWelcomes(store, clock, notifier, provider=provider)

    async def is_known(device: Device) -> bool:
        return await store.read(lambda tx: device_exists(tx, device.row))

    return Services(
        config=config,
        clock=clock,
        telemetry=telemetry,
        store=store,
        peers=peers,
        notifier=notifier,
        recent=recent,
        offered_terms=offered_terms,
        accepted_terms=accepted_terms,
        gate=gate,
        reports=reports,
        rates=KeptRates(store, clock, (*user_rates.all, *provider_rates.all, *budgets.all, *relay.rates)),
        cursors=cursors,
        devices=DeviceTokens(store, provider),
        key_packages=key_packages,
        ohttp_keys=ohttp_keys,
        gateway=gateway,
        relay=relay,
        hub=hub,
        hub_router=hub_router,
        delivery=Delivery(
            store,
            clock,
            peers,
            mls.states,
            notifier,
            recent,
            provider=provider,
            backoff=backoff,
            workers=config.delivery.workers,
            batch_octets=config.delivery.batch_bytes,
        ),
        following=following,
        recovery_answers=RecoveryAnswers(store, mls.states, answer_octets=limits.receive_bytes),
        recovery_as_follower=RecoveryAsFollower(store, clock, peers, provider=provider, backoff=backoff),
        recovery_as_hub=RecoveryAsHub(
            store, clock, peers, mls.states, notifier, following, provider=provider, backoff=backoff
        ),
        incoming_welcomes=incoming_welcomes,
        outgoing_welcomes=OutgoingWelcomes(
            store,
            clock,
            peers,
            notifier,
            incoming_welcomes,
            provider=provider,
            backoff=backoff,
            workers=config.delivery.workers,
        ),
        streams=Streams(
            hub_router,
            incoming_welcomes,
            key_packages,
            cursors,
            notifier,
            clock,
            backoff=backoff,
            problem=document,
            is_known=is_known,
            batch_messages=limits.send_batch_messages,
            device_streams=limits.device_streams,
        ),
    )


def make_app(services: Services, endpoints: Iterable[AnyEndpoint], *, hosts: frozenset[str] | None = None) -> ASGIApp:
    """Return what answers at a listener with these endpoints."""
    config = services.config
    return application(
        Table(
            endpoints,
            services,
            limits=attrs.asdict(config.limits),
            admit=_admission(services),
            telemetry=services.telemetry,
            body_seconds=config.limits.body_seconds,
            stamp=partial(_stamp, services.offered_terms),
            demand=partial(_demand, services.offered_terms),
            hosts=hosts,
        )
    )


def _admission(services: Services) -> Admit:
    config = services.config
    authenticator = Authenticator(config.provider, config.federation, services.devices.authenticate)
    per_minute = config.limits.device_requests_per_minute
    rates = Rates(Rate("device_requests_per_minute", per_minute / 60, per_minute))

    async def admit(kind: type[Caller], headers: Mapping[str, str], names: frozenset[ProviderId] | None) -> Caller:
        caller = await authenticator.admit(kind, headers, names)
        if isinstance(caller, Device):
            rates.take(caller.row, services.clock.now())
        elif isinstance(caller, Follower):
            await services.offered_terms.load(caller.provider)
        return caller

    return admit


def _stamp(offered_terms: OfferedTerms, caller: Caller) -> Sequence[tuple[bytes, bytes]]:
    """Name the current revision of a provider's terms on every answer to it (semantics: terms-and-reports)."""
    revision = offered_terms.revision(caller.provider) if isinstance(caller, Follower) else None
    return () if revision is None else ((ARRANGEMENT.encode(), b"%d" % revision),)


def _demand(offered_terms: OfferedTerms, caller: Caller, endpoint: AnyEndpoint) -> None:
    if isinstance(caller, Follower) and not endpoint.open_without_arrangement:
        offered_terms.require(caller.provider)


def _listener_specs(services: Services) -> dict[str, ListenerSpec]:
    config = services.config
    listen, tls = config.listen, config.tls
    limits = ConnectionLimits(
        connections=listen.connections, message_bytes=config.limits.frame_bytes, send_seconds=listen.stall_seconds
    )
    pair = Pair(tls.certificate, tls.private_key)
    trust = Trust(tls.trust, {name: peer.trust for name, peer in config.providers.items() if peer.trust is not None})
    client_tls = None if listen.client_is_plain else ServerTls(pair)
    operator = [row for row in (*OPERATOR, *CONSOLE) if row.name != "metrics" or config.metrics.enabled]
    public, client, loopback = Listener.PUBLIC.value, Listener.CLIENT.value, Listener.OPERATOR.value
    return {
        public: ListenerSpec(
            Bind(public, str(listen.public), ServerTls(pair, clients=trust), limits),
            make_app(services, (*PUBLIC, *PROVIDERS)),
        ),
        client: ListenerSpec(
            Bind(client, str(listen.client), client_tls, limits, unix_mode=PROXY_MODE), make_app(services, DEVICES)
        ),
        loopback: ListenerSpec(
            Bind(loopback, str(listen.operator), None, limits), make_app(services, operator, hosts=HOSTS)
        ),
        SOCKET: ListenerSpec(
            Bind(SOCKET, f"unix:{config.operator_socket}", None, limits), make_app(services, OPERATOR_SOCKET)
        ),
    }


def _tell_of_low_stock(telemetry: Telemetry, notifier: Notifier, low: LowStock) -> None:
    notifier.notify(stock_topic(low.device))
    telemetry.log.info("low stock", version=low.version, cipher_suite=low.cipher_suite, left=low.left)


def _tell_of_contradiction(telemetry: Telemetry, reports: Reports, contradiction: Contradiction) -> None:
    reports.note_contradiction(contradiction)
    telemetry.log.warning("a hub contradicts itself", peer=contradiction.hub, rule=contradiction.rule)


def _tell_of_abuse(telemetry: Telemetry, abuse: Abuse) -> None:
    telemetry.log.warning("claims without Welcomes", token=abuse.token, open=abuse.open_claims, banned=abuse.banned)
