"""Make all objects of a provider from its configuration: services, endpoint tables, listeners. Nothing runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
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
from mimids.ds.following.receiver import EpochReceiver
from mimids.ds.following.recovery_answers import RecoveryAnswers
from mimids.ds.following.recovery_as_follower import RecoveryAsFollower
from mimids.ds.following.recovery_as_hub import RecoveryAsHub
from mimids.ds.following.sync import Sync
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
from mimids.ds.limits.rates import KeptRates, ProviderRates, Rate, UserRates
from mimids.ds.notifier import Notifier, stock_topic
from mimids.ds.ports import Clock, Peers, PeerTransport
from mimids.ds.services import Services
from mimids.ds.terms.accepted import AcceptedTerms
from mimids.ds.terms.banned_providers import BannedProviders
from mimids.ds.terms.evidence import EvidenceReplay
from mimids.ds.terms.offered import OfferedTerms
from mimids.ds.terms.peers import PeersUnderTerms
from mimids.ds.terms.reports import Reports
from mimids.ds.upkeep.sweeper import Sweeper
from mimids.http.api.problems import document
from mimids.http.peers.calls import HttpPeers
from mimids.listeners import ListenerSpec, make_listeners
from mimids.ohttp.keyring import Schedule
from mimids.store.accounts import device_exists
from mimids.store.engine.store import Store
from mimids.telemetry import Telemetry
from mimids.values import Device

DAY_SECONDS: Final = 86_400


@attrs.frozen
class AssembledProvider:
    """All objects of a provider. Shutdown sets `drain`."""

    services: Services
    listeners: Mapping[str, ListenerSpec]
    peers: HttpPeers
    drain: trio.Event = attrs.field(factory=trio.Event)

    async def reload_certificates(self) -> None:
        """Read certificate and trust files again, for new connections.

        Raises `CertificateFileError` for a file that cannot be used; its listener keeps the old certificate.
        """
        for spec in self.listeners.values():
            if spec.bind.tls is not None:
                spec.bind.tls.reload()
        await self.peers.reload()


def assemble(config: Config, clock: Clock, telemetry: Telemetry, store: Store, peers: HttpPeers) -> AssembledProvider:
    """Make all parts of a provider; raise `CertificateFileError` or `ConfigError` if a file cannot be used."""
    services = make_services(config, clock, telemetry, store, peers)
    watched: dict[str, Callable[[], attrs.AttrsInstance]] = {
        "store": store.statistics,
        "peers": peers.statistics,
        "gateway": services.gateway.statistics,
        "relay": services.relay.statistics,
        "delivery": services.delivery.statistics,
        "following": services.epoch_receiver.statistics,
        "recovery": services.recovery_as_hub.statistics,
        "streams": services.streams.statistics,
        "sweeper": services.sweeper.statistics,
    }
    for name, statistics in watched.items():
        telemetry.watch(name, statistics)
    return AssembledProvider(services, make_listeners(services), peers)


def watched_files(config: Config) -> tuple[Path, ...]:
    """Return every certificate, key and trust file of a configuration, for the certificate watch."""
    files = [config.tls.certificate, config.tls.private_key, *config.tls.presented, config.tls.trust]
    files += [peer.trust for peer in config.providers.values()]
    return tuple(dict.fromkeys(path for path in files if path is not None))


# --- services -----------------------------------------------------------------------------------------------------


# Longer than 40 lines: one statement for each service, in the order in which they need each other.
def make_services(
    config: Config, clock: Clock, telemetry: Telemetry, store: Store, transport: PeerTransport
) -> Services:
    """Make the services of a provider and connect them; `transport` is the way to other providers."""
    provider, limits = config.provider, config.limits
    notifier, mls, recent = Notifier(), MlsJudge(States()), Recent()
    backoff = Backoff(config.delivery.backoff_first_seconds, config.delivery.backoff_cap_seconds)
    banned = BannedProviders(store, clock)
    offered_terms = OfferedTerms(config, store, clock, banned)
    accepted_terms = AcceptedTerms(config, store, clock, transport, notifier)
    peers: Peers = PeersUnderTerms(transport, accepted_terms, banned)

    user_rates, provider_rates = UserRates(limits, clock), ProviderRates(limits, clock)
    budgets = Budgets(limits, clock)
    gate = Gate(clock, user_rates, budgets)
    hub = LocalHub(config, store, clock, mls, notifier, recent=recent, rates=provider_rates, budgets=budgets)

    ohttp_keys = _make_ohttp_keys(config, store, clock)
    key_packages = _make_stock(config, store, clock, telemetry, notifier)
    gateway = _make_gateway(config, store, clock, ohttp_keys, key_packages)
    relay = _make_relay(config, clock, peers, gateway, ohttp_keys)

    reports = Reports(config, store, clock, peers, notifier, EvidenceReplay(provider, clock, mls))
    contradicted = partial(_on_contradiction, telemetry, reports)
    receiver = EpochReceiver(config, store, clock, mls, notifier, contradicted=contradicted)
    following = Following(config, store, clock, peers, mls.states, receiver)
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
    workers = config.delivery.workers
    incoming_welcomes = IncomingWelcomes(store, clock, notifier, provider=provider)
    outgoing_welcomes = OutgoingWelcomes(
        store, clock, peers, notifier, incoming_welcomes, provider=provider, backoff=backoff, workers=workers
    )
    streams = _make_streams(
        config, store, clock, notifier, hub_router, incoming_welcomes, key_packages, cursors, backoff
    )

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
            workers=workers,
            batch_octets=config.delivery.batch_bytes,
        ),
        epoch_receiver=receiver,
        following=following,
        sync=Sync(store, clock, peers, provider=provider),
        recovery_answers=RecoveryAnswers(store, mls.states, answer_octets=limits.receive_bytes),
        recovery_as_follower=RecoveryAsFollower(store, clock, peers, provider=provider, backoff=backoff),
        recovery_as_hub=RecoveryAsHub(
            store, clock, peers, mls.states, notifier, receiver, provider=provider, backoff=backoff
        ),
        incoming_welcomes=incoming_welcomes,
        outgoing_welcomes=outgoing_welcomes,
        streams=streams,
        sweeper=Sweeper(config, store, clock, notifier, recent, telemetry.log),
    )


def _make_ohttp_keys(config: Config, store: Store, clock: Clock) -> OhttpKeys:
    schedule = Schedule(config.ohttp.rotate_days * DAY_SECONDS, config.ohttp.grace_days * DAY_SECONDS)
    operator_key = Context.of(config, clock.now()).operator_key
    return OhttpKeys(store, clock, config.provider, schedule, operator_key)


def _make_stock(
    config: Config, store: Store, clock: Clock, telemetry: Telemetry, notifier: Notifier
) -> KeyPackageStock:
    tokens = config.tokens
    return KeyPackageStock(
        store,
        clock,
        Tokens(AbuseRule(tokens.abuse, tokens.abuse_claims, tokens.abuse_window_hours * 3600)),
        StockRules(
            max_lifetime_seconds=config.key_packages.max_lifetime_days * DAY_SECONDS,
            low_stock=config.key_packages.low_stock_packages,
            device_packages=config.key_packages.device_packages,
            package_octets=config.limits.key_package_bytes,
        ),
        on_low=partial(_on_low_stock, telemetry, notifier),
        on_abuse=partial(_on_abuse, telemetry),
    )


def _make_gateway(
    config: Config, store: Store, clock: Clock, keys: OhttpKeys, key_packages: KeyPackageStock
) -> Gateway:
    limits = config.limits
    bounds = GatewayBounds(
        window_seconds=config.ohttp.replay_window_seconds,
        replay_rows=config.ohttp.replay_max_rows,
        bundle_requests=config.ohttp.bundle_max_requests,
        rate=Rate("gateway_requests_per_second", limits.gateway_requests_per_second, limits.gateway_requests_burst),
    )
    return Gateway(store, clock, keys.live, key_packages, document, bounds)


def _make_relay(config: Config, clock: Clock, peers: Peers, gateway: Gateway, keys: OhttpKeys) -> Relay:
    limits = config.limits
    per_minute, burst = limits.device_fetches_per_minute, limits.device_fetches_burst
    new_providers = limits.device_new_providers_per_day
    return Relay(
        peers,
        clock,
        OwnGateway(provider=config.provider, answer=gateway.answer, keys=keys.served),
        partial(config.federation.allows, us=config.provider),
        RelayBounds(
            octets=limits.ohttp_bytes,
            seconds=config.federation.answer_seconds,
            fetches=Rate("device_fetches_per_minute", per_minute / 60, burst),
            new_providers=Rate("device_new_providers_per_day", new_providers / DAY_SECONDS, new_providers),
        ),
    )


def _make_streams(
    config: Config,
    store: Store,
    clock: Clock,
    notifier: Notifier,
    hub_router: HubRouter,
    welcomes: IncomingWelcomes,
    key_packages: KeyPackageStock,
    cursors: Cursors,
    backoff: Backoff,
) -> Streams:
    async def is_known(device: Device) -> bool:
        return await store.read(lambda tx: device_exists(tx, device.row))

    return Streams(
        hub_router,
        welcomes,
        key_packages,
        cursors,
        notifier,
        clock,
        backoff=backoff,
        problem=document,
        is_known=is_known,
        batch_messages=config.limits.send_batch_messages,
        device_streams=config.limits.device_streams,
    )


def _on_low_stock(telemetry: Telemetry, notifier: Notifier, low: LowStock) -> None:
    notifier.notify(stock_topic(low.device))
    telemetry.log.info("low stock", version=low.version, cipher_suite=low.cipher_suite, left=low.left)


def _on_contradiction(telemetry: Telemetry, reports: Reports, contradiction: Contradiction) -> None:
    reports.note_contradiction(contradiction)
    telemetry.log.warning("a hub contradicts itself", peer=contradiction.hub, rule=contradiction.rule)


def _on_abuse(telemetry: Telemetry, abuse: Abuse) -> None:
    telemetry.log.warning("claims without Welcomes", token=abuse.token, open=abuse.open_claims, banned=abuse.banned)
