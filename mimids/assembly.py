"""Make all objects of a provider from its configuration: services, endpoint tables, listeners. Nothing runs here.

The file is long because it makes every object of a provider, and passes to each the objects that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from mimids.config import Config
from mimids.ds.backoff import Backoff
from mimids.ds.commands.declare import read_operator_key
from mimids.ds.commands.performing import use_federation_rules
from mimids.ds.departures.departures import Departures
from mimids.ds.departures.provider_keys import ProviderKeys
from mimids.ds.devices.accounts import DeviceTokens
from mimids.ds.devices.follower_policy import FollowerPolicy
from mimids.ds.devices.gate import Gate
from mimids.ds.devices.hub_router import HubRouter
from mimids.ds.devices.last_seen import LastSeen
from mimids.ds.devices.own_hub import OwnHub
from mimids.ds.devices.rechecks import Rechecks
from mimids.ds.devices.remote_hub import RemoteHub
from mimids.ds.devices.sessions import Sessions
from mimids.ds.devices.streams import Streams
from mimids.ds.early_retries import Callers
from mimids.ds.elapsed import PeerDate
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
from mimids.ds.limits.kept_rates import KeptRates
from mimids.ds.limits.new_providers import NewProviders
from mimids.ds.limits.rates import ConfiguredRate, ProviderRates, UserRates
from mimids.ds.limits.shared_rates import TOOK, SharedRates
from mimids.ds.limits.welcomes import WelcomeLimits
from mimids.ds.notifier import OPEN, TELL_OPEN, WAKE_UPS, Notifier, SharedNotifier, heard_topic, stock_topic
from mimids.ds.operator_sessions import OperatorSessions
from mimids.ds.peer_answers import AnswerDecoder
from mimids.ds.ports import Clock, Peers, PeerTransport, PushServices
from mimids.ds.processes import Processes
from mimids.ds.services import Services
from mimids.ds.terms.accepted import AcceptedTerms
from mimids.ds.terms.banned_providers import BannedProviders
from mimids.ds.terms.evidence import EvidenceReplay
from mimids.ds.terms.offered import OfferedTerms
from mimids.ds.terms.peers import PeersUnderTerms
from mimids.ds.terms.reports import Reports
from mimids.ds.upkeep.sweeper import Sweeper
from mimids.ds.wake_ups.job import WakeUps
from mimids.ds.wake_ups.listening import Listening
from mimids.ds.wake_ups.own_messages import OwnMessages
from mimids.http.api.endpoints import Listener
from mimids.http.api.problems import document
from mimids.http.peers.calls import HttpPeers
from mimids.http.peers.push_services import HttpPushServices
from mimids.http.server.tls import CertificateFileError
from mimids.listeners import ListenerSpec, largest_body, make_listeners
from mimids.mls.suites import use_code_points
from mimids.ohttp.at_rest import OperatorKey
from mimids.ohttp.keyring import Schedule
from mimids.store import removed
from mimids.store.accounts import standing_of
from mimids.store.engine.access import joining
from mimids.store.engine.store import Store
from mimids.telemetry import Telemetry
from mimids.values import Device, DeviceRow
from mimids.wire.ids import ProviderId

DAY_SECONDS: Final = 86_400


@attrs.frozen
class AssembledProvider:
    """All objects of a provider. Shutdown sets `drain`."""

    services: Services
    listeners: Mapping[str, ListenerSpec]
    peers: HttpPeers
    push_services: HttpPushServices
    drain: trio.Event = attrs.field(factory=trio.Event)

    async def reload_certificates(self) -> None:
        """Read certificate and trust files again, for new connections.

        Raises `CertificateFileError` for a file that cannot be used; its listener keeps the old certificate.
        """
        failures: list[CertificateFileError] = []
        for spec in self.listeners.values():
            if spec.bind.tls is not None:
                try:
                    spec.bind.tls.reload()
                except CertificateFileError as error:
                    failures.append(error)
        self.push_services.reload()
        await self.peers.reload()
        if failures:
            raise failures[0]


def assemble(config: Config, clock: Clock, telemetry: Telemetry, store: Store, peers: HttpPeers) -> AssembledProvider:
    """Make all parts of a provider; raise `CertificateFileError` or `ConfigError` if a file cannot be used."""
    push_services = HttpPushServices(config, clock)
    services = make_services(config, clock, telemetry, store, peers, peers.dates, push_services)
    watched: dict[str, Callable[[], attrs.AttrsInstance]] = {
        "store": store.statistics,
        "peers": peers.statistics,
        "gateway": services.gateway.statistics,
        "relay": services.relay.statistics,
        "delivery": services.delivery.statistics,
        "welcomes": services.outgoing_welcomes.statistics,
        "following": services.epoch_receiver.statistics,
        "recovery": services.recovery_as_hub.statistics,
        "departures": services.departures.statistics,
        "streams": services.streams.statistics,
        "sweeper": services.sweeper.statistics,
        "wake_ups": services.wake_ups.statistics,
        "processes": services.processes.statistics,
    }
    for name, statistics in watched.items():
        telemetry.watch(name, statistics)
    listeners = make_listeners(services)
    telemetry.watch(
        "buffers", listeners[Listener.PUBLIC.value].bind.buffers.statistics
    )  # the client listener shares them
    return AssembledProvider(services, listeners, peers, push_services)


def use_limits(provider: AssembledProvider) -> None:
    """Update the values that services derived from `[limits]` and `[federation]`, after a reload."""
    services, config = provider.services, provider.services.config
    limits = config.limits
    services.key_packages.change_rules(_stock_rules(config))
    services.gateway.change_bounds(_gateway_bounds(config))
    services.relay.change_bounds(_relay_bounds(config))
    services.recovery_answers.change_limit(limits.receive_bytes)
    services.streams.change_limits(batch_messages=limits.send_batch_messages, device_streams=limits.device_streams)
    services.offered_terms.forget()  # the terms contain rates and sizes
    buffers = provider.listeners[Listener.PUBLIC.value].bind.buffers  # the client listener shares this budget
    buffers.resize(config.listen.buffered_bytes, largest=largest_body(config))


def watched_files(config: Config) -> tuple[Path, ...]:
    """Return every certificate, key and trust file of a configuration, for the certificate watch."""
    files = [config.tls.certificate, config.tls.private_key, *config.tls.presented, config.tls.trust]
    files += [peer.trust for peer in config.providers.values()]
    return tuple(dict.fromkeys(path for path in files if path is not None))


# --- services -----------------------------------------------------------------------------------------------------


# Longer than 40 lines: one statement for each service, in the order in which they need each other.
def make_services(
    config: Config,
    clock: Clock,
    telemetry: Telemetry,
    store: Store,
    transport: PeerTransport,
    peer_dates: Callable[[], Mapping[ProviderId, PeerDate]] = dict,
    push_services: PushServices | None = None,
) -> Services:
    """Make the services of a provider and connect them; `transport` carries requests to other providers."""
    provider, limits = config.provider, config.limits
    use_code_points(config.mls.post_quantum_suites)
    join = joining(config.place)
    notifier = Notifier() if join is None else SharedNotifier()
    processes = Processes(store, notifier, join)
    mls, recent = MlsJudge(States()), Recent()
    store.when_changed(recent.clear, "messages")
    backoff = Backoff(config.delivery.backoff_first_seconds, config.delivery.backoff_cap_seconds)
    banned = BannedProviders(store, clock)
    offered_terms = OfferedTerms(config, store, clock, banned)
    decoder = AnswerDecoder()
    accepted_terms = AcceptedTerms(config, store, clock, transport, notifier, decoder)
    peers: Peers = PeersUnderTerms(transport, accepted_terms, offered_terms, banned)

    user_rates, provider_rates = UserRates(limits, clock), ProviderRates(limits, clock, telemetry.bound_hit)
    budgets = Budgets(limits, clock)
    shared_rates = SharedRates(clock, shared=join is not None)
    gate = Gate(clock, user_rates, budgets, shared_rates.add)
    may_contact = partial(config.federation.allows, us=provider)
    new_providers = NewProviders.of(limits, clock, may_contact, telemetry.bound_hit)
    welcome_limits = WelcomeLimits(limits, clock, new_providers, telemetry.bound_hit)
    hub = LocalHub(
        config,
        store,
        clock,
        mls,
        notifier,
        recent=recent,
        rates=provider_rates,
        budgets=budgets,
        welcome_limits=welcome_limits,
    )

    operator_key = read_operator_key(config)
    ohttp_keys = _make_ohttp_keys(config, store, clock, operator_key)
    key_packages = _make_stock(config, store, clock, telemetry, notifier)
    gateway = _make_gateway(config, store, clock, telemetry, ohttp_keys, key_packages)
    relay = _make_relay(config, clock, peers, gateway, ohttp_keys, new_providers)
    shared_rates.add("users", *user_rates.kept)
    shared_rates.add("providers", *provider_rates.all)
    shared_rates.add("budgets", *budgets.all)
    shared_rates.add("new-providers", *new_providers.all)
    shared_rates.add("welcomes", *welcome_limits.all)
    shared_rates.add("gateway", *gateway.shared_rates)

    evidence = EvidenceReplay(provider, clock, mls)
    reports = Reports(config, store, clock, peers, notifier, evidence, processes.runs_jobs)
    contradicted = partial(_on_contradiction, telemetry, reports)
    receiver = EpochReceiver(
        config,
        store,
        clock,
        mls,
        notifier,
        budgets,
        contradicted=contradicted,
        bound_hit=telemetry.bound_hit,
        shared=join is not None,
    )
    sync = Sync(store, clock, peers, provider=provider, runs_jobs=processes.runs_jobs)
    following = Following(
        config, store, clock, peers, mls.states, receiver, notifier, decoder, note_behind=sync.note_behind
    )
    notify_wake_ups = partial(notifier.notify, WAKE_UPS)
    listening = Listening(notify_wake_ups, tells_others=join is not None)
    cursors = Cursors(store, clock, listening.__contains__, notify_wake_ups, shared=join is not None)
    hub_router = HubRouter(
        OwnHub(provider=provider, hub=hub, gate=gate, cursors=cursors, problem=document),
        partial(
            RemoteHub,
            following=following,
            peers=peers,
            decoder=decoder,
            gate=gate,
            policy=FollowerPolicy(store, clock, mls, accepted_terms),
            accepted=accepted_terms,
            cursors=cursors,
            new_providers=new_providers,
            problem=document,
        ),
    )
    incoming_welcomes = IncomingWelcomes(store, clock, notifier, provider=provider)
    outgoing_welcomes = OutgoingWelcomes(
        store,
        clock,
        peers,
        notifier,
        incoming_welcomes,
        provider=provider,
        backoff=backoff,
        on_refused=partial(_on_refused_welcome, telemetry),
    )
    own_messages = OwnMessages(store, listening)
    streams = _make_streams(
        config,
        store,
        clock,
        notifier,
        hub_router,
        incoming_welcomes,
        key_packages,
        cursors,
        backoff,
        telemetry.bound_hit,
        own_messages,
        process=None if join is None else processes.name,
    )

    delivery = Delivery(
        store,
        clock,
        peers,
        mls.states,
        notifier,
        recent,
        provider_rates,
        provider=provider,
        backoff=backoff,
        workers=config.delivery.workers,
        batch_octets=config.delivery.batch_bytes,
        on_bound=telemetry.bound_hit,
    )
    provider_keys = ProviderKeys(store, clock, provider, operator_key)
    departures = Departures(
        store,
        clock,
        peers,
        mls.states,
        hub,
        provider_keys,
        accepted_terms,
        notifier,
        provider=provider,
        backoff=backoff,
        bound_hit=telemetry.bound_hit,
    )
    callers = Callers()
    for heard in (delivery.heard, outgoing_welcomes.heard, accepted_terms.heard, reports.heard, departures.heard):
        callers.listen(heard)
    callers.listen(lambda provider: notifier.notify(heard_topic(provider)))

    sessions = Sessions(store, clock, receiver.pending, listening.ended, listening.connected)
    last_seen = LastSeen(store, clock, sessions.devices)

    async def seen(device: DeviceRow) -> None:
        last_seen.note(device)
        await services.wake_ups.heard(device)

    services = Services(
        config=config,
        clock=clock,
        telemetry=telemetry,
        store=store,
        peers=peers,
        notifier=notifier,
        processes=processes,
        callers=callers,
        recent=recent,
        offered_terms=offered_terms,
        accepted_terms=accepted_terms,
        gate=gate,
        reports=reports,
        rates=KeptRates(
            store,
            clock,
            (*user_rates.kept, *provider_rates.all, *budgets.all, *new_providers.all),
            restore_providers=new_providers.restore,
            shared=join is not None,
        ),
        shared_rates=shared_rates,
        cursors=cursors,
        devices=DeviceTokens(store, provider, seen),
        sessions=sessions,
        last_seen=last_seen,
        operator_sessions=OperatorSessions(clock),
        key_packages=key_packages,
        ohttp_keys=ohttp_keys,
        gateway=gateway,
        relay=relay,
        hub=hub,
        hub_router=hub_router,
        delivery=delivery,
        epoch_receiver=receiver,
        following=following,
        sync=sync,
        recovery_answers=RecoveryAnswers(
            store, clock, mls.states, notifier, answer_octets=limits.receive_bytes, bound_hit=telemetry.bound_hit
        ),
        recovery_as_follower=RecoveryAsFollower(
            store, clock, peers, notifier, provider=provider, backoff=backoff, log=telemetry.log
        ),
        recovery_as_hub=RecoveryAsHub(
            store,
            clock,
            peers,
            mls.states,
            notifier,
            receiver,
            decoder,
            new_providers,
            provider=provider,
            backoff=backoff,
            log=telemetry.log,
            bound_hit=telemetry.bound_hit,
        ),
        incoming_welcomes=incoming_welcomes,
        outgoing_welcomes=outgoing_welcomes,
        provider_keys=provider_keys,
        departures=departures,
        streams=streams,
        sweeper=Sweeper(config, store, clock, notifier, recent, telemetry.log, peer_dates=peer_dates),
        listening=listening,
        own_messages=own_messages,
        wake_ups=WakeUps(
            store,
            clock,
            notifier,
            push_services,
            listening,
            cursors,
            provider=provider,
            settings=config.push,
            operator_key=operator_key,
            is_connected=sessions.is_open,
            bound_hit=telemetry.bound_hit,
            runs_jobs=processes.runs_jobs,
            process=None if join is None else processes.name,
        ),
    )
    processes.watch(
        {
            "devices": partial(_cut_off_removed, services),
            "federation_rules": lambda rows: use_federation_rules(services),
            "ohttp_keys": lambda rows: ohttp_keys.refresh(),
            "push_subscriptions": services.wake_ups.read_subscriptions,
            "users": lambda rows: _cut_off_removed(services, None),
        },
        {
            "heard": partial(_note_call_elsewhere, notifier, callers),
            "asleep": lambda row: services.wake_ups.note_asleep(DeviceRow(row)),
            TOOK: shared_rates.hear,
            OPEN: streams.hear_open,
            TELL_OPEN: streams.tell_all,
        },
        shared_rates.due,
        streams.forget_processes,
    )
    return services


def _note_call_elsewhere(notifier: Notifier, callers: Callers, name: str) -> None:
    with notifier.only_here():  # that process has notified all others already
        callers.note(ProviderId(name))


async def _cut_off_removed(services: Services, devices: Collection[int] | None) -> None:
    """End the streams and requests of removed and suspended devices, and delete the rates counted for them."""
    await services.sessions.end_refused(None if devices is None else [DeviceRow(row) for row in devices])
    await services.rates.save()
    await services.store.write(removed.forget_rates_of_missing)


def _make_ohttp_keys(config: Config, store: Store, clock: Clock, operator_key: OperatorKey | None) -> OhttpKeys:
    schedule = Schedule(config.ohttp.rotate_days * DAY_SECONDS, config.ohttp.grace_days * DAY_SECONDS)
    return OhttpKeys(store, clock, config.provider, schedule, operator_key)


def _make_stock(
    config: Config, store: Store, clock: Clock, telemetry: Telemetry, notifier: Notifier
) -> KeyPackageStock:
    tokens = config.tokens
    return KeyPackageStock(
        store,
        clock,
        Tokens(AbuseRule(tokens.abuse, tokens.abuse_claims, tokens.abuse_window_hours * 3600)),
        _stock_rules(config),
        on_low=partial(_on_low_stock, telemetry, notifier),
        on_abuse=partial(_on_abuse, telemetry),
    )


def _stock_rules(config: Config) -> StockRules:
    return StockRules(
        max_lifetime_seconds=config.key_packages.max_lifetime_days * DAY_SECONDS,
        low_stock=config.key_packages.low_stock_packages,
        device_packages=config.key_packages.device_packages,
        package_octets=config.limits.key_package_bytes,
    )


def _make_gateway(
    config: Config,
    store: Store,
    clock: Clock,
    telemetry: Telemetry,
    keys: OhttpKeys,
    key_packages: KeyPackageStock,
) -> Gateway:
    return Gateway(
        store, clock, keys.live, keys.look, key_packages, document, _gateway_bounds(config), telemetry.bound_hit
    )


def _gateway_bounds(config: Config) -> GatewayBounds:
    return GatewayBounds(
        window_seconds=config.ohttp.replay_window_seconds,
        replay_rows=config.ohttp.replay_max_rows,
        bundle_requests=config.ohttp.bundle_max_requests,
        package_octets=config.limits.key_package_bytes,
        rate=ConfiguredRate.of(config.limits, "gateway_requests_per_second", "gateway_requests_burst"),
        address_rate=ConfiguredRate.of(
            config.limits, "gateway_address_requests_per_second", "gateway_address_requests_burst"
        ),
    )


def _make_relay(
    config: Config, clock: Clock, peers: Peers, gateway: Gateway, keys: OhttpKeys, new_providers: NewProviders
) -> Relay:
    return Relay(
        peers,
        clock,
        OwnGateway(provider=config.provider, answer=gateway.answer, keys=keys.served),
        partial(config.federation.allows, us=config.provider),
        _relay_bounds(config),
        new_providers,
    )


def _relay_bounds(config: Config) -> RelayBounds:
    return RelayBounds(
        octets=config.limits.ohttp_bytes,
        seconds=config.federation.answer_seconds,
        batch_seconds=config.relay.batch_milliseconds / 1000,
        fetches=ConfiguredRate.of(config.limits, "device_fetches_per_minute", "device_fetches_burst"),
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
    bound_hit: Callable[[str], None],
    own_messages: OwnMessages,
    *,
    process: str | None,
) -> Streams:
    async def is_known(device: Device) -> bool:
        standing = await store.read(lambda tx: standing_of(tx, device.row))
        return standing is not None and standing.admits(device.token_digest)

    return Streams(
        hub_router,
        welcomes,
        key_packages,
        cursors,
        notifier,
        clock,
        Rechecks(store, notifier, clock),
        backoff=backoff,
        problem=document,
        is_known=is_known,
        bound_hit=bound_hit,
        send_batch=own_messages.send_batch,
        batch_messages=config.limits.send_batch_messages,
        device_streams=config.limits.device_streams,
        process=process,
    )


def _on_low_stock(telemetry: Telemetry, notifier: Notifier, low: LowStock) -> None:
    notifier.notify(stock_topic(low.device))
    telemetry.event_unlinkable("low stock", version=low.version, cipher_suite=low.cipher_suite)


def _on_contradiction(telemetry: Telemetry, reports: Reports, contradiction: Contradiction) -> None:
    reports.note_contradiction(contradiction)
    telemetry.log.warning("a hub contradicts itself", peer=contradiction.hub, rule=contradiction.rule)


def _on_refused_welcome(telemetry: Telemetry, provider: ProviderId, references: int, reason: str) -> None:
    telemetry.log.warning("Welcome refused", peer=provider, references=references, reason=reason)


def _on_abuse(telemetry: Telemetry, abuse: Abuse) -> None:
    telemetry.event_unlinkable("claims without Welcomes", token=abuse.token, banned=abuse.banned)
