"""What a handler gets of its provider: one frozen record, made in `app.py`."""

from __future__ import annotations

import attrs

from mimids.config import Config
from mimids.ds.accounts import Devices
from mimids.ds.arrangements import Arrangements
from mimids.ds.cursors import Cursors
from mimids.ds.delivery import Delivery
from mimids.ds.follower import Following
from mimids.ds.forwarding import Hubs
from mimids.ds.gate import Gate
from mimids.ds.gateway import Gateway
from mimids.ds.hub import Hub
from mimids.ds.keypackages import KeyPackages
from mimids.ds.ohttp_keys import OhttpKeys
from mimids.ds.ports import Clock, Peers
from mimids.ds.rates import KeptRates
from mimids.ds.recent import Recent
from mimids.ds.recovery import Recovery
from mimids.ds.relay import Relay
from mimids.ds.reports import Reports
from mimids.ds.streams import Streams
from mimids.ds.wakes import Wakes
from mimids.ds.welcomes import Welcomes
from mimids.store.db import Store
from mimids.telemetry import Telemetry


@attrs.frozen(kw_only=True)
class Services:
    """One running provider."""

    config: Config
    clock: Clock
    telemetry: Telemetry
    store: Store
    peers: Peers
    wakes: Wakes
    recent: Recent
    arrangements: Arrangements
    gate: Gate
    rates: KeptRates
    cursors: Cursors
    reports: Reports
    devices: Devices
    key_packages: KeyPackages
    ohttp_keys: OhttpKeys
    gateway: Gateway
    relay: Relay
    hub: Hub
    hubs: Hubs
    delivery: Delivery
    following: Following
    recovery: Recovery
    welcomes: Welcomes
    streams: Streams
