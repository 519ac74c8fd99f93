"""The services of one running provider, as handlers and jobs get them. `assembly.py` makes the record."""

from __future__ import annotations

import attrs

from mimids.config import Config
from mimids.ds.departures.departures import Departures
from mimids.ds.departures.provider_keys import ProviderKeys
from mimids.ds.devices.accounts import DeviceTokens
from mimids.ds.devices.gate import Gate
from mimids.ds.devices.hub_router import HubRouter
from mimids.ds.devices.last_seen import LastSeen
from mimids.ds.devices.sessions import Sessions
from mimids.ds.devices.streams import Streams
from mimids.ds.early_retries import Callers
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
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.recent import Recent
from mimids.ds.key_packages.gateway import Gateway
from mimids.ds.key_packages.gateway_keys import OhttpKeys
from mimids.ds.key_packages.relay import Relay
from mimids.ds.key_packages.stock import KeyPackageStock
from mimids.ds.limits.kept_rates import KeptRates
from mimids.ds.limits.shared_rates import SharedRates
from mimids.ds.notifier import Notifier
from mimids.ds.operator_sessions import OperatorSessions
from mimids.ds.ports import Clock, Peers
from mimids.ds.processes import Processes
from mimids.ds.running_server import RunningServer
from mimids.ds.terms.accepted import AcceptedTerms
from mimids.ds.terms.offered import OfferedTerms
from mimids.ds.terms.reports import Reports
from mimids.ds.upkeep.sweeper import Sweeper
from mimids.ds.wake_ups.job import WakeUps
from mimids.ds.wake_ups.listening import Listening
from mimids.ds.wake_ups.own_messages import OwnMessages
from mimids.store.engine.store import Store
from mimids.telemetry import Telemetry


@attrs.frozen(kw_only=True)
class Services:
    """All services of a provider; a handler uses those it needs."""

    config: Config
    clock: Clock
    telemetry: Telemetry
    store: Store
    peers: Peers
    notifier: Notifier
    processes: Processes
    callers: Callers
    recent: Recent
    offered_terms: OfferedTerms
    accepted_terms: AcceptedTerms
    gate: Gate
    rates: KeptRates
    shared_rates: SharedRates
    own_messages: OwnMessages
    cursors: Cursors
    reports: Reports
    devices: DeviceTokens
    sessions: Sessions
    last_seen: LastSeen
    operator_sessions: OperatorSessions
    key_packages: KeyPackageStock
    ohttp_keys: OhttpKeys
    gateway: Gateway
    relay: Relay
    hub: LocalHub
    hub_router: HubRouter
    delivery: Delivery
    epoch_receiver: EpochReceiver
    following: Following
    sync: Sync
    recovery_answers: RecoveryAnswers
    recovery_as_follower: RecoveryAsFollower
    recovery_as_hub: RecoveryAsHub
    incoming_welcomes: IncomingWelcomes
    outgoing_welcomes: OutgoingWelcomes
    provider_keys: ProviderKeys
    departures: Departures
    streams: Streams
    sweeper: Sweeper
    listening: Listening
    wake_ups: WakeUps
    server: RunningServer = attrs.field(factory=RunningServer)
